"""Any encoder of timm: transformers and convolutional networks, pathology models among them."""

from typing import TYPE_CHECKING, Any

from mm_assets.encoders.weights import blank_network

if TYPE_CHECKING:
    import torch


def build_timm(
    name: str, state: "dict[str, torch.Tensor]"
) -> "tuple[torch.nn.Module, dict[str, Any]]":
    """Network of ``timm:<model>`` in evaluation mode, and what it expects of its input.

    Parameters
    ----------
    state
        Its state dict without a classifier.

    Returns
    -------
    The network, (B, 3, H, W) to (B, dimension), and `dimension`, `mean`, `std` (of pixel values
    from 0 to 1) and `input_px` (edge of its input, pixels).
    """
    import timm
    import torch

    # Not on the meta device: some models make buffers that no state dict holds.
    with torch.random.fork_rng(devices=[]):
        network: Any = blank_network(name)
    network.load_state_dict(state)
    expects = timm.data.resolve_model_data_config(network)
    return network.eval(), {
        "dimension": network.num_features,
        "mean": tuple(expects["mean"]),
        "std": tuple(expects["std"]),
        "input_px": expects["input_size"][1],
    }
