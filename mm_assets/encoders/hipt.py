"""HIPT as encoders: tiles to 384 dimensions, and grids of tile tokens to 192 a region.

These are the published sizes; those that a cohort trains itself can be smaller.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mm_assets.encoders.catalogue import HALF, HIPT, HIPT_REGIONS
from mm_assets.encoders.weights import blank_network, load_weights

if TYPE_CHECKING:
    import torch

    from mm_assets.encoders.base import Encoder

WHITE = 255
CPU_REGIONS, CUDA_REGIONS = 1, 64


def build_hipt(
    state: "dict[str, torch.Tensor]",
) -> "tuple[torch.nn.Module, dict[str, Any]]":
    """ViT-256 in evaluation mode, and what it expects of its input.

    Returns
    -------
    As of `mm_assets.encoders.timm_model.build_timm`; tiles are taken as large as they are.
    """
    network = _filled(HIPT, state)
    expects = {"dimension": state["cls_token"].shape[-1], "mean": HALF, "std": HALF}
    return network, {**expects, "input_px": None}


@dataclass(frozen=True)
class RegionEncoder:
    """ViT-4K, frozen, in float32: it is a hundredth of the work of its tiles.

    Attributes
    ----------
    weights_id, weights_sha256, device
        As of `mm_assets.encoders.base.Encoder`.
    network
        Maps float (R, tile_dimension, rows, columns) to (R, dimension).
    """

    weights_id: str
    weights_sha256: str
    network: "torch.nn.Module"
    device: "torch.device"

    @property
    def dimension(self) -> int:
        """Length of an embedding."""
        return int(self.network.get_parameter("cls_token").shape[-1])

    @property
    def tile_dimension(self) -> int:
        """Length of a tile's token."""
        return int(self.network.get_parameter("phi.0.weight").shape[-1])

    def encode(self, grids: NDArray[np.float16]) -> NDArray[np.float16]:
        """Embed regions; an embedding does not depend on the regions it is computed beside.

        Parameters
        ----------
        grids
            Tile tokens, shape (R, rows, columns, 384).

        Returns
        -------
        float16 (R, 192).

        Raises
        ------
        ValueError
            When an embedding is not a number or too large for float16.
        """
        size = CUDA_REGIONS if self.device.type == "cuda" else CPU_REGIONS
        parts = [self._pass(grids[at : at + size], size) for at in range(0, len(grids), size)]
        embeddings = np.concatenate([np.empty((0, self.dimension), np.float16), *parts])
        if not np.isfinite(embeddings).all():
            raise ValueError(f"{HIPT_REGIONS} ({self.weights_id}) gave values that are not finite")
        return embeddings

    def attention(self, grid: NDArray[np.float16]) -> NDArray[np.float32]:
        """What the region's class token draws from each of its tiles.

        Parameters
        ----------
        grid
            Tile tokens of one region, shape (rows, columns, 384).

        Returns
        -------
        float32 (rows, columns), sums to 1.
        """
        import torch

        network: Any = self.network
        with torch.inference_mode():
            tokens = torch.from_numpy(grid.astype(np.float32)[None]).to(self.device)
            made = network.attention(tokens.permute(0, 3, 1, 2))[0].cpu().numpy()
        return np.asarray(made, np.float32)

    def _pass(self, grids: NDArray[np.float16], size: int) -> NDArray[np.float16]:
        import torch

        whole = np.zeros((size, *grids.shape[1:]), np.float32)
        whole[: len(grids)] = grids
        with torch.inference_mode():
            tokens = torch.from_numpy(whole).to(self.device).permute(0, 3, 1, 2)
            made = self.network(tokens)[: len(grids)].half().cpu().numpy()
        return np.asarray(made, np.float16)


def load_region_encoder(weights: str, device: str | None = None) -> RegionEncoder:
    """ViT-4K ready to embed.

    Parameters
    ----------
    weights
        ``random:<seed>``, or the path of a state dict or of the published checkpoint.
    device
        As for `mm_assets.encoders.registry.load_encoder`.

    Raises
    ------
    WeightsError
        When the weights are missing or do not fit.
    """
    import torch

    loaded = load_weights(HIPT_REGIONS, weights)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    network = _filled(HIPT_REGIONS, loaded.state).to(place)
    return RegionEncoder(loaded.stamp, loaded.sha256, network, place)


def tile_attention(encoder: "Encoder", tile: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the class token of ViT-256 draws from each 16 px of a tile.

    Parameters
    ----------
    encoder
        ``hipt``.
    tile
        RGB, shape (H, W, 3).

    Returns
    -------
    float32 (H / 16, W / 16), sums to 1.
    """
    import torch

    network: Any = encoder.network
    with torch.inference_mode():
        made = network.attention(encoder.normalized(tile[None]))[0].float().cpu().numpy()
    return np.asarray(made, np.float32)


def white_token(encoder: "Encoder", tile_px: int) -> NDArray[np.float16]:
    """Embedding of a tile without tissue, float16 (384,)."""
    return encoder.encode(np.full((1, tile_px, tile_px, 3), WHITE, np.uint8))[0]


def token_grids(
    tokens: NDArray[np.float16], places: NDArray[np.int32], side: int, empty: NDArray[np.float16]
) -> tuple[NDArray[np.float16], NDArray[np.int32]]:
    """Tile tokens laid out in their regions, for `RegionEncoder.encode`.

    ViT-4K knows whole grids only. A tile that was not embedded, because it holds too little tissue
    or lies outside the slide, counts as white.

    Parameters
    ----------
    tokens
        Shape (n, 384).
    places
        Column and row of each tile in the grid of the slide, int32 (n, 2).
    side
        Tiles along one side of a region.
    empty
        Token of a white tile, shape (384,).

    Returns
    -------
    Grids, float16 (R, side, side, 384), and column and row of each region that holds a tile,
    int32 (R, 2), row by row.
    """
    owners = places // side
    rows, owner = np.unique(owners[:, ::-1], axis=0, return_inverse=True)
    grids = np.tile(empty.astype(np.float16), (len(rows), side, side, 1))
    inside = places % side
    grids[owner.ravel(), inside[:, 1], inside[:, 0]] = tokens
    return grids, rows[:, ::-1].astype(np.int32)


def _filled(architecture: str, state: "dict[str, torch.Tensor]") -> "torch.nn.Module":
    import torch

    with torch.device("meta"):
        network = blank_network(architecture, state)
    network.load_state_dict(state, assign=True)
    return network.requires_grad_(False).eval()
