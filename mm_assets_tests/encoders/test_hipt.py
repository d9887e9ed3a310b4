import argparse
import os
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from mm_assets.encoders.hipt import build_hipt, load_region_encoder, token_grids, white_token
from mm_assets.encoders.registry import load_encoder
from mm_assets.encoders.vit import RegionTransformer, TileTransformer, places_of
from mm_assets.encoders.weights import WeightsError, load_weights

REFERENCE = "vit_small_patch16_224"


def published(path: Path, state: dict[str, torch.Tensor]) -> Path:
    """A checkpoint in the layout of DINO's training: two networks, a head, settings."""
    wrapped = {f"module.backbone.{name}": tensor for name, tensor in state.items()}
    wrapped["module.head.last_layer.weight_v"] = torch.zeros(8, 256)
    blank = {name: torch.zeros_like(tensor) for name, tensor in wrapped.items()}
    settings = argparse.Namespace(arch="vit_small", patch_size=16, lr=5e-4, use_fp16=True)
    torch.save({"student": blank, "teacher": wrapped, "epoch": 100, "args": settings}, path)
    return path


@pytest.fixture(scope="module")
def reference() -> torch.nn.Module:
    torch.manual_seed(1)
    model = timm.create_model(REFERENCE, pretrained=False, num_classes=0).eval()
    torch.nn.init.normal_(model.pos_embed, std=0.5)
    return model


def tiles(count: int, edge: int = 256) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (count, edge, edge, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    ("network", "parameters"), [(TileTransformer, 21_665_664), (RegionTransformer, 2_781_504)]
)
def test_sizes_are_those_of_the_paper(network, parameters):
    with torch.device("meta"):
        assert sum(tensor.numel() for tensor in network().parameters()) == parameters


def test_the_published_layout_loads_unchanged_and_computes_what_timm_does(reference, tmp_path):
    path = published(tmp_path / "vit256_small_dino.pth", reference.state_dict())
    encoder = load_encoder("hipt", str(path), "cpu")
    assert (encoder.dimension, encoder.mean, encoder.std) == (384, (0.5,) * 3, (0.5,) * 3)
    pixels = (torch.from_numpy(tiles(2, 224)).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    network, _ = build_hipt(load_weights("hipt", str(path)).state)
    with torch.inference_mode():
        wanted = reference(pixels)
        torch.testing.assert_close(network(pixels), wanted, atol=2e-5, rtol=0)
        # In whatever precision this machine's encoder computes.
        error = (torch.from_numpy(encoder.encode(tiles(2, 224))).float() - wanted).abs().mean()
        assert error < 0.02 * wanted.abs().mean()
        table = places_of(reference.pos_embed, 16, 16)
        larger = timm.create_model(REFERENCE, pretrained=False, num_classes=0, img_size=256).eval()
        larger.load_state_dict({**reference.state_dict(), "pos_embed": table})
        pixels = torch.randn(2, 3, 256, 256)
        torch.testing.assert_close(network(pixels), larger(pixels), atol=2e-5, rtol=0)


def cubic_weights(points: np.ndarray, count: int) -> np.ndarray:
    """Keys' convolution kernel with a = -.75, edges repeated; shape [points, count]."""
    a, weights = -0.75, np.zeros((len(points), count))
    for row, point in enumerate(points):
        for place in range(int(np.floor(point)) - 1, int(np.floor(point)) + 3):
            t = abs(point - place)
            near = (a + 2) * t**3 - (a + 3) * t**2 + 1
            far = a * (t**3 - 5 * t**2 + 8 * t - 4)
            weights[row, min(max(place, 0), count - 1)] += near if t <= 1 else far
    return weights


def test_positions_are_sampled_a_tenth_of_a_place_closer_than_the_grid_needs():
    table = np.random.default_rng(0).normal(size=(1, 197, 3)).astype(np.float32)
    made = places_of(torch.from_numpy(table), 16, 16).numpy()
    assert made.shape == (1, 257, 3)
    assert (made[0, 0] == table[0, 0]).all()
    weights = cubic_weights((np.arange(16) + 0.5) * 14 / 16.1 - 0.5, 14)
    wanted = np.einsum("ia,jb,abc->ijc", weights, weights, table[0, 1:].reshape(14, 14, 3))
    np.testing.assert_allclose(made[0, 1:].reshape(16, 16, 3), wanted, atol=1e-5)
    same = torch.from_numpy(table)
    assert places_of(same, 14, 14) is same


def test_tiles_do_not_depend_on_their_batch(reference, tmp_path):
    path = published(tmp_path / "vit.pth", reference.state_dict())
    encoder = load_encoder("hipt", str(path), "cpu")
    batch = tiles(3)
    assert (encoder.encode(batch)[2:] == encoder.encode(batch[2:])).all()


def region_reference(network: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """ViT-4K spelled out with torch's own layers of multi-head attention."""
    state = network.state_dict()
    width = 192
    grid = torch.nn.functional.gelu(tokens @ state["phi.0.weight"].T + state["phi.0.bias"])
    first = state["cls_token"].expand(len(grid), -1, -1)
    hidden = torch.cat([first, grid.flatten(1, 2)], 1)
    hidden = hidden + places_of(state["pos_embed"], 16, 16)
    for number in range(6):
        layer = torch.nn.TransformerEncoderLayer(
            width, 6, 4 * width, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True
        ).eval()
        names = {
            "self_attn.in_proj_weight": "attn.qkv.weight",
            "self_attn.in_proj_bias": "attn.qkv.bias",
            "self_attn.out_proj.weight": "attn.proj.weight",
            "self_attn.out_proj.bias": "attn.proj.bias",
            "linear1.weight": "mlp.fc1.weight",
            "linear1.bias": "mlp.fc1.bias",
            "linear2.weight": "mlp.fc2.weight",
            "linear2.bias": "mlp.fc2.bias",
        } | {f"norm{n}.{p}": f"norm{n}.{p}" for n in (1, 2) for p in ("weight", "bias")}
        layer.load_state_dict({a: state[f"blocks.{number}.{b}"] for a, b in names.items()})
        hidden = layer(hidden)
    scale, shift = state["norm.weight"], state["norm.bias"]
    return torch.nn.functional.layer_norm(hidden[:, 0], (width,), scale, shift, 1e-6)


def test_regions_load_from_the_published_layout_and_agree_with_torchs_layers(tmp_path):
    torch.manual_seed(5)
    network = RegionTransformer().eval()
    for tensor in network.parameters():
        torch.nn.init.normal_(tensor, std=0.1)
    path = published(tmp_path / "vit4k_xs_dino.pth", network.state_dict())
    encoder = load_region_encoder(str(path), "cpu")
    grids = np.random.default_rng(0).normal(size=(3, 16, 16, 384)).astype(np.float16)
    made = encoder.encode(grids)
    assert made.shape == (3, 192)
    assert made.dtype == np.float16
    with torch.no_grad():
        wanted = region_reference(network, torch.from_numpy(grids).float())
    np.testing.assert_allclose(made, wanted.numpy(), atol=5e-3)
    assert (encoder.encode(grids[1:2]) == made[1:2]).all()
    assert encoder.encode(grids[:0]).shape == (0, 192)


def test_tokens_lie_where_their_tiles_do_and_the_rest_is_white():
    places = np.array([[17, 0], [0, 1], [31, 15], [2, 40]], np.int32)
    tokens = np.arange(4)[:, None] + np.arange(384)[None] / 512
    empty = np.full(384, -1, np.float16)
    grids, regions = token_grids(tokens.astype(np.float16), places, 16, empty)
    assert regions.tolist() == [[0, 0], [1, 0], [0, 2]]
    assert grids[0, 1, 0, 0] == 1
    assert grids[1, 0, 1, 0] == 0
    assert grids[1, 15, 15, 0] == 2
    assert grids[2, 8, 2, 0] == 3
    assert (grids == -1).all(axis=-1).sum() == 3 * 256 - 4
    none, nowhere = token_grids(tokens[:0].astype(np.float16), places[:0], 16, empty)
    assert none.shape == (0, 16, 16, 384)
    assert nowhere.shape == (0, 2)


def test_white_is_the_embedding_of_a_white_tile():
    encoder = load_encoder("hipt", "random:0", "cpu")
    white = np.full((1, 64, 64, 3), 255, np.uint8)
    assert (white_token(encoder, 64) == encoder.encode(white)[0]).all()
    assert np.abs(encoder.encode(tiles(1, 64))[0] - white_token(encoder, 64)).max() > 0.1


class RunsCode:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize(
    "load", [lambda path: load_encoder("hipt", path, "cpu"), load_region_encoder]
)
def test_a_checkpoint_that_would_run_code_is_refused(load, tmp_path):
    path, target = tmp_path / "evil.pth", tmp_path / "made"
    torch.save({"teacher": {}, "args": RunsCode(target)}, path)
    with pytest.raises(WeightsError, match=r"evil\.pth is no plain state dict"):
        load(str(path))
    assert not target.exists()
    torch.load(path, weights_only=False)
    assert target.exists()


def test_checkpoints_of_another_network_are_refused(tmp_path):
    path = published(tmp_path / "vit4k_xs_dino.pth", RegionTransformer().state_dict())
    with pytest.raises(WeightsError, match=r"vit4k_xs_dino\.pth does not fit hipt: \d+ of \d+"):
        load_encoder("hipt", str(path), "cpu")
    with pytest.raises(WeightsError, match="no weights at"):
        load_region_encoder(str(tmp_path / "absent.pth"))
    with pytest.raises(WeightsError, match="give the path"):
        load_encoder("hipt", "imagenet", "cpu")
