import cv2
import numpy as np
import pytest
import timm
import torch

from mm_assets.encoders.registry import load_encoder
from mm_assets.encoders.weights import WeightsError

NAME = "timm:vit_tiny_patch16_224"


def tiles(edge: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (3, edge, edge, 3)).astype(np.uint8)


def test_it_computes_timms_features(tmp_path):
    torch.manual_seed(3)
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False).eval()
    path = tmp_path / "vit.pth"
    torch.save(model.state_dict(), path)
    encoder = load_encoder(NAME, str(path), "cpu")
    assert (encoder.dimension, encoder.input_px, encoder.weights_id) == (192, 224, "vit.pth")
    assert encoder.mean == encoder.std == (0.5, 0.5, 0.5)
    pixels = torch.from_numpy(tiles(224)).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        expected = model.forward_head(model.forward_features((pixels - 0.5) / 0.5), pre_logits=True)
    found = encoder.encode(tiles(224)).astype(np.float32)
    error = np.abs(found - expected.numpy()).mean() / expected.abs().mean()
    assert error < 0.02


def test_tiles_are_resized_to_the_networks_input():
    encoder = load_encoder(NAME, "random:0", "cpu")
    large = np.stack(
        [cv2.resize(tile, (448, 448), interpolation=cv2.INTER_CUBIC) for tile in tiles(14)]
    )
    small = np.stack([cv2.resize(tile, (224, 224), interpolation=cv2.INTER_AREA) for tile in large])
    found, wanted = encoder.encode(large).astype(float), encoder.encode(small).astype(float)
    assert np.abs(found - wanted).mean() < 0.05 * wanted.std()
    assert (encoder.encode(large[1:2]) == encoder.encode(large)[1:2]).all()


def test_random_weights_leave_the_random_numbers_alone():
    before = torch.get_rng_state()
    first, second = (load_encoder(NAME, "random:5", "cpu") for _ in range(2))
    assert (torch.get_rng_state() == before).all()
    assert first.weights_sha256 == second.weights_sha256


def test_refusals():
    with pytest.raises(WeightsError, match="give the path of a state dict"):
        load_encoder(NAME, "imagenet", "cpu")
    with pytest.raises(ValueError, match="no_such_model"):
        load_encoder("timm:no_such_model", "random:0", "cpu")
    with pytest.raises(
        ValueError, match=r"no encoder is named 'nobodys'; there are .*timm:<model>"
    ):
        load_encoder("nobodys", "random:0", "cpu")
