"""The two vision transformers of HIPT (Chen et al., CVPR 2022).

ViT-256 is a ViT-S/16 (Dosovitskiy et al., ICLR 2021; Touvron et al., ICML 2021) on a tile of 256
pixels, ViT-4K a smaller one on the grid of 16 x 16 tile tokens of a region of 4096 pixels.
Parameters are named as in DINO's transformers (Caron et al., ICCV 2021), so that published state
dicts load unchanged.
"""

from collections.abc import Mapping
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

PATCH = 16
HEADS = 6
# Both levels were trained with the table of a 224 px picture, 14 x 14 places.
PLACES = 14
TILE_WIDTH, TILE_DEPTH = 384, 12
REGION_WIDTH, REGION_DEPTH = 192, 6
EPSILON = 1e-6


class Attention(nn.Module):
    """Self-attention of `HEADS` heads, fused."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Shape [B, N, width] to the same."""
        pictures, count, width = tokens.shape
        query, key, value = self._heads(tokens)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(pictures, count, width))

    def first_to_others(self, tokens: Tensor) -> Tensor:
        """What the first token draws from each other one, mean of the heads; [B, N - 1], sums 1."""
        query, key, _ = self._heads(tokens)
        logits = query[:, :, :1] @ key[:, :, 1:].transpose(2, 3) / query.shape[-1] ** 0.5
        return logits[:, :, 0].float().softmax(-1).mean(1)

    def _heads(self, tokens: Tensor) -> Tensor:
        """Queries, keys and values, shape [3, B, HEADS, N, width / HEADS]."""
        pictures, count, width = tokens.shape
        heads = self.qkv(tokens).view(pictures, count, 3, HEADS, width // HEADS)
        return heads.permute(2, 0, 3, 1, 4)


class Mlp(nn.Module):
    """Two layers, the inner one four times as wide."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Shape [B, N, width] to the same."""
        return self.fc2(functional.gelu(self.fc1(tokens)))


class Block(nn.Module):
    """Attention and a perceptron, each on normalized tokens and added to them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPSILON)
        self.attn = Attention(width)
        self.norm2 = nn.LayerNorm(width, eps=EPSILON)
        self.mlp = Mlp(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Shape [B, N, width] to the same."""
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class Transformer(nn.Module):
    """Blocks over a grid of tokens with a class token in front, whose last state is the output."""

    @classmethod
    def like(cls, state: Mapping[str, Tensor]) -> Self:
        """A network of the sizes that a state dict has; of the published ones where it lacks them.

        Raises
        ------
        ValueError
            When the width is no multiple of `HEADS`.
        """
        raise NotImplementedError

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + PLACES**2, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=EPSILON)

    def _initialize(self) -> None:
        """Truncated normal weights of .02 and no biases, as in the papers.

        Those of networks narrower than the published are larger, or tokens would hardly mix.
        """
        deviation = 0.02 * max(1, REGION_WIDTH / self.cls_token.shape[-1]) ** 0.5
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=deviation)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def attention(self, inputs: Tensor) -> Tensor:
        """Attention of the class token in the last block, mean of the heads.

        Shape [B, rows, columns] over the grid of tokens; sums to 1.
        """
        grid = self._grid(inputs)
        tokens = self._tokens(grid)
        for block in self.blocks[:-1]:
            tokens = block(tokens)
        last = cast(Block, self.blocks[-1])
        return last.attn.first_to_others(last.norm1(tokens)).unflatten(1, grid.shape[2:])

    def forward(self, inputs: Tensor) -> Tensor:
        """Shape [B, width]."""
        tokens = self._tokens(self._grid(inputs))
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens[:, 0])

    def _grid(self, inputs: Tensor) -> Tensor:
        """Tokens of the inputs, shape [B, width, rows, columns]."""
        raise NotImplementedError

    def _tokens(self, grid: Tensor) -> Tensor:
        """The class token and those of the grid with their places, shape [B, N, width]."""
        places = places_of(self.pos_embed, grid.shape[2], grid.shape[3]).to(grid.dtype)
        first = self.cls_token.expand(len(grid), -1, -1)
        return torch.cat([first, grid.flatten(2).transpose(1, 2)], dim=1) + places


class TileTransformer(Transformer):
    """ViT-256: pixels [B, 3, H, W], normalized by mean and deviation .5, to [B, 384].

    Edges are multiples of 16 pixels. Width and depth are the published ones unless given.
    """

    def __init__(self, width: int = TILE_WIDTH, depth: int = TILE_DEPTH) -> None:
        super().__init__(width, depth)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, PATCH, PATCH)})
        self._initialize()

    @classmethod
    def like(cls, state: Mapping[str, Tensor]) -> Self:
        return cls(_width(state, TILE_WIDTH), _depth(state, TILE_DEPTH))

    def _grid(self, inputs: Tensor) -> Tensor:
        return self.patch_embed["proj"](inputs)


class RegionTransformer(Transformer):
    """ViT-4K: tile tokens [B, 384, rows, columns], 16 x 16 of them as published, to [B, 192].

    `tile_width` is the length of a token; widths and depth are the published ones unless given.
    """

    def __init__(
        self, tile_width: int = TILE_WIDTH, width: int = REGION_WIDTH, depth: int = REGION_DEPTH
    ) -> None:
        super().__init__(width, depth)
        self.phi = nn.Sequential(nn.Linear(tile_width, width), nn.GELU())
        self._initialize()

    @classmethod
    def like(cls, state: Mapping[str, Tensor]) -> Self:
        tiles = state["phi.0.weight"].shape[-1] if "phi.0.weight" in state else TILE_WIDTH
        return cls(tiles, _width(state, REGION_WIDTH), _depth(state, REGION_DEPTH))

    def _grid(self, inputs: Tensor) -> Tensor:
        return self.phi(inputs.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _width(state: Mapping[str, Tensor], published: int) -> int:
    width = state["cls_token"].shape[-1] if "cls_token" in state else published
    if width % HEADS:
        raise ValueError(f"width {width} cannot be dealt to {HEADS} heads")
    return width


def _depth(state: Mapping[str, Tensor], published: int) -> int:
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    return len(blocks) or published


class ClassAndMean(nn.Module):
    """The class token of a transformer, then the mean of its patches' tokens.

    Parameters
    ----------
    network
        Maps pixels to all tokens, [B, N, width].
    prefix
        Tokens before those of patches: the class token and registers.
    """

    def __init__(self, network: nn.Module, prefix: int) -> None:
        super().__init__()
        self.network, self.prefix = network, prefix

    def forward(self, pixels: Tensor) -> Tensor:
        """Shape [B, 2 * width]."""
        tokens = self.network(pixels)
        return torch.cat([tokens[:, 0], tokens[:, self.prefix :].mean(1)], dim=1)


def places_of(table: Tensor, rows: int, columns: int) -> Tensor:
    """Position embeddings of a grid, by bicubic interpolation of a square table.

    DINO asks for a tenth of a place more than it needs, and what was trained so is used so: the
    sampled points, not only the rounding, depend on it.

    Parameters
    ----------
    table
        Shape [1, 1 + places, width], the class token's first.

    Returns
    -------
    Shape [1, 1 + rows * columns, width].
    """
    first, grid = table[:, :1], table[:, 1:]
    side = round(grid.shape[1] ** 0.5)
    if (rows, columns) == (side, side):
        return table
    square = grid.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    factors = ((rows + 0.1) / side, (columns + 0.1) / side)
    larger = functional.interpolate(square, scale_factor=factors, mode="bicubic")
    return torch.cat([first.float(), larger.flatten(2).transpose(1, 2)], dim=1)
