import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_assets.wsi.slide import SlideError
from mm_assets.wsi.tiling import Grid, plan_tiles

MPP = st.floats(0.1, 0.6)
TARGET = st.floats(0.5, 4.0)
TILE_PX = st.sampled_from([64, 224, 256, 512])


def plan_all(width, height, mpp, target, tile_px=256, region_px=1024):
    mask = np.ones((-(-height // 16), -(-width // 16)), bool)
    return plan_tiles(width, height, mpp, mask, 16, target, tile_px, region_px, 0.0)


@given(mpp=MPP, target=TARGET, px=TILE_PX, index=st.integers(0, 500))
def test_neighbours_leave_no_gap_and_overlap_by_a_pixel_at_most(mpp, target, px, index):
    grid = Grid(px, target, mpp)
    step = grid.position(index + 1) - grid.position(index)
    assert 0 <= grid.size0 - step <= 1


@given(mpp=MPP, target=TARGET, px=TILE_PX, index=st.integers(0, 500))
def test_positions_do_not_drift(mpp, target, px, index):
    assert abs(Grid(px, target, mpp).position(index) - index * px * target / mpp) <= 0.5 + 1e-6


@settings(deadline=None)
@given(width=st.integers(100, 20_000), height=st.integers(100, 20_000), mpp=MPP, target=TARGET)
def test_tiles_cover_the_slide_once_in_row_major_order(width, height, mpp, target):
    plan = plan_all(width, height, mpp, target)
    corners = plan.tile_corners()
    assert len(corners) == plan.columns * plan.rows
    assert (corners < [width, height]).all()
    assert corners[-1, 0] + plan.tile_grid.size0 >= width
    assert corners[-1, 1] + plan.tile_grid.size0 >= height
    order = [(row, column) for column, row in plan.tiles.tolist()]
    assert order == sorted(set(order))


@settings(deadline=None)
@given(
    mpp=st.floats(0.2, 0.6),
    target=st.floats(0.5, 1.0),
    region=st.sampled_from([1, 2, 4, 16]),
    seed=st.integers(0, 1000),
)
def test_every_kept_tile_lies_in_a_kept_region_and_every_region_holds_one(
    mpp, target, region, seed
):
    mask = np.random.default_rng(seed).random((90, 120)) > 0.5
    plan = plan_tiles(120 * 32, 90 * 32, mpp, mask, 32, target, 256, 256 * region, 0.2)
    owners = {(column // region, row // region) for column, row in plan.tiles.tolist()}
    assert owners == set(map(tuple, plan.regions.tolist()))
    inside = set(map(tuple, plan.tiles_under(plan.regions).tolist()))
    assert set(map(tuple, plan.tiles.tolist())) <= inside
    for (column, row), (x, y) in zip(plan.regions, plan.region_corners(), strict=True):
        assert x == plan.tile_grid.position(int(column) * region)
        assert y == plan.tile_grid.position(int(row) * region)


@settings(deadline=None)
@given(mpp=st.floats(0.2, 0.6), seed=st.integers(0, 1000))
def test_tissue_fraction_is_the_exact_area(mpp, seed):
    mask = np.random.default_rng(seed).random((40, 50)) > 0.6
    plan = plan_tiles(400, 320, mpp, mask, 8, 0.5, 64, 128, 0.2)
    pixels = np.zeros((320 + 400, 400 + 400))
    pixels[:320, :400] = mask.repeat(8, 0).repeat(8, 1)
    size = plan.tile_grid.size0
    for (x, y), fraction in zip(plan.tile_corners(), plan.tissue_fraction, strict=True):
        assert pixels[y : y + size, x : x + size].mean() == pytest.approx(fraction, abs=1e-5)
        assert fraction >= 0.2 - 1e-6
    kept = set(map(tuple, plan.tiles.tolist()))
    for column in range(plan.columns):
        for row in range(plan.rows):
            x, y = plan.tile_grid.position(column), plan.tile_grid.position(row)
            enough = pixels[y : y + size, x : x + size].mean() >= 0.2
            assert ((column, row) in kept) == enough


def test_exact_multiples_are_read_without_resampling():
    assert Grid(256, 0.5, 0.5).size0 == 256
    assert Grid(256, 0.5, 0.25).size0 == 512
    assert Grid(4096, 0.5, 0.25).size0 == 8192


def test_refusals():
    mask = np.ones((10, 10), bool)
    with pytest.raises(SlideError, match="no tile of 128 um holds 50% tissue"):
        plan_tiles(1000, 1000, 0.5, ~mask, 100, 0.5, 256, 1024, 0.5)
    with pytest.raises(SlideError, match="scanned at 1 um a pixel"):
        plan_tiles(1000, 1000, 1.0, mask, 100, 0.5, 256, 1024, 0.5)
    with pytest.raises(ValueError, match="multiple"):
        plan_tiles(1000, 1000, 0.5, mask, 100, 0.5, 256, 1000, 0.5)
