"""Any encoder of timm: transformers and convolutional networks, pathology models among them."""

from typing import TYPE_CHECKING, Any

from mm_assets.encoders.catalogue import FOUNDATION
from mm_assets.encoders.weights import blank_network

if TYPE_CHECKING:
    import torch


def build_timm(
    name: str, state: "dict[str, torch.Tensor]"
) -> "tuple[torch.nn.Module, dict[str, Any]]":
    """Network of ``timm:<model>`` or a model of the catalogue, and what it expects of its input.

    Parameters
    ----------
    state
        Its state dict without a classifier.

    Returns
    -------
    The network in evaluation mode, (B, 3, H, W) to (B, dimension), and `dimension`, `mean`, `std`
    (of pixel values from 0 to 1) and `input_px` (edge of its input, pixels).
    """
    import timm
    import torch

    from mm_assets.encoders.vit import ClassAndMean

    # Not on the meta device: some models make buffers that no state dict holds.
    with torch.random.fork_rng(devices=[]):
        network: Any = blank_network(name)
    network.load_state_dict(state)
    network.eval()
    if name in FOUNDATION:
        published = FOUNDATION[name]
        joined = ClassAndMean(network, network.num_prefix_tokens)
        return joined if published.with_mean else network, {
            "dimension": published.dimension,
            "mean": published.mean,
            "std": published.std,
            "input_px": published.input_px,
        }
    expects = timm.data.resolve_model_data_config(network)
    return network, {
        "dimension": network.num_features,
        "mean": tuple(expects["mean"]),
        "std": tuple(expects["std"]),
        "input_px": expects["input_size"][1],
    }
