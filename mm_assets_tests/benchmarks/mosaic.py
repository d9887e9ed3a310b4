"""Large slides of real texture for benchmarks: the two real slides' pixels, repeated."""

from pathlib import Path

import imagecodecs
import numpy as np
import openslide
import tifffile

REAL = ("CMU-1-Small-Region.svs", "TCGA-CR-7395-01A-01-TS1.svs")
SLIDES = Path(__file__).resolve().parents[3] / "shared" / "data" / "slides"
APERIO = "Aperio Image Library v1\n{side}x{side}|AppMag = 20|MPP = 0.5"


def texture() -> np.ndarray:
    """Pixels of the real slides side by side, uint8 (2900, 6600, 3).

    Raises
    ------
    SystemExit
        The real slides are not here.
    """
    if not SLIDES.is_dir():
        raise SystemExit("this benchmark needs the real slides (../shared/data/slides)")
    parts = []
    for name, width in zip(REAL, (2200, 4400), strict=True):
        with openslide.OpenSlide(SLIDES / name) as handle:
            parts.append(np.asarray(handle.read_region((0, 0), 0, (width, 2900)))[..., :3])
    return np.concatenate(parts, axis=1)


def write_mosaic(
    path: Path, side: int, tile: int, codec: str = "jpeg", image: np.ndarray | None = None
) -> Path:
    """A single-level slide of `side` pixels, 0.5 um each, in tiles of `tile` pixels.

    Parameters
    ----------
    codec
        ``jpeg`` (YCbCr 4:2:0, quality 85) or ``jpeg2000`` (as Aperio writes it, RGB).
    image
        What is repeated, uint8 (H, W, 3), at least a tile; by default `texture()`.
    """
    image = texture() if image is None else image
    rows, columns = image.shape[0] // tile, image.shape[1] // tile
    encoded = [
        [_encode(image[y : y + tile, x : x + tile], codec) for x in range(0, columns * tile, tile)]
        for y in range(0, rows * tile, tile)
    ]
    count = -(-side // tile)
    aperio = codec == "jpeg2000"
    tifffile.imwrite(
        path,
        (encoded[row % rows][column % columns] for row in range(count) for column in range(count)),
        shape=(side, side, 3),
        dtype=np.uint8,
        tile=(tile, tile),
        photometric="rgb" if aperio else "ycbcr",
        subsampling=None if aperio else (2, 2),
        compression="APERIO_JP2000_RGB" if aperio else "jpeg",
        description=APERIO.format(side=side) if aperio else None,
        resolution=(20_000, 20_000),
        resolutionunit="CENTIMETER",
        metadata=None,
    )
    return path


def _encode(pixels: np.ndarray, codec: str) -> bytes:
    pixels = np.ascontiguousarray(pixels)
    if codec == "jpeg2000":
        data = imagecodecs.jpeg2k_encode(pixels, level=30, codecformat="j2k")
    else:
        data = imagecodecs.jpeg8_encode(
            pixels, level=85, colorspace="rgb", outcolorspace="ycbcr", subsampling=(2, 2)
        )
    return bytes(data)
