"""Tiles as they are learned from, straight from a slide."""

from functools import partial
from pathlib import Path

import numpy as np

from mm_assets.ssl.tiles import SlideTiles
from mm_assets.wsi.slide import open_slide
from mm_assets.wsi.tiling import plan_tiles
from mm_assets_tests.cohorts import SIDE, paint_slide

TILE = 64


def test_tiles_come_from_the_fast_reader_and_leave_no_file(tmp_path: Path) -> None:
    path = tmp_path / "A.tiff"
    paint_slide(path, 0)
    everywhere = np.ones((SIDE // 16, SIDE // 16), bool)
    plan = plan_tiles(
        *(SIDE, SIDE, 0.5, everywhere, 16),
        target_mpp=0.5,
        tile_px=TILE,
        region_px=2 * TILE,
        min_tissue=0.5,
    )
    source = SlideTiles("A", partial(open_slide, path), plan)
    chosen = np.array([0, 7, 12, 55])
    made = list(source.read(chosen))
    with open_slide(path) as slide:
        assert slide.reader_at(1.0).startswith("imagecodecs ")
        corners = plan.tile_corners()[chosen].tolist()
        wanted = [slide.read(x, y, TILE, TILE) for x, y in corners]
    np.testing.assert_array_equal(made, wanted)
    assert len(source) == (SIDE // TILE) ** 2
    assert list(tmp_path.iterdir()) == [path]
