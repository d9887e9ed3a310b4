"""Random crops for DINO, made for a whole batch at once on its device.

Draws come from a generator of the CPU, so that they are the same on every device.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional

# Pixels of a tile for one of the crop, by area: .4 to 1 of 256 px on 224, .05 to .4 on 96.
GLOBAL_SCALE = (0.4 * (256 / 224) ** 2, (256 / 224) ** 2)
LOCAL_SCALE = (0.05 * (256 / 96) ** 2, 0.4 * (256 / 96) ** 2)
LUMA = (0.299, 0.587, 0.114)
TO_YIQ = (LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))
BLUR_RADIUS = 4


@dataclass(frozen=True)
class TileCrops:
    """Crops of tiles, with the magnifications, colours and blur of Caron et al. (section 3).

    Crops of the published edges show the published shares of a tile of 256 px; smaller ones show
    less, at the same magnifications. Colour is changed by a linear map: brightness, contrast,
    saturation, and hue as a rotation of the chroma plane.

    Attributes
    ----------
    global_px, local_px
        Edges of the two large crops and of the small ones; multiples of 16.
    local
        How many small ones.
    colour
        How strongly colours change, 1 as in the paper: what changes is what is not learned.
    """

    global_px: int = 224
    local_px: int = 96
    local: int = 8
    colour: float = 1.0

    def __call__(self, pictures: Tensor, generator: Generator) -> list[Tensor]:
        """The crops of a batch, the two global ones first.

        Parameters
        ----------
        pictures
            uint8 [B, H, W, 3].

        Returns
        -------
        float32 [B, 3, edge, edge] each, normalized by mean and deviation .5.
        """
        scaled = pictures.permute(0, 3, 1, 2).float() / 255
        large = (GLOBAL_SCALE, self.global_px)
        small = (LOCAL_SCALE, self.local_px)
        settings = [(*large, 1.0, 0.0), (*large, 0.1, 0.2), *self.local * [(*small, 0.5, 0.0)]]
        return [
            self._changed(_cropped(scaled, scale, edge, generator), blur, solarize, generator)
            for scale, edge, blur, solarize in settings
        ]

    def _changed(self, crops: Tensor, blur: float, solarize: float, generator: Generator) -> Tensor:
        """Other colours, blur and solarization for some of the crops; normalized."""
        blurred = _blurred(_jittered(crops, self.colour, generator), blur, generator)
        inverted = torch.rand(len(crops), generator=generator) < self.colour * solarize
        bright = inverted.to(crops.device)[:, None, None, None] & (blurred >= 0.5)
        return (torch.where(bright, 1 - blurred, blurred) - 0.5) / 0.5


@dataclass(frozen=True)
class RegionCrops:
    """Crops of grids of tile tokens, flipped, with a tenth of the values dropped.

    Attributes
    ----------
    global_tiles, local_tiles
        Edges of the two large crops and of the small ones, at most those of the grid.
    local
        How many small ones.
    """

    global_tiles: int = 14
    local_tiles: int = 6
    local: int = 8
    dropout: float = 0.1

    def __call__(self, pictures: Tensor, generator: Generator) -> list[Tensor]:
        """The crops of a batch, the two global ones first.

        Parameters
        ----------
        pictures
            Tile tokens [B, rows, columns, D].

        Returns
        -------
        float32 [B, D, edge, edge] each.
        """
        edges = [self.global_tiles] * 2 + [self.local_tiles] * self.local
        return [self._crop(pictures.float(), edge, generator) for edge in edges]

    def _crop(self, grids: Tensor, edge: int, generator: Generator) -> Tensor:
        rows, columns = min(edge, grids.shape[1]), min(edge, grids.shape[2])
        top = torch.randint(grids.shape[1] - rows + 1, (len(grids),), generator=generator)
        left = torch.randint(grids.shape[2] - columns + 1, (len(grids),), generator=generator)
        flips = torch.rand(2, len(grids), generator=generator) < 0.5
        crops = [
            grid[y : y + rows, x : x + columns].flip([axis for axis in (0, 1) if flip[axis]])
            for grid, y, x, flip in zip(grids, top.tolist(), left.tolist(), flips.T, strict=True)
        ]
        made = torch.stack(crops)
        kept = torch.rand(made.shape, generator=generator) >= self.dropout
        return (made * kept.to(made.device) / (1 - self.dropout)).permute(0, 3, 1, 2)


def _uniform(low: float, high: float, count: int, generator: Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def _cropped(
    pictures: Tensor, scale: tuple[float, float], edge: int, generator: Generator
) -> Tensor:
    """Rectangles with an aspect of 3/4 to 4/3, resized; half are flipped."""
    count = len(pictures)
    area = _uniform(*scale, count, generator) * (edge / pictures.shape[-1]) ** 2
    aspect = _uniform(math.log(3 / 4), math.log(4 / 3), count, generator).exp()
    sizes = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()]).clamp(max=1)
    centres = (1 - sizes) * (2 * torch.rand(2, count, generator=generator) - 1)
    flips = 1 - 2 * (torch.rand(count, generator=generator) < 0.5).float()
    maps = torch.zeros(count, 2, 3)
    maps[:, 0, 0], maps[:, 1, 1] = sizes[0] * flips, sizes[1]
    maps[:, :, 2] = centres.T
    grid = functional.affine_grid(
        maps.to(pictures.device), [count, 3, edge, edge], align_corners=False
    )
    return functional.grid_sample(
        pictures, grid, mode="bilinear", padding_mode="border", align_corners=False
    )


def _jittered(crops: Tensor, strength: float, generator: Generator) -> Tensor:
    """Colours of four fifths of the crops changed, of a fifth taken away at full strength."""
    count = len(crops)
    some = torch.rand(count, generator=generator) < 0.8
    brightness, contrast, saturation, hue = (
        torch.where(some, usual + strength * _uniform(-by, by, count, generator), usual)
        for usual, by in ((1.0, 0.4), (1.0, 0.4), (1.0, 0.2), (0.0, 0.1))
    )
    saturation[torch.rand(count, generator=generator) < 0.2 * strength] = 0
    mix = _mixes(saturation, hue).to(crops)
    bright = crops * brightness.to(crops)[:, None, None, None]
    grey = torch.einsum("c,bchw->b", torch.tensor(LUMA).to(crops), bright)
    middle = (grey / bright[0, 0].numel())[:, None, None, None]
    spread = middle + (bright - middle) * contrast.to(crops)[:, None, None, None]
    return torch.einsum("bdc,bchw->bdhw", mix, spread).clamp(0, 1)


def _mixes(saturation: Tensor, hue: Tensor) -> Tensor:
    """Matrices [B, 3, 3] that scale chroma and turn it by `hue` parts of a circle."""
    to_yiq = torch.tensor(TO_YIQ)
    turn = torch.zeros(len(hue), 3, 3)
    cosine, sine = (2 * math.pi * hue).cos() * saturation, (2 * math.pi * hue).sin() * saturation
    turn[:, 0, 0] = 1
    turn[:, 1, 1], turn[:, 1, 2] = cosine, -sine
    turn[:, 2, 1], turn[:, 2, 2] = sine, cosine
    return torch.linalg.inv(to_yiq) @ turn @ to_yiq


def _blurred(crops: Tensor, share: float, generator: Generator) -> Tensor:
    """A share of the crops smoothed by a Gaussian of .1 to 2 pixels."""
    count = len(crops)
    chosen = (torch.rand(count, generator=generator) < share).nonzero().ravel()
    sigma = _uniform(0.1, 2.0, count, generator)[chosen]
    if not len(chosen):
        return crops
    offsets = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1)
    weights = torch.exp(-(offsets**2) / (2 * sigma[:, None] ** 2))
    weights = (weights / weights.sum(1, keepdim=True)).repeat_interleave(3, 0).to(crops)
    some = crops[chosen.to(crops.device)]
    flat = functional.pad(some.flatten(0, 1)[None], [BLUR_RADIUS] * 4, mode="reflect")
    across = functional.conv2d(flat, weights[:, None, None, :], groups=len(weights))
    smooth = functional.conv2d(across, weights[:, None, :, None], groups=len(weights))
    return crops.index_copy(0, chosen.to(crops.device), smooth[0].view_as(some))
