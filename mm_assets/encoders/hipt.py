"""HIPT's encoders (Chen et al., CVPR 2022): tiles of 256 px, and regions from their tiles.

A region's transformer sees every tile of the region in its place. Tiles that were not kept are
given the embedding of a white tile: it saw background in pre-training too, but never a hole.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mm_assets.encoders.weights import HIPT_REGION, load_weights

if TYPE_CHECKING:
    import torch

    from mm_assets.encoders.base import Encoder

TILE_PX, DIMENSION, REGION_DIMENSION = 256, 384, 192
WHITE = 255
# Regions a forward pass; 256 tokens each.
_PASS = 16


def build_hipt(state: "dict[str, torch.Tensor]") -> "tuple[torch.nn.Module, dict[str, Any]]":
    """Network of the tiles in evaluation mode, and what it expects of its input.

    Parameters
    ----------
    state
        State dict of `mm_assets.encoders.vit.TileTransformer`.
    """
    import torch

    from mm_assets.encoders.vit import TileTransformer

    with torch.device("meta"):
        network = TileTransformer()
    network.load_state_dict(state, assign=True)
    half = (0.5, 0.5, 0.5)
    expects = {"dimension": DIMENSION, "mean": half, "std": half, "input_px": TILE_PX}
    return network.eval(), expects


@dataclass(frozen=True)
class RegionEncoder:
    """A frozen network that embeds regions; made by `load_region_encoder`."""

    weights_id: str
    weights_sha256: str
    network: "torch.nn.Module"
    device: "torch.device"

    def encode(self, grids: NDArray[np.float16]) -> NDArray[np.float16]:
        """Embed regions, each by itself whatever it comes with.

        Parameters
        ----------
        grids
            float16 (R, h, w, 384), a tile's embedding in its place.

        Returns
        -------
        float16 (R, 192).

        Raises
        ------
        ValueError
            When an embedding is not a number.
        """
        import torch

        parts = [np.empty((0, REGION_DIMENSION), np.float16)]
        with torch.inference_mode():
            for start in range(0, len(grids), _PASS):
                part = torch.from_numpy(grids[start : start + _PASS]).float().to(self.device)
                parts.append(self._forward(part.movedim(-1, 1)))
        embeddings = np.concatenate(parts)
        if not np.isfinite(embeddings).all():
            raise ValueError(f"hipt ({self.weights_id}) gave values that are not finite")
        return embeddings

    def _forward(self, tiles: "torch.Tensor") -> NDArray[np.float16]:
        import torch
        from torch.nn import functional

        # Passes of one size: another may sum in another order.
        filled = functional.pad(tiles, (0, 0, 0, 0, 0, 0, 0, _PASS - len(tiles)))
        found: torch.Tensor = self.network(filled)[: len(tiles)]
        return np.asarray(found.half().cpu().numpy())


def load_region_encoder(weights: str, device: str | None = None) -> RegionEncoder:
    """The encoder of regions, ready to embed.

    Parameters
    ----------
    weights
        ``random:<seed>``, or the path of a state dict or of a DINO checkpoint.

    Raises
    ------
    WeightsError
        When the weights are missing or do not fit.
    """
    import torch

    from mm_assets.encoders.vit import RegionTransformer

    loaded = load_weights(HIPT_REGION, weights)
    with torch.device("meta"):
        network = RegionTransformer()
    network.load_state_dict(loaded.state, assign=True)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return RegionEncoder(loaded.stamp, loaded.sha256, network.eval().to(place), place)


def blank_token(encoder: "Encoder") -> NDArray[np.float16]:
    """The embedding of a white tile, float16 (384,)."""
    return encoder.encode(np.full((1, TILE_PX, TILE_PX, 3), WHITE, np.uint8))[0]


def place_tiles(
    embeddings: NDArray[np.float16],
    places: NDArray[np.int32],
    side: int,
    blank: NDArray[np.float16],
) -> tuple[NDArray[np.int32], NDArray[np.float16]]:
    """Tiles put in their places in the regions that hold any of them.

    Parameters
    ----------
    embeddings
        float16 (N, 384).
    places
        Column and row of each tile in the slide's grid, int32 (N, 2).
    side
        Tiles along a region.
    blank
        What stands where there is no tile, from `blank_token`.

    Returns
    -------
    regions
        Column and row of each region, row by row, int32 (R, 2).
    grids
        float16 (R, side, side, 384).
    """
    regions, index = np.unique(places[:, ::-1] // side, axis=0, return_inverse=True)
    grids = np.tile(blank, (len(regions), side, side, 1))
    grids[index.ravel(), places[:, 1] % side, places[:, 0] % side] = embeddings
    return regions[:, ::-1].astype(np.int32), grids
