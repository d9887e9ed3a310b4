"""Where the weights of an encoder come from; never a silent substitute."""

import hashlib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm_assets.cohort.cache import local_copy
from mm_assets.cohort.folders import mm_home
from mm_assets.encoders.catalogue import FOUNDATION, HIPT, HIPT_REGIONS, weights_file
from mm_assets.encoders.checkpoint import WeightsError, read_state

if TYPE_CHECKING:
    import torch

RANDOM = "random:"
TIMM = "timm:"
IMAGENET = "imagenet"
HUB = "hub"
_CACHE = "cache/weights"


@dataclass(frozen=True)
class Weights:
    """Parameters and the stamp that everything made with them carries."""

    stamp: str
    state: "dict[str, torch.Tensor]"

    @property
    def sha256(self) -> str:
        """Digest over names and values, hexadecimal."""
        hasher = hashlib.sha256()
        for name, tensor in sorted(self.state.items()):
            hasher.update(name.encode())
            hasher.update(tensor.contiguous().cpu().numpy().tobytes())
        return hasher.hexdigest()


def imagenet_path(architecture: str) -> Path:
    """Where torchvision keeps, or would keep, its ImageNet weights of an architecture."""
    import torch
    import torchvision

    url = torchvision.models.get_model_weights(architecture).DEFAULT.url
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]


def blank_network(
    architecture: str, state: "Mapping[str, torch.Tensor] | None" = None
) -> "torch.nn.Module":
    """A network of torchvision (``resnet50``), timm (``timm:vit_small_patch16_224``), HIPT or
    `mm_assets.encoders.catalogue.FOUNDATION`.

    HIPT's are ``hipt`` for tiles and ``hipt_4k`` for regions. timm's come without a classifier.

    Parameters
    ----------
    state
        Of HIPT's networks, which a cohort can train at any size; None: the published size.

    Raises
    ------
    ValueError
        When timm, or a model of that name in it, is not there, or `state` has no possible size.
    """
    if architecture in (HIPT, HIPT_REGIONS):
        from mm_assets.encoders.vit import RegionTransformer, TileTransformer

        network = TileTransformer if architecture == HIPT else RegionTransformer
        return network.like(state or {})
    if not made_by_timm(architecture):
        import torchvision

        return torchvision.models.get_model(architecture, weights=None)
    try:
        import timm
    except ModuleNotFoundError:
        raise ValueError(
            f"{architecture} needs timm: install mm-assets with the extra `foundation`"
        ) from None
    model, options = architecture.removeprefix(TIMM), {}
    if architecture in FOUNDATION:
        model, options = FOUNDATION[architecture].model, dict(FOUNDATION[architecture].options)
    if "mlp_layer" in options:
        options["mlp_layer"] = getattr(timm.layers, options["mlp_layer"])
    try:
        return timm.create_model(model, pretrained=False, num_classes=0, **options)
    except RuntimeError as error:
        raise ValueError(f"{architecture}: {error}") from None


def made_by_timm(architecture: str) -> bool:
    """Whether a network is built by timm."""
    return architecture in FOUNDATION or architecture.startswith(TIMM)


def load_weights(architecture: str, weights: str) -> Weights:
    """Weights of an architecture.

    Parameters
    ----------
    architecture
        As for `blank_network`.
    weights
        ``imagenet``, ``random:<seed>``, ``hub`` (models of the catalogue, with the user's token),
        or the path or ``s3://`` address of a state dict, of a checkpoint of DINO, or of a folder
        that holds ``model.safetensors`` or ``pytorch_model.bin``.

    Raises
    ------
    WeightsError
        When the file is missing, cannot be fetched, is no plain state dict or does not fit.
    """
    if weights.startswith(RANDOM):
        return Weights(weights, _random_state(architecture, weights.removeprefix(RANDOM)))
    if weights == IMAGENET:
        if architecture != "resnet50":
            raise WeightsError(f"{architecture}: give the path of a state dict as weights")
        return _imagenet(architecture)
    if weights == HUB:
        return _from_hub(architecture)
    with ExitStack() as stack:
        try:
            path = stack.enter_context(local_copy(weights_file(weights), mm_home() / _CACHE))
        except OSError as error:
            raise WeightsError(f"no weights at {weights}: {error}") from error
        if not path.is_file():
            raise WeightsError(f"no weights at {path}: put a state dict of {architecture} there")
        return Weights(path.name, _fitting(architecture, read_state(path), path))


def _from_hub(architecture: str) -> Weights:
    from mm_assets.encoders.hub import fetch_weights

    if architecture not in FOUNDATION:
        raise WeightsError(f"{architecture}: give the path of a state dict in place of `hub`")
    source = FOUNDATION[architecture].source
    path = fetch_weights(source)
    return Weights(f"{HUB}:{source}", _fitting(architecture, read_state(path), path))


def _random_state(architecture: str, seed: str) -> "dict[str, torch.Tensor]":
    import torch

    if not seed.isdigit():
        raise WeightsError(f"random:{seed}: write random:<seed> with a whole number")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed))
        return dict(blank_network(architecture).state_dict())


def _imagenet(architecture: str) -> Weights:
    import torchvision

    choice = torchvision.models.get_model_weights(architecture).DEFAULT
    path = imagenet_path(architecture)
    if not path.is_file():
        try:
            choice.get_state_dict(progress=False, check_hash=True)
        except (OSError, RuntimeError) as error:
            raise WeightsError(
                f"the ImageNet weights of {architecture} are not here and cannot be fetched "
                f"({error}); put torchvision's file {path.name} at {path}, or give the path of a "
                "state dict as imaging.weights"
            ) from error
    _check_digest(path)
    state = _fitting(architecture, read_state(path), path)
    return Weights(f"{IMAGENET}:{choice.name}", state)


def _check_digest(path: Path) -> None:
    """Compare with the start of the SHA-256 that torchvision's file names end in."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    expected = path.stem.rsplit("-", 1)[1]
    if not digest.startswith(expected):
        raise WeightsError(
            f"{path} is not torchvision's file: its SHA-256 begins {digest[:8]}, expected "
            f"{expected}; delete it, so that it is fetched again, or replace it"
        )


def _fitting(architecture: str, state: dict[str, Any], path: Path) -> "dict[str, torch.Tensor]":
    """The state, after a check that names and shapes are those of the architecture."""
    import torch

    with torch.device("meta"):
        try:
            expected = blank_network(architecture, state).state_dict()
        except ValueError as error:
            raise WeightsError(f"{path.name} does not fit {architecture}: {error}") from None
    wrong = [
        name
        for name, tensor in expected.items()
        if not name.startswith("fc.")
        and (name not in state or tuple(state[name].shape) != tuple(tensor.shape))
    ]
    if wrong:
        raise WeightsError(
            f"{path.name} does not fit {architecture}: {len(wrong)} of {len(expected)} tensors are "
            f"missing or of another shape, for example {wrong[0]}"
        )
    return {name: state[name] for name in expected if name in state}
