import json
import re
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from typer.testing import CliRunner

from mm_assets.cli import app
from mm_assets.cohort.config import ENCODER_PATTERN
from mm_assets.encoders import catalogue
from mm_assets.encoders.catalogue import ENCODERS, FOUNDATION, HIPT_REGIONS, Published
from mm_assets.encoders.registry import load_encoder
from mm_assets.encoders.timm_model import build_timm
from mm_assets.encoders.vit import ClassAndMean
from mm_assets.encoders.weights import WeightsError, blank_network, load_weights
from mm_assets_tests.encoders.test_hipt import tiles

SMALL = Published(
    384,
    32,
    0.5,
    "none",
    "nowhere",
    5.7,
    "vit_tiny_patch16_224",
    {"img_size": 32, "reg_tokens": 4, "global_pool": ""},
    with_mean=True,
    mean=(0.1, 0.2, 0.3),
)


@pytest.mark.parametrize("name", FOUNDATION)
def test_networks_have_the_published_sizes(name):
    published = FOUNDATION[name]
    with torch.device("meta"):
        network = blank_network(name)
    millions = sum(tensor.numel() for tensor in network.parameters()) / 1e6
    assert millions == pytest.approx(published.parameters, rel=0.005)
    width = published.dimension / (2 if published.with_mean else 1)
    assert network.num_features == width
    assert not published.with_mean or network.global_pool == ""
    assert network.patch_embed.img_size == (published.input_px, published.input_px)


def test_every_tile_encoder_can_be_named_in_a_cohort():
    names = set(ENCODERS) - {HIPT_REGIONS}
    assert all(re.match(ENCODER_PATTERN, name) for name in names)
    assert not re.match(ENCODER_PATTERN, HIPT_REGIONS)


def test_a_folder_as_its_makers_publish_it(tmp_path, monkeypatch):
    networks = {**FOUNDATION, "small": SMALL}
    for module in ("weights", "registry", "timm_model"):
        monkeypatch.setattr(f"mm_assets.encoders.{module}.FOUNDATION", networks)
    torch.manual_seed(0)
    model = timm.create_model(SMALL.model, num_classes=0, **SMALL.options).eval()
    folder = tmp_path / "small"
    folder.mkdir()
    with pytest.raises(WeightsError, match="no weights at"):
        load_encoder("small", str(folder), "cpu")
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    first = load_encoder("small", str(folder), "cpu")
    safetensors.torch.save_file(model.state_dict(), folder / "model.safetensors")
    second = load_encoder("small", str(folder), "cpu")
    assert first.weights_sha256 == second.weights_sha256
    assert (second.weights_id, second.mean) == ("model.safetensors", (0.1, 0.2, 0.3))
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = model.forward_features(pixels)
        wanted = torch.cat([tokens[:, 0], tokens[:, 5:].mean(1)], 1)
        assert isinstance(second.network, ClassAndMean)
        exact, _ = build_timm("small", load_weights("small", str(folder)).state)
        torch.testing.assert_close(exact(pixels), wanted, atol=1e-5, rtol=0)
    assert second.encode(tiles(3, 64)).shape == (3, SMALL.dimension)
    (folder / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(WeightsError, match="is no safetensors file"):
        load_encoder("small", str(folder), "cpu")


def test_mm_encoders_says_what_is_here_and_what_to_do(home: Path):
    folder = home / "weights"
    (folder / "uni").mkdir(parents=True)
    (folder / "virchow").mkdir()
    (folder / "uni" / "pytorch_model.bin").touch()
    (folder / "hipt.pth").touch()
    found = {row["encoder"]: row for row in json.loads(_run("encoders", "--json"))}
    assert list(found) == list(catalogue.ENCODERS)
    here = {name for name, row in found.items() if row["weights"] == "here"}
    assert here - {"resnet50", "resnet50_2048"} == {"uni", "hipt"}
    assert found["uni"]["todo"] == f"weights: {folder / 'uni'}"
    todo = found["virchow"]["todo"]
    assert todo.startswith("accept the licence at huggingface.co/paige-ai/Virchow")
    assert todo.endswith(str(folder / "virchow"))
    hipt = found["hipt"]
    assert (hipt["dimension"], hipt["input_px"], hipt["mpp"]) == (384, 256, 0.5)
    assert "CC BY-NC-ND" in _run("encoders")


def _run(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "240"})
    assert done.exit_code == 0, done.output
    return done.output
