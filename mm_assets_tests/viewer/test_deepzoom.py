"""Tiles of deep zoom cover the slide once and show its pixels."""

import math
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mm_assets.viewer.deepzoom import TILE_PX, DeepZoom, Geometry
from mm_assets.wsi.slide import open_slide
from mm_assets_tests.viewer.conftest import HEIGHT, RED, SQUARE, WIDTH, paint_square

sides = st.integers(1, 200_000)


@given(sides, sides)
def test_levels_halve_from_the_slide_to_one_pixel(width: int, height: int) -> None:
    geometry = Geometry(width, height)
    assert geometry.size(geometry.highest) == (width, height)
    assert geometry.size(0) == (1, 1)
    for level in range(geometry.highest):
        finer = geometry.size(level + 1)
        assert geometry.size(level) == (math.ceil(finer[0] / 2), math.ceil(finer[1] / 2))


@given(sides, sides, st.data())
def test_tiles_cover_a_level_once(width: int, height: int, data: st.DataObject) -> None:
    geometry = Geometry(width, height)
    level = data.draw(st.integers(0, geometry.highest))
    across, down = geometry.size(level)
    columns, rows = math.ceil(across / TILE_PX), math.ceil(down / TILE_PX)
    assert sum(geometry.tile_size(level, c, 0)[0] for c in range(columns)) == across
    assert sum(geometry.tile_size(level, 0, r)[1] for r in range(rows)) == down
    for column, row in ((columns, 0), (0, rows), (-1, 0)):
        with pytest.raises(KeyError):
            geometry.tile_size(level, column, row)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("deepzoom") / "slide.tiff"
    paint_square(path)
    return path


def _assembled(zoom: DeepZoom, level: int) -> np.ndarray:
    width, height = zoom.geometry.size(level)
    picture = np.zeros((height, width, 3), np.uint8)
    for top in range(0, height, TILE_PX):
        for left in range(0, width, TILE_PX):
            data = zoom.tile(level, left // TILE_PX, top // TILE_PX)
            tile = np.asarray(Image.open(BytesIO(data)).convert("RGB"))
            picture[top : top + len(tile), left : left + tile.shape[1]] = tile
    return picture


def test_every_level_shows_the_slide(slide: Path) -> None:
    with open_slide(slide) as opened:
        whole = Image.fromarray(opened.read(0, 0, max(WIDTH, HEIGHT), max(WIDTH, HEIGHT)))
        whole = whole.crop((0, 0, WIDTH, HEIGHT))
        zoom = DeepZoom(opened)
        for level in range(7, zoom.geometry.highest + 1):
            shown = _assembled(zoom, level).astype(int)
            size = zoom.geometry.size(level)
            wanted = np.asarray(whole.resize(size, Image.Resampling.BOX)).astype(int)
            # JPEG, and areas that end inside a pixel at the lower and right edge.
            assert np.abs(shown - wanted)[:-1, :-1].mean() < 3, level
            step = zoom.geometry.downsample(level)
            x, y, edge = (value // step for value in SQUARE)
            if edge >= 8:
                inside = shown[y + 2 : y + edge - 2, x + 2 : x + edge - 2]
                assert np.abs(inside - RED).max() < 25, level


def test_a_single_level_is_zoomed_out_through_its_overview(tmp_path: Path) -> None:
    import tifffile

    path = tmp_path / "single.tiff"
    ramp = np.linspace(30, 220, 6000).astype(np.uint8)
    image = np.broadcast_to(ramp[None, :, None], (6000, 6000, 3))
    resolution = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(
        path, image, tile=(256, 256), photometric="rgb", compression="jpeg", **resolution
    )
    with open_slide(path) as opened:
        assert len(opened.levels) == 1
        zoom = DeepZoom(opened)
        level = zoom.geometry.highest - 5
        shown = _assembled(zoom, level)[:, :, 0].astype(int)
        wanted = np.interp((np.arange(shown.shape[1]) + 0.5) * 32, np.arange(6000), ramp)
        assert np.abs(shown - wanted)[:-1, :-1].max() < 8
