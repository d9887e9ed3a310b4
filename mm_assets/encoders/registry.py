"""Encoders by name."""

from typing import TYPE_CHECKING

from mm_assets.encoders.base import Encoder
from mm_assets.encoders.resnet50 import DIMENSIONS, MEAN, STD, build_resnet50
from mm_assets.encoders.weights import load_weights

if TYPE_CHECKING:
    import torch


def load_encoder(name: str, weights: str, device: str | None = None) -> Encoder:
    """An encoder ready to embed.

    Parameters
    ----------
    name
        ``resnet50`` (1024-d) or ``resnet50_2048``.
    weights
        ``imagenet``, ``random:<seed>``, or the path of a state dict.
    device
        torch's name of the device; by default the first GPU, else the CPU.

    Raises
    ------
    ValueError
        When there is no encoder of that name.
    WeightsError
        When the weights are missing or do not fit.
    """
    import torch

    if name not in DIMENSIONS:
        raise ValueError(f"no encoder is named {name!r}; there are {', '.join(DIMENSIONS)}")
    loaded = load_weights("resnet50", weights)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = _fastest_dtype(place)
    network = build_resnet50(name, loaded.state).to(place, dtype)
    network = network.to(memory_format=torch.channels_last)
    return Encoder(
        name, loaded.stamp, loaded.sha256, DIMENSIONS[name], MEAN, STD, network, place, dtype
    )


def _fastest_dtype(device: "torch.device") -> "torch.dtype":
    """bfloat16 where the hardware multiplies it natively; emulated it is slower than float32."""
    import torch

    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32
