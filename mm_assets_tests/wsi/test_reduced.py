"""Overviews decoded at a fraction of the size agree with the means of all pixels."""

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from mm_assets.wsi.levels import tiled_levels
from mm_assets.wsi.reduced import reduced_level, reduction
from mm_assets.wsi.slide import Slide, SlideError, open_slide

APERIO = "Aperio Image Library v11.2.1 \r\n|AppMag = 20|MPP = 0.5"


def picture(height: int, width: int, grain: int = 24) -> np.ndarray:
    shape = (height // grain + 1, width // grain + 1, 3)
    coarse = np.random.default_rng(0).integers(90, 250, shape)
    return cv2.resize(coarse.astype(np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)


def single_level(folder: Path, image: np.ndarray, **options) -> Path:
    """A slide of 0.5 um a pixel without a pyramid."""
    path = folder / "single.tiff"
    if options.get("photometric") == "ycbcr":
        image = cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
    scale = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, image, metadata=None, description=APERIO, **scale, **options)
    return path


def means(image: np.ndarray, factor: int) -> np.ndarray:
    rows, columns = (edge // factor for edge in image.shape[:2])
    whole = image[: rows * factor, : columns * factor].astype(float)
    return whole.reshape(rows, factor, columns, factor, 3).mean(axis=(1, 3))


@pytest.mark.parametrize("tile", [240, 256])
@pytest.mark.parametrize(
    ("options", "grain", "largest"),
    [
        ({"photometric": "rgb", "compression": "jpeg"}, 24, 2),
        ({"photometric": "ycbcr", "compression": "jpeg", "subsampling": (1, 1)}, 24, 2),
        # JPEG 2000's smaller picture lies half a pixel off: fine detail would differ more.
        ({"photometric": "rgb", "compression": "aperio_jp2000_rgb"}, 96, 12),
    ],
    ids=["rgb", "ycbcr", "jpeg2000"],
)
# 1026 leaves a last tile of 2 pixels: fewer than the factor.
@pytest.mark.parametrize("width", [1300, 1026])
def test_overview_agrees_with_the_means(tmp_path, tile, options, grain, largest, width):
    image = picture(900, width, grain)
    path = single_level(tmp_path, image, tile=(tile, tile), **options)
    with open_slide(path) as slide:
        overview, downsample = slide.overview(8.0)
        shown = slide.read(0, 0, 1312, 1312)[:900, :width]
    assert downsample == 16
    assert overview.shape == (math.ceil(900 / 16), math.ceil(width / 16), 3)
    expected = means(shown, 16)
    difference = np.abs(overview[: expected.shape[0], : expected.shape[1]] - expected)
    assert difference.mean() < largest / 4
    assert np.quantile(difference, 0.99) <= largest


def test_reduced_where_it_pays_and_only_there(tmp_path, monkeypatch):
    assert [reduction(fineness) for fineness in (1, 3.9, 4, 7.9, 8, 40)] == [1, 1, 4, 4, 8, 8]
    jpeg = single_level(tmp_path, picture(600, 700), tile=(256, 256), compression="jpeg")
    assert reduced_level(tiled_levels(jpeg)[0], 8).tile_width == 32
    with open_slide(jpeg) as slide:
        monkeypatch.setattr(Slide, "read", None)
        slide.overview(8.0)
        whole, downsample = slide.overview(slide.mpp)
    assert downsample == 1
    assert (whole == tifffile.imread(jpeg)).all()
    plain = single_level(tmp_path, picture(600, 700), tile=(256, 256))
    assert reduced_level(tiled_levels(plain)[0], 8) is None


def test_damaged_tiles_are_said(tmp_path):
    path = single_level(tmp_path, picture(900, 1300), tile=(256, 256), compression="jpeg")
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].dataoffsets[7]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\x00" * 400)
    with open_slide(path) as slide, pytest.raises(SlideError, match="cannot be decoded near x="):
        slide.overview(8.0)
