"""Published encoders that can be used by name, with what they expect and under which licence.

Weights of pathology models are given out by their makers to registered users. Nothing is fetched
unasked: a cohort names the file or folder that the user has downloaded, or says `weights: hub`, and
they come with the user's own token (`mm_assets.encoders.hub`). Licences are notes as of writing;
the makers' pages decide. Sizes were counted on the networks that timm builds; normalization and
input were compared with public code for H-optimus-0 only, and never with the makers' gated pages.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mm_assets.cohort.sources import is_file, is_remote

Colour = tuple[float, float, float]
IMAGENET_MEAN: Colour = (0.485, 0.456, 0.406)
IMAGENET_STD: Colour = (0.229, 0.224, 0.225)
HALF: Colour = (0.5, 0.5, 0.5)
HIPT, HIPT_REGIONS = "hipt", "hipt_4k"
# In this order, for a folder that holds both.
HUB_HOST = "huggingface.co/"
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Published:
    """A published network.

    Attributes
    ----------
    dimension
        Length of an embedding.
    input_px
        Edge of the pictures it was trained on.
    mpp
        Micrometres per pixel of them.
    source
        Where its makers give out the weights.
    model, options
        timm's name and arguments; empty for networks that are not timm's.
    with_mean
        Whether the embedding is the class token followed by the mean of the patches' tokens.
    parameters
        Millions, as published.
    """

    dimension: int
    input_px: int
    mpp: float
    licence: str
    source: str
    parameters: float
    model: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    with_mean: bool = False
    mean: Colour = IMAGENET_MEAN
    std: Colour = IMAGENET_STD


_VIRCHOW = {
    "img_size": 224,
    "init_values": 1e-5,
    "mlp_ratio": 5.3375,
    "mlp_layer": "SwiGLUPacked",
    "act_layer": "silu",
    "global_pool": "",
}

FOUNDATION: Mapping[str, Published] = {
    "uni": Published(
        1024,
        224,
        0.5,
        "CC BY-NC-ND 4.0",
        "huggingface.co/MahmoodLab/UNI",
        303,
        "vit_large_patch16_224",
        {"img_size": 224, "init_values": 1e-5},
    ),
    "virchow": Published(
        2560,
        224,
        0.5,
        "Apache 2.0",
        "huggingface.co/paige-ai/Virchow",
        632,
        "vit_huge_patch14_224",
        _VIRCHOW,
        with_mean=True,
    ),
    "virchow2": Published(
        2560,
        224,
        0.5,
        "CC BY-NC-ND 4.0",
        "huggingface.co/paige-ai/Virchow2",
        632,
        "vit_huge_patch14_224",
        {**_VIRCHOW, "reg_tokens": 4},
        with_mean=True,
    ),
    "gigapath": Published(
        1536,
        224,
        0.5,
        "Apache 2.0; research only, not for deployed use, by its makers' statement",
        "huggingface.co/prov-gigapath/prov-gigapath",
        1135,
        "vit_giant_patch14_dinov2",
        {"img_size": 224, "patch_size": 16, "init_values": 1e-5},
    ),
    "h_optimus_0": Published(
        1536,
        224,
        0.5,
        "Apache 2.0",
        "huggingface.co/bioptimus/H-optimus-0",
        1135,
        "vit_giant_patch14_reg4_dinov2",
        {"img_size": 224, "init_values": 1e-5},
        mean=(0.707223, 0.578729, 0.703617),
        std=(0.211883, 0.230117, 0.177517),
    ),
}

_HIPT_LICENCE = "restricted: read the licence beside the checkpoints"
ENCODERS: Mapping[str, Published] = {
    "resnet50": Published(1024, 224, 0.5, "BSD 3-Clause", "torchvision", 8.5),
    "resnet50_2048": Published(2048, 224, 0.5, "BSD 3-Clause", "torchvision", 23.5),
    HIPT: Published(
        384, 256, 0.5, _HIPT_LICENCE, "github.com/mahmoodlab/HIPT", 21.7, mean=HALF, std=HALF
    ),
    HIPT_REGIONS: Published(192, 4096, 0.5, _HIPT_LICENCE, "github.com/mahmoodlab/HIPT", 2.8),
    **FOUNDATION,
}


def list_encoders(folder: Path) -> list[dict[str, Any]]:
    """Every encoder, whether its weights are here or in the hub's cache, and what to do if not.

    Parameters
    ----------
    folder
        Where weights are looked for, under the name of the encoder: a file of any extension, or a
        folder as its makers publish it.
    """
    return [
        {
            "encoder": name,
            "dimension": published.dimension,
            "input_px": published.input_px,
            "mpp": published.mpp,
            "licence": published.licence,
            **_found(folder, name, published),
        }
        for name, published in ENCODERS.items()
    ]


def _found(folder: Path, name: str, published: Published) -> dict[str, str]:
    """Where the weights are, and what to write into the YAML or what to do."""
    from mm_assets.encoders.hub import cached_weights, has_token
    from mm_assets.encoders.weights import imagenet_path

    if published.source == "torchvision":
        path = imagenet_path("resnet50")
        if path.is_file():
            return {"weights": "here", "todo": ""}
        todo = f"fetched when first used; without internet, place {path}"
        return {"weights": "missing", "todo": todo}
    stored = stored_weights(folder, name)
    if stored:
        return {"weights": "here", "todo": f"weights: {stored}"}
    licence = f"accept the licence at {published.source}"
    if name not in FOUNDATION:
        return {"weights": "missing", "todo": f"{licence}, put the weights at {folder / name}"}
    if cached_weights(published.source):
        return {"weights": "in the hub's cache", "todo": "weights: hub"}
    login = "" if has_token() else "log in with `hf auth login` or set HF_TOKEN and "
    todo = f"{licence}, {login}say `weights: hub`, or put the weights at {folder / name}"
    return {"weights": "missing", "todo": todo}


def stored_weights(folder: Path, name: str) -> Path | None:
    """Weights of an encoder in a folder of weights: a file of any extension, or a folder."""
    candidates = [folder / name, *sorted(folder.glob(f"{name}.*"))]
    return next((path for path in candidates if is_file(weights_file(str(path)))), None)


def weights_file(place: str) -> str:
    """The path or address, or of a folder the file of weights as the makers of a model publish it.

    Raises
    ------
    OSError
        When S3 does not say what is there.
    """
    remote = is_remote(place)
    if is_file(place) or not (remote or Path(place).is_dir()):
        return place
    files = [f"{place.rstrip('/')}/{name}" for name in WEIGHTS_FILES]
    return next((file for file in files if is_file(file)), place if remote else files[-1])
