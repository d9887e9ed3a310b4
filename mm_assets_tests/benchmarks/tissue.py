"""CPU seconds of tissue detection on slides of 20,000 px, beside what else was done in that time.

Run as ``python -m mm_assets_tests.benchmarks.tissue [folder with real slides]``. The slides are
mosaics of a real one where the folder has it, else of a painted one; all threads' time counts.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import cv2
import imagecodecs
import numpy as np
import tifffile

from mm_assets.synthetic.oddities import SlidePlan
from mm_assets.synthetic.slides import write_slide
from mm_assets.wsi.levels import tiled_levels
from mm_assets.wsi.outline import outline_png
from mm_assets.wsi.slide import open_slide
from mm_assets.wsi.tiled import read_squares
from mm_assets.wsi.tissue import find_tissue

EDGE, TILE, REPEATS = 20_000, 256, range(7)
REAL = "TCGA-CR-7395-01A-01-TS1.svs"
APERIO = "Aperio Image Library v11.2.1 \r\n|AppMag = {}|MPP = {}"
JPEG, JPEG_2000 = "jpeg", "aperio_jp2000_rgb"
# Name, micrometres a pixel, downsamples of the levels, compression.
SLIDES = (
    ("levels 1, 4, 16", 0.5, (1, 4, 16), JPEG),
    ("levels 1, 4, 16 at 0.25 um", 0.25, (1, 4, 16), JPEG),
    ("levels 1, 2, 4, 8, 16, 32", 0.5, (1, 2, 4, 8, 16, 32), JPEG),
    ("levels 1, 4", 0.5, (1, 4), JPEG),
    ("one level", 0.5, (1,), JPEG),
    ("JPEG 2000, levels 1, 4, 16", 0.5, (1, 4, 16), JPEG_2000),
)


def texture(folder: Path, scratch: Path) -> np.ndarray:
    """A whole slide's pixels, real where there is one."""
    path = folder / REAL
    if not path.exists():
        print(f"no {REAL} in {folder}: a painted slide instead")
        path = scratch / "painted.tiff"
        write_slide(path, SlidePlan("painted", 1, 0, "good"), 0.5, 1, 0, (4000, 4400))
    with open_slide(path, 0.5) as slide:
        edge = max(slide.width, slide.height)
        return slide.read(0, 0, edge, edge)


def write(
    path: Path, image: np.ndarray, mpp: float, downsamples: Sequence[int], codec: str
) -> None:
    with tifffile.TiffWriter(path) as writer:
        for downsample in downsamples:
            size = (EDGE // downsample, EDGE // downsample)
            level = (
                image if downsample == 1 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            )
            writer.write(
                level,
                tile=(TILE, TILE),
                photometric="rgb",
                compression=codec,
                compressionargs={"level": 85} if codec == JPEG else {"level": 35},
                description=APERIO.format(round(10 / mpp), mpp),
                metadata=None,
            )


def cpu_seconds(work: Callable[..., None], *arguments: object) -> float:
    start = time.process_time()
    work(*arguments)
    return time.process_time() - start


def detect(path: Path) -> None:
    with open_slide(path) as slide:
        tissue = find_tissue(slide)
    outline_png(tissue.thumbnail, tissue.mask)


def decode(path: Path, mpp: float) -> None:
    """Nothing but decoding, of the level that detection reads."""
    wanted = round(8 / mpp)
    level = min(
        (level for level in tiled_levels(path) if EDGE // level.width <= wanted),
        key=lambda level: level.width,
    )
    tops = list(range(0, level.height, TILE))
    columns = {row: list(range(level.columns)) for row in range(len(tops))}
    lefts = [TILE * column for column in range(level.columns)]
    with closing(read_squares(path, level, lefts, tops, TILE, columns, 1)) as squares:
        for _ in squares:
            pass


def tiatoolbox(path: Path) -> None:
    """Its Otsu mask, where the package is installed."""
    from tiatoolbox.wsicore.wsireader import WSIReader

    WSIReader.open(path).tissue_mask(method="otsu", resolution=8, units="mpp")


def main() -> None:
    """Print a line a slide."""
    # As in the tissue stage.
    cv2.setNumThreads(1)
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("../shared/data/slides")
    peer = tiatoolbox if find_spec("tiatoolbox") else None
    if peer is None:
        print("TIAToolbox is not installed: skipped")
    print(
        f"OpenCV {cv2.__version__} ({cv2.getNumThreads()} threads), imagecodecs "
        f"{imagecodecs.__version__}; median CPU seconds of {len(REPEATS)}"
    )
    with tempfile.TemporaryDirectory() as scratch:
        pixels = texture(folder, Path(scratch))
        repeats = [-(-EDGE // edge) for edge in pixels.shape[:2]]
        image = np.tile(pixels, (*repeats, 1))[:EDGE, :EDGE]
        for name, mpp, downsamples, codec in SLIDES:
            path = Path(scratch) / "slide.svs"
            write(path, image, mpp, downsamples, codec)
            detect(path)
            pairs = [(cpu_seconds(detect, path), cpu_seconds(decode, path, mpp)) for _ in REPEATS]
            found, plain = (median(seconds) for seconds in zip(*pairs, strict=True))
            line = f"{name:30} tissue {found:6.3f}  decoding alone {plain:6.3f}"
            if peer:
                line += f"  TIAToolbox {cpu_seconds(peer, path):6.3f}"
            print(f"{line}  ratio {found / plain:6.2f}", flush=True)


if __name__ == "__main__":
    main()
