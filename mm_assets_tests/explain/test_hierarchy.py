"""Attention of three levels as one map."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mm_assets.encoders.hipt import load_region_encoder, tile_attention
from mm_assets.encoders.registry import load_encoder
from mm_assets.encoders.vit import RegionTransformer, TileTransformer
from mm_assets.explain.attention import Bag
from mm_assets.explain.document import Instance
from mm_assets.explain.hierarchy import composed, patches_of, tiles_of
from mm_assets.explain.pictures import heat
from mm_assets.synthetic.tiff import write_pyramid
from mm_assets.wsi.slide import open_slide
from mm_assets.wsi.tiling import Grid

SIDE, TILE = 4, 64
WHITE = np.zeros(384, np.float16)
GRID = Grid(TILE, 0.5, 0.5)


def region(x: int, y: int, score: float) -> Instance:
    return Instance(rank=1, slide_id="A", level="region", x=x, y=y, size0=SIDE * TILE, score=score)


def bag(places: list[tuple[int, int]]) -> Bag:
    """Tiles at columns and rows."""
    x, y = (TILE * np.array(places, np.int32)).T
    tokens = np.random.default_rng(0).normal(size=(len(places), 384)).astype(np.float16)
    return Bag(tokens, x, y, np.full(len(places), TILE, np.int32))


@pytest.mark.parametrize(
    ("network", "shape"), [(TileTransformer, (2, 3, 64, 48)), (RegionTransformer, (2, 384, 4, 3))]
)
def test_attention_is_that_which_makes_the_class_token(network, shape) -> None:
    """With values that name their token, attention's own output tells what was drawn from each."""
    torch.manual_seed(0)
    made = network().eval()
    last = made.blocks[-1]
    torch.nn.init.normal_(last.attn.qkv.weight, std=0.2)
    seen = []
    last.attn.register_forward_pre_hook(lambda _, tokens: seen.append(tokens[0]))
    inputs = torch.randn(shape)
    with torch.no_grad():
        found = made.attention(inputs)
        made(inputs)
        query, key, _ = last.attn._heads(seen[0])
        names = torch.eye(key.shape[2]).expand(*key.shape[:2], -1, -1)
        drawn = torch.nn.functional.scaled_dot_product_attention(query, key, names)[:, :, 0, 1:]
    wanted = (drawn / drawn.sum(-1, keepdim=True)).mean(1).view_as(found)
    torch.testing.assert_close(found, wanted)
    assert found.shape == (2, 4, 3)
    assert found.max() > 1.5 * found.min()


def test_a_regions_weight_is_shared_out_among_its_tissue() -> None:
    encoder = load_region_encoder("random:3", "cpu")
    tiles = bag([(0, 0), (1, 0), (3, 2), (5, 1), (9, 9)])
    found = tiles_of([region(0, 0, 0.6), region(256, 0, 0.3)], tiles, GRID, SIDE, encoder, WHITE)
    assert [(each.x // TILE, each.y // TILE) for each in found] == [(0, 0), (1, 0), (3, 2), (5, 1)]
    assert sum(each.score for each in found[:3]) == pytest.approx(0.6)
    assert found[3].score == pytest.approx(0.3)
    whole = np.zeros((SIDE, SIDE, 384), np.float16)
    for token, (column, row) in zip(tiles.embeddings, [(0, 0), (1, 0), (3, 2)], strict=False):
        whole[row, column] = token
    weights = encoder.attention(whole)
    assert weights.sum() == pytest.approx(1, abs=1e-5)
    assert found[2].score / found[0].score == pytest.approx(weights[2, 3] / weights[0, 0])
    with pytest.raises(ValueError, match="region at 0, 512 of A holds no embedded tile"):
        tiles_of([region(0, 512, 0.1)], tiles, GRID, SIDE, encoder, WHITE)


def test_the_smallest_places_add_up_to_the_whole(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (512, 512, 3), dtype=np.uint8)
    write_pyramid(tmp_path / "A.tiff", image, mpp=0.5)
    encoder, regions = load_encoder("hipt", "random:1", "cpu"), load_region_encoder("random:3")
    outer = [region(0, 0, 0.7), region(256, 256, 0.3)]
    tiles = tiles_of(outer[:1], bag([(0, 0), (2, 1)]), GRID, SIDE, regions, WHITE)
    with open_slide(tmp_path / "A.tiff") as slide:
        patches = patches_of(tiles[1], slide, TILE, encoder)
        pixels = slide.read(tiles[1].x, tiles[1].y, TILE, TILE)
    shares = np.array([each.score for each in patches]).reshape(4, 4) / tiles[1].score
    np.testing.assert_allclose(shares, tile_attention(encoder, pixels), rtol=1e-4)
    assert [(each.x, each.y, each.size0) for each in patches[:5:4]] == [
        (128, 64, 16),
        (128, 80, 16),
    ]
    document = composed([*outer, *tiles, *patches], [outer[0], tiles[1]])
    assert [each.rank for each in document] == list(range(1, len(document) + 1))
    assert [each.score for each in document] == sorted((e.score for e in document), reverse=True)
    assert {(e.level, e.x) for e in document if e.shared_out} == {("region", 0), ("tile", 128)}
    for downsample in (8, 40):
        field = heat(document, (512 // downsample + 1,) * 2, downsample)
        assert field.sum() * downsample**2 == pytest.approx(1, rel=1e-6)
    exact = heat(document, (32, 32), 16)
    np.testing.assert_allclose(exact[4:8, 8:12] * 256, shares * tiles[1].score)
    assert exact[0, 5] == 0
