"""Encoders by name."""

from typing import TYPE_CHECKING, Any

from mm_assets.encoders.base import CPU_PASS, CUDA_PASS, Encoder
from mm_assets.encoders.catalogue import FOUNDATION, HIPT
from mm_assets.encoders.hipt import build_hipt
from mm_assets.encoders.resnet50 import DIMENSIONS, MEAN, STD, build_resnet50
from mm_assets.encoders.timm_model import build_timm
from mm_assets.encoders.weights import load_weights, made_by_timm

if TYPE_CHECKING:
    import torch


def load_encoder(name: str, weights: str, device: str | None = None) -> Encoder:
    """An encoder ready to embed.

    Parameters
    ----------
    name
        ``resnet50`` (1024-d), ``resnet50_2048``, ``hipt`` (ViT-256 of HIPT, 384-d), one of
        `mm_assets.encoders.catalogue.FOUNDATION`, or ``timm:<model>``.
    weights
        ``imagenet`` (resnet50 only), ``random:<seed>``, or the path of a state dict.
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

    if name not in (*DIMENSIONS, HIPT) and not made_by_timm(name):
        known = ", ".join((*DIMENSIONS, HIPT, *FOUNDATION))
        raise ValueError(f"no encoder is named {name!r}; there are {known} and timm:<model>")
    loaded = load_weights("resnet50" if name in DIMENSIONS else name, weights)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = _fastest_dtype(place)
    network, expects = _build(name, loaded.state)
    network = network.to(place, dtype).to(memory_format=torch.channels_last)
    return Encoder(
        name=name,
        weights_id=loaded.stamp,
        weights_sha256=loaded.sha256,
        network=network,
        device=place,
        dtype=dtype,
        pass_tiles=CUDA_PASS if place.type == "cuda" else CPU_PASS,
        **expects,
    )


def _build(name: str, state: "dict[str, torch.Tensor]") -> "tuple[torch.nn.Module, dict[str, Any]]":
    if made_by_timm(name):
        return build_timm(name, state)
    if name == HIPT:
        return build_hipt(state)
    expects = {"dimension": DIMENSIONS[name], "mean": MEAN, "std": STD, "input_px": None}
    return build_resnet50(name, state), expects


def _fastest_dtype(device: "torch.device") -> "torch.dtype":
    """bfloat16 where the hardware multiplies it natively; emulated it is slower than float32."""
    import torch

    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32
