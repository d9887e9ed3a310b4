"""Nuclei of whole slides: against the planted ones, over tile borders, and what the table says."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mm_assets.nuclei.search import CROP_PX, choose_tiles, find_nuclei
from mm_assets.synthetic.cohort import create_demo_cohort
from mm_assets.synthetic.truth import read_slide_plans, read_slide_truth
from mm_assets.wsi.slide import Slide, open_slide
from mm_assets.wsi.tiling import TilePlan, plan_tiles
from mm_assets.wsi.tissue import find_tissue
from mm_assets_tests.nuclei.scoring import match

MATCH_UM = 6.0


class Middle:
    """Embeds a crop as its mean colour and the colour of its middle."""

    name, dimension, pass_tiles = "middle", 4, 1

    def encode(self, crops: NDArray[np.uint8]) -> NDArray[np.float16]:
        middle = crops[:, CROP_PX // 2, CROP_PX // 2]
        return np.column_stack([crops.mean(axis=(1, 2, 3)), middle]).astype(np.float16)


def plan_for(slide: Slide, tile_px: int = 256, mpp: float = 0.5) -> tuple[TilePlan, tuple]:
    tissue = find_tissue(slide)
    whole = (tissue.mask, tissue.downsample)
    sizes = {"target_mpp": mpp, "tile_px": tile_px, "region_px": 4096, "min_tissue": 0.5}
    return plan_tiles(slide.width, slide.height, slide.mpp, *whole, **sizes), whole


@pytest.fixture(scope="module", params=[0, 1])
def cohort(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("nuclei") / "cohort"
    create_demo_cohort(folder, 4, request.param, slides_px=(1000, 1400), oddities=False)
    return folder


def test_planted_nuclei_are_found(cohort):
    scores = []
    for slide_id in read_slide_plans(cohort).query("state == 'good'").index:
        with open_slide(cohort / "slides" / f"{slide_id}.tiff") as slide:
            plan, tissue = plan_for(slide)
            nodes, _, _ = find_nuclei(slide, plan, *tissue, Middle(), plan.tiles)
        planted = read_slide_truth(cohort, slide_id).nuclei[["x", "y"]].to_numpy()
        kept = {tuple(tile) for tile in plan.tiles.tolist()}
        inside = [tuple(at) in kept for at in (planted // plan.tile_grid.size0).astype(int)]
        found = nodes.select(["centroid_x", "centroid_y"]).to_pandas().to_numpy(float)
        scores.append(match(found, planted[inside], MATCH_UM / slide.mpp).f1)
    assert np.mean(scores) > 0.85, scores
    assert min(scores) > 0.78, scores


def test_tiles_of_any_size_find_the_same(cohort):
    slide_id = read_slide_plans(cohort).query("state == 'good'").index[0]
    tables = []
    with open_slide(cohort / "slides" / f"{slide_id}.tiff") as slide:
        for tile_px in (128, 256):
            plan, tissue = plan_for(slide, tile_px)
            tables.append(find_nuclei(slide, plan, *tissue, Middle(), plan.tiles)[0])
            inner = plan.tiles
        low, high = 256 * inner.min(axis=0), 256 * (inner.max(axis=0) + 1)
    points = [t.select(["centroid_x", "centroid_y"]).to_pandas().to_numpy() for t in tables]
    kept = {tuple(tile) for tile in inner.tolist()}
    points = [p[[tuple(at) in kept for at in (p // 256).astype(int)]] for p in points]
    assert (low < high).all()
    # The threshold of the slide is taken from other tiles, so a few faint ones differ.
    assert match(*points, within=2.0).f1 > 0.98


def test_tables_say_where_nuclei_are(cohort):
    slide_id = read_slide_plans(cohort).query("state == 'good'").index[0]
    with open_slide(cohort / "slides" / f"{slide_id}.tiff") as slide:
        plan, tissue = plan_for(slide)
        nodes, edges, area = find_nuclei(slide, plan, *tissue, Middle(), plan.tiles)
        again, _, _ = find_nuclei(slide, plan, *tissue, Middle(), plan.tiles)
        at = {name: nodes[name].to_numpy() for name in nodes.column_names if name != "embedding"}
        embeddings = np.stack(nodes["embedding"].to_numpy(zero_copy_only=False))
        size0 = int(at["size0"][0])
        for row in (0, nodes.num_rows // 2):
            crop = slide.read(int(at["x"][row]), int(at["y"][row]), size0, CROP_PX)
            assert np.allclose(Middle().encode(crop[None])[0], embeddings[row], atol=0.1)
    assert nodes.equals(again)
    assert area == pytest.approx(len(plan.tiles) * 0.128**2)
    assert size0 == CROP_PX
    assert (np.lexsort((at["x"], at["y"])) == np.arange(nodes.num_rows)).all()
    for axis in ("x", "y"):
        assert np.abs(at[f"centroid_{axis}"] - at[axis] - CROP_PX / 2).max() <= 1
    assert edges["target"].to_numpy().max() < nodes.num_rows
    assert 3 < 2 * edges.num_rows / nodes.num_rows < 6


def test_fewer_tiles_are_whole_tiles_and_always_the_same(cohort):
    slide_id = read_slide_plans(cohort).query("state == 'good'").index[0]
    with open_slide(cohort / "slides" / f"{slide_id}.tiff") as slide:
        plan, tissue = plan_for(slide)
        tiles = choose_tiles(plan, 3)
        nodes, _, _ = find_nuclei(slide, plan, *tissue, Middle(), tiles)
    assert len(tiles) == 3
    assert (tiles == choose_tiles(plan, 3)).all()
    assert choose_tiles(plan, 10_000) is plan.tiles
    reach = 24  # a nucleus that began in a tile may have its centre a little outside
    grown = [(256 * column - reach, 256 * row - reach) for column, row in tiles.tolist()]
    for x, y in nodes.select(["centroid_x", "centroid_y"]).to_pandas().to_numpy():
        assert any(a <= x <= a + 304 and b <= y <= b + 304 for a, b in grown)


def test_a_slide_without_nuclei_gives_empty_tables(cohort):
    slide_id = read_slide_plans(cohort).query("state == 'good'").index[0]
    with open_slide(cohort / "slides" / f"{slide_id}.tiff") as slide:
        plan, (mask, downsample) = plan_for(slide)
        nothing = np.zeros_like(mask)
        nodes, edges, _ = find_nuclei(slide, plan, nothing, downsample, Middle(), plan.tiles)
    assert nodes.num_rows == edges.num_rows == 0
    assert nodes.schema.field("embedding").type.list_size == 4
