"""State dicts out of checkpoint files, which are never allowed to run code."""

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Where DINO's training scripts keep the better of two networks, and what wraps its names.
TEACHER = "teacher"
WRAPPERS = ("module.", "backbone.")


class WeightsError(RuntimeError):
    """Weights are missing or do not fit; the message says which file belongs where."""


def read_state(path: Path) -> dict[str, Any]:
    """Tensors by name, from a plain state dict or from a checkpoint of DINO.

    A checkpoint of DINO holds its teacher's tensors, whose names begin with ``module.`` and
    ``backbone.``, beside the settings of the training, an `argparse.Namespace`.

    Raises
    ------
    WeightsError
        When the file is no such thing, or would run code on being opened.
    """
    import torch

    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError) as error:
        raise WeightsError(f"{path.name} is no plain state dict: {error}") from error
    if isinstance(state, Mapping) and isinstance(state.get(TEACHER), Mapping):
        state = state[TEACHER]
    if not isinstance(state, Mapping):
        raise WeightsError(f"{path.name} holds a {type(state).__name__}, not a state dict")
    return {_bare(str(name)): tensor for name, tensor in state.items()}


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise WeightsError(f"{path.name} is no safetensors file: {error}") from error


def _bare(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.removeprefix(wrapper)
    return name
