from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torchvision.models import resnet50

from mm_assets.encoders.base import Encoder
from mm_assets.encoders.registry import load_encoder
from mm_assets.encoders.resnet50 import build_resnet50
from mm_assets.encoders.weights import WeightsError, imagenet_path, load_weights


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder("resnet50", "random:0", "cpu")


@pytest.fixture(scope="module")
def tiles() -> np.ndarray:
    """19 tiles of 128 px: coloured noise of growing grain."""
    random = np.random.default_rng(0)
    return np.stack(
        [
            cv2.resize(random.integers(0, 255, (edge, edge, 3)).astype(np.uint8), (128, 128))
            for edge in range(4, 61, 3)[:19]
        ]
    )


def as_float32(encoder: Encoder) -> Encoder:
    """The same weights without bfloat16, as on processors that lack it."""
    state = load_weights("resnet50", encoder.weights_id).state
    network = build_resnet50(encoder.name, state).to(memory_format=torch.channels_last)
    return replace(encoder, network=network, dtype=torch.float32)


def test_row_depends_on_its_tile_alone(encoder, tiles):
    together = encoder.encode(tiles)
    assert together.shape == (19, 1024)
    assert together.dtype == np.float16
    alone = np.concatenate([encoder.encode(tile[None]) for tile in tiles[:3]])
    assert (alone == together[:3]).all()
    assert (encoder.encode(tiles[::-1])[::-1] == together).all()
    assert (encoder.encode(tiles[3:14]) == together[3:14]).all()


def test_float32_too_depends_on_the_tile_alone(encoder, tiles):
    plain = as_float32(encoder)
    together = plain.encode(tiles[:11])
    assert (plain.encode(tiles[2:3]) == together[2:3]).all()
    assert (plain.encode(tiles[10::-1])[::-1] == together).all()


def test_threads_change_nothing(encoder, tiles):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = encoder.encode(tiles[:8])
        torch.set_num_threads(2)
        assert (encoder.encode(tiles[:8]) == one).all()
    finally:
        torch.set_num_threads(threads)


def test_it_computes_torchvisions_features(tiles):
    state = load_encoder("resnet50", "random:3", "cpu")
    model = resnet50(weights=None)
    model.load_state_dict(load_weights("resnet50", "random:3").state)
    model.eval()
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    planes = (torch.from_numpy(tiles[:8]).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.inference_mode():
        features = model.maxpool(model.relu(model.bn1(model.conv1(planes))))
        third = model.layer3(model.layer2(model.layer1(features)))
        expected = third.mean((2, 3)).numpy()
        expected_2048 = model.layer4(third).mean((2, 3)).numpy()
    for encoder, wanted in (
        (state, expected),
        (load_encoder("resnet50_2048", "random:3", "cpu"), expected_2048),
    ):
        assert encoder.dimension == wanted.shape[1]
        error = np.abs(encoder.encode(tiles[:8]) - wanted).mean() / np.abs(wanted).mean()
        assert error < 0.02
        error = np.abs(as_float32(encoder).encode(tiles[:8]) - wanted).max() / wanted.max()
        assert error < 1e-3


def test_random_embeddings_tell_tiles_apart(encoder, shared_data):
    pictures = [
        cv2.imread(str(shared_data / "tiles" / name))[:512, :512, ::-1]
        for name in (
            "high-nuclei-score-level0.png",
            "medium-nuclei-score-level0.png",
            "low-nuclei-score-level0.png",
            "no-tissue.png",
        )
    ]
    tiles = np.stack(
        [p[y : y + 256, x : x + 256] for p in pictures for y in (0, 256) for x in (0, 256)]
    )
    embeddings = encoder.encode(tiles).astype(np.float32)
    assert np.abs(embeddings).max() < 100
    spread = embeddings.std(0) / np.abs(embeddings).mean(0).clip(1e-6)
    assert (spread > 0.01).mean() > 0.9
    kinds = embeddings.reshape(4, 4, -1)
    within = np.linalg.norm(kinds - kinds.mean(1, keepdims=True), axis=2).mean()
    between = np.linalg.norm(kinds.mean(1)[:, None] - kinds.mean(1)[None], axis=2)
    assert between[np.triu_indices(4, 1)].min() > within / 2


def test_random_weights_are_a_function_of_the_seed(encoder, tiles):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    same = load_encoder("resnet50", "random:0", "cpu")
    assert (torch.get_rng_state() == before).all()
    assert same.weights_id == "random:0"
    assert same.weights_sha256 == encoder.weights_sha256
    assert (same.encode(tiles[:2]) == encoder.encode(tiles[:2])).all()
    other = load_encoder("resnet50", "random:1", "cpu")
    assert other.weights_sha256 != encoder.weights_sha256
    assert (other.encode(tiles[:2]) != encoder.encode(tiles[:2])).mean() > 0.9


def test_a_state_dict_file(tmp_path, tiles):
    torch.manual_seed(1)
    path = tmp_path / "mine.pth"
    torch.save(resnet50(weights=None).state_dict(), path)
    encoder = load_encoder("resnet50", str(path), "cpu")
    assert encoder.weights_id == "mine.pth"
    twin = load_encoder("resnet50", "random:0", "cpu")
    assert encoder.weights_sha256 != twin.weights_sha256
    assert np.isfinite(encoder.encode(tiles[:1])).all()


def test_overflow_is_refused(tmp_path, tiles):
    state = resnet50(weights=None).state_dict()
    state["bn1.weight"] *= 1e6
    torch.save(state, tmp_path / "huge.pth")
    encoder = load_encoder("resnet50", str(tmp_path / "huge.pth"), "cpu")
    with pytest.raises(ValueError, match="not finite"):
        encoder.encode(tiles[:1])


def refused(weights: str) -> str:
    with pytest.raises(WeightsError) as caught:
        load_encoder("resnet50", weights, "cpu")
    return str(caught.value)


def test_unusable_weights_say_what_is_expected(tmp_path):
    assert "no weights at" in refused(str(tmp_path / "none.pth"))
    (tmp_path / "text.pth").write_text("hello")
    assert "no plain state dict" in refused(str(tmp_path / "text.pth"))
    torch.save([1, 2], tmp_path / "list.pth")
    assert "holds a list, not a state dict" in refused(str(tmp_path / "list.pth"))
    state = resnet50(weights=None).state_dict()
    torch.save({f"encoder.{key}": value for key, value in state.items()}, tmp_path / "prefix.pth")
    assert "318 of 320 tensors" in refused(str(tmp_path / "prefix.pth"))
    state["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    torch.save(state, tmp_path / "shape.pth")
    assert "1 of 320 tensors are missing or of another shape, for example conv1.weight" in refused(
        str(tmp_path / "shape.pth")
    )
    assert "random:<seed>" in refused("random:x")
    with pytest.raises(ValueError, match="no encoder is named"):
        load_encoder("vit", "random:0", "cpu")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch hub folder, and no way out to the network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for scheme in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(scheme, "http://127.0.0.1:9")
    return tmp_path


def test_missing_imagenet_weights_are_never_replaced(hub):
    message = refused("imagenet")
    assert str(hub / "hub" / "checkpoints" / "resnet50-11ad3fa6.pth") in message
    assert "or give the path of a state dict" in message


def test_wrong_imagenet_file_is_refused(hub):
    path = imagenet_path("resnet50")
    path.parent.mkdir(parents=True)
    torch.save(resnet50(weights=None).state_dict(), path)
    assert "expected 11ad3fa6" in refused("imagenet")


def test_no_tiles_give_no_embeddings(encoder):
    assert encoder.encode(np.zeros((0, 64, 64, 3), np.uint8)).shape == (0, 1024)
