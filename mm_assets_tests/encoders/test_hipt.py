"""HIPT's transformers against the paper's sizes, another implementation, and published layouts."""

import argparse
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from mm_assets.encoders.hipt import blank_token, load_region_encoder, place_tiles
from mm_assets.encoders.registry import load_encoder
from mm_assets.encoders.vit import (
    GRID,
    RegionTransformer,
    TileTransformer,
    interpolated_positions,
)
from mm_assets.encoders.weights import WeightsError, load_weights

BLOCK = [
    f"{part}.{kind}"
    for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    for kind in ("weight", "bias")
]


def drawn(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    network.draw()
    return network.eval()


@pytest.mark.parametrize(
    ("network", "parameters", "depth", "width", "entrance"),
    [
        (TileTransformer(), 21_665_664, 12, 384, "patch_embed.proj"),
        (RegionTransformer(), 2_781_504, 6, 192, "phi.0"),
    ],
)
def test_names_and_sizes_are_those_of_the_paper(network, parameters, depth, width, entrance):
    state = network.state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == parameters
    names = {"cls_token", "pos_embed", "norm.weight", "norm.bias"}
    names |= {f"{entrance}.weight", f"{entrance}.bias"}
    names |= {f"blocks.{number}.{name}" for number in range(depth) for name in BLOCK}
    assert set(state) == names
    assert state["pos_embed"].shape == (1, 197, width)
    assert state["blocks.0.attn.qkv.weight"].shape == (3 * width, width)
    assert state["blocks.0.mlp.fc1.weight"].shape == (4 * width, width)


def test_another_implementation_computes_the_same():
    timm = pytest.importorskip("timm")
    ours = drawn(TileTransformer())
    theirs = timm.create_model("vit_small_patch16_224", num_classes=0).eval()
    theirs.load_state_dict(ours.state_dict())
    pixels = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        assert torch.allclose(ours(pixels), theirs(pixels), atol=1e-5)


@given(st.integers(1, 40), st.integers(1, 40))
@settings(deadline=None)
def test_positions_of_other_grids(height: int, width: int) -> None:
    positions = torch.randn(1, GRID * GRID + 1, 3, generator=torch.Generator().manual_seed(1))
    found = interpolated_positions(positions, height, width)
    assert found.shape == (1, 1 + height * width, 3)
    assert torch.equal(found[:, 0], positions[:, 0])
    if (height, width) == (GRID, GRID):
        assert torch.equal(found, positions)
        return
    grid = positions[:, 1:].view(GRID, GRID, 3).permute(2, 0, 1)[None]
    scales = ((height + 0.1) / GRID, (width + 0.1) / GRID)
    wanted = functional.interpolate(grid, scale_factor=scales, mode="bicubic")
    assert torch.equal(found[0, 1:].T.reshape(1, 3, height, width), wanted)


def test_attention_of_the_class_token_is_what_the_blocks_use():
    network = drawn(RegionTransformer())
    grid = network.patches(torch.randn(2, 384, 5, 7))
    with torch.inference_mode():
        weights = network.class_attention(grid)
        assert weights.shape == (2, 6, 5, 7)
        assert (weights.sum(dim=(2, 3)) < 1).all()
        last = network.blocks[-1]
        x = network.tokens(grid)
        for block in network.blocks[:-1]:
            x = block(x)
        normed = last.norm1(x)
        value = last.attn.qkv(normed)[..., 2 * 192 :].view(2, -1, 6, 32).transpose(1, 2)
        mixed = (last.attn.weights(normed) @ value).transpose(1, 2).reshape(2, -1, 192)
        assert torch.allclose(last.attn.proj(mixed), last.attn(normed), atol=1e-5)


def published(path: Path, network: torch.nn.Module, key: str = "teacher") -> Path:
    """A file as DINO's training script writes it, projection head, arguments and all."""
    state = {f"module.backbone.{name}": value for name, value in network.state_dict().items()}
    state["module.head.mlp.0.weight"] = torch.zeros(8, 4)
    student = {name: value + 1 for name, value in state.items()}
    arguments = argparse.Namespace(arch="vit_small", patch_size=16)
    torch.save({"student": student, key: state, "epoch": 99, "args": arguments}, path)
    return path


def test_published_checkpoints_load_as_they_are(tmp_path):
    tile, region = drawn(TileTransformer(), 1), drawn(RegionTransformer(), 2)
    path = published(tmp_path / "vit256_small_dino.pth", tile)
    loaded = load_weights("hipt", str(path))
    assert loaded.stamp == "vit256_small_dino.pth"
    assert all(torch.equal(loaded.state[n], value) for n, value in tile.state_dict().items())
    bare = tmp_path / "bare.pth"
    torch.save(tile.state_dict(), bare)
    assert load_weights("hipt", str(bare)).sha256 == loaded.sha256
    pixels = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3)).astype(np.uint8)
    found = load_encoder("hipt", str(path), "cpu").encode(pixels).astype(np.float32)
    with torch.inference_mode():
        inputs = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 * 2 - 1
        wanted = tile(inputs).numpy()
    assert np.abs(found - wanted).mean() < 0.02 * np.abs(wanted).mean()
    path = published(tmp_path / "vit4k_xs_dino.pth", region)
    grids = np.random.default_rng(0).normal(size=(3, 16, 16, 384)).astype(np.float16)
    encoder = load_region_encoder(str(path), "cpu")
    with torch.inference_mode():
        wanted = region(torch.from_numpy(grids).float().movedim(-1, 1)).numpy()
    assert np.abs(encoder.encode(grids) - wanted).max() < 0.01


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("inside", ["args", "teacher", "whole"])
def test_a_checkpoint_that_runs_code_is_refused(tmp_path, inside):
    trap, path = tmp_path / "trap", tmp_path / "weights.pth"
    state = {"teacher": TileTransformer().state_dict()}
    content = Malicious(trap) if inside == "whole" else state | {inside: Malicious(trap)}
    torch.save(content, path)
    with pytest.raises(WeightsError, match=r"weights\.pth is no plain state dict"):
        load_weights("hipt", str(path))
    path.write_bytes(pickle.dumps(Malicious(trap)))
    with pytest.raises(WeightsError, match=r"weights\.pth is no plain state dict"):
        load_weights("hipt", str(path))
    assert not trap.exists()


def test_weights_of_another_network_are_named(tmp_path):
    path = published(tmp_path / "tile.pth", drawn(TileTransformer()))
    with pytest.raises(WeightsError, match="does not fit hipt_region"):
        load_region_encoder(str(path))
    with pytest.raises(WeightsError, match="give the path of a state dict"):
        load_encoder("hipt", "imagenet")


def test_random_weights_come_from_their_seed():
    first, same, other = (load_region_encoder(f"random:{seed}", "cpu") for seed in (3, 3, 4))
    assert first.weights_sha256 == same.weights_sha256 != other.weights_sha256


def test_a_region_is_embedded_alike_whatever_it_comes_with():
    grids = np.random.default_rng(0).normal(size=(20, 4, 4, 384)).astype(np.float16)
    encoder = load_region_encoder("random:0", "cpu")
    together = encoder.encode(grids)
    assert together.shape == (20, 192)
    assert all((encoder.encode(grids[i : i + 1])[0] == together[i]).all() for i in (0, 7, 19))
    assert encoder.encode(grids[:0]).shape == (0, 192)
    with pytest.raises(ValueError, match="not finite"):
        encoder.encode(np.full_like(grids[:1], np.nan))


@given(st.sets(st.tuples(st.integers(0, 70), st.integers(0, 70)), min_size=1, max_size=60))
def test_every_tile_stands_in_its_place(places: set[tuple[int, int]]) -> None:
    grid = np.array(sorted(places, key=lambda at: (at[1], at[0])), np.int32)
    embeddings = (np.arange(len(grid))[:, None] + np.zeros(3)).astype(np.float16)
    blank = np.full(3, -1, np.float16)
    regions, grids = place_tiles(embeddings, grid, 16, blank)
    assert [tuple(r) for r in regions[:, ::-1]] == sorted({(y // 16, x // 16) for x, y in places})
    where = {tuple(region): number for number, region in enumerate(regions.tolist())}
    for number, (x, y) in enumerate(grid.tolist()):
        assert (grids[where[x // 16, y // 16], y % 16, x % 16] == number).all()
    assert (grids[..., 0] >= 0).sum() == len(places)


def test_the_blank_token_is_that_of_a_white_tile():
    encoder = load_encoder("hipt", "random:0", "cpu")
    white = np.full((1, 256, 256, 3), 255, np.uint8)
    assert (blank_token(encoder) == encoder.encode(white)[0]).all()
