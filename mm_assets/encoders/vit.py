"""The two transformers of HIPT (Chen et al., CVPR 2022): of tiles, and of regions made of tiles.

Parameter names, sizes and the interpolation of position embeddings are those of DINO's vision
transformers (Caron et al., ICCV 2021), so that published checkpoints load as they are.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

GRID = 14
PATCH_PX = 16
TILE_WIDTH, REGION_WIDTH = 384, 192


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, count, width = x.shape
        qkv = self.qkv(x).view(batch, count, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(batch, count, width))

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """Attention of every token to every other, (B, heads, N, N)."""
        batch, count, width = x.shape
        qkv = self.qkv(x).view(batch, count, 3, self.heads, width // self.heads)
        query, key, _ = qkv.permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-2, -1) * (width // self.heads) ** -0.5
        return scores.softmax(dim=-1)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)}
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](functional.gelu(self.mlp["fc1"](self.norm2(x))))


class _Transformer(nn.Module):
    """Class token, learned positions, pre-norm blocks."""

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, GRID * GRID + 1, width))
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def tokens(self, grid: torch.Tensor) -> torch.Tensor:
        """Embedded patches (B, width, h, w) with class token and positions, (B, 1 + hw, width)."""
        positions = interpolated_positions(self.pos_embed, grid.shape[-2], grid.shape[-1])
        patches = grid.flatten(2).transpose(1, 2)
        start = self.cls_token.expand(len(grid), -1, -1)
        return torch.cat([start, patches], dim=1) + positions

    def encode(self, grid: torch.Tensor) -> torch.Tensor:
        """The class token after the last block, (B, width)."""
        x = self.tokens(grid)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]

    def class_attention(self, grid: torch.Tensor) -> torch.Tensor:
        """Attention of the class token in the last block to each patch, (B, heads, h, w)."""
        x = self.tokens(grid)
        for block in self.blocks[:-1]:
            x = block(x)
        last: Any = self.blocks[-1]
        weights = last.attn.weights(last.norm1(x))[:, :, 0, 1:]
        return weights.reshape(*weights.shape[:2], *grid.shape[-2:])

    def draw(self) -> None:
        """Fresh weights: truncated normal of deviation .02, biases zero."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" in name:
                nn.init.ones_(parameter)
            else:
                nn.init.trunc_normal_(parameter, std=0.02)


class TileTransformer(_Transformer):
    """ViT-S/16: pixels (B, 3, H, W), sides multiples of 16, to (B, 384); 21,665,664 parameters."""

    def __init__(self) -> None:
        super().__init__(TILE_WIDTH, depth=12, heads=6)
        convolution = nn.Conv2d(3, TILE_WIDTH, PATCH_PX, PATCH_PX)
        self.patch_embed = nn.ModuleDict({"proj": convolution})

    def patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embedded patches of pixels, (B, 384, H / 16, W / 16)."""
        return self.patch_embed["proj"](pixels)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.encode(self.patches(pixels))


class RegionTransformer(_Transformer):
    """Tile embeddings in their places, (B, 384, h, w), to (B, 192); 2,781,504 parameters."""

    def __init__(self) -> None:
        super().__init__(REGION_WIDTH, depth=6, heads=6)
        self.phi = nn.Sequential(nn.Linear(TILE_WIDTH, REGION_WIDTH), nn.GELU())

    def patches(self, tiles: torch.Tensor) -> torch.Tensor:
        """Tile embeddings reduced to the transformer's width, (B, 192, h, w)."""
        return self.phi(tiles.movedim(1, -1)).movedim(-1, 1)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        return self.encode(self.patches(tiles))


def interpolated_positions(positions: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Position embeddings (1, 1 + GRID ** 2, D) for a grid of another size, as DINO resizes them.

    Bicubic, with a tenth of a patch added to the size wanted: the published weights were trained
    with that, and it shifts the places at which the grid is sampled.
    """
    if (height, width) == (GRID, GRID):
        return positions
    grid = positions[:, 1:].reshape(1, GRID, GRID, -1).permute(0, 3, 1, 2)
    scale = ((height + 0.1) / GRID, (width + 0.1) / GRID)
    resized = functional.interpolate(grid.float(), scale_factor=scale, mode="bicubic")
    patches = resized.permute(0, 2, 3, 1).reshape(1, height * width, -1).to(positions.dtype)
    return torch.cat([positions[:, :1], patches], dim=1)
