"""Simple painted pictures of slides."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mm_assets.synthetic.tiff import write_pyramid

GLASS = (243, 241, 244)
PINK, PALE, PURPLE = (225, 150, 190), (240, 227, 236), (120, 80, 160)
TWO_LAYERS_OF_PINK = (208, 93, 148)
BLUE_INK, GREEN_INK, RED_INK, BLACK_INK = (30, 60, 190), (30, 150, 80), (220, 30, 40), (25, 24, 26)

Image = NDArray[np.uint8]


def glass(height: int = 1600, width: int = 2000, seed: int = 0) -> Image:
    """An empty slide with a little sensor noise."""
    noise = np.random.default_rng(seed).normal(0, 1.5, (height, width, 3))
    return np.clip(np.array(GLASS) + noise, 0, 255).astype(np.uint8)


def ellipse(
    image: Image, centre: tuple[int, int], axes: tuple[int, int], colour: tuple[int, int, int]
) -> NDArray[np.bool_]:
    """Paint a textured ellipse (centre and half axes as row, column); returns where it is."""
    rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
    inside = ((rows - centre[0]) / axes[0]) ** 2 + ((columns - centre[1]) / axes[1]) ** 2 <= 1
    texture = np.random.default_rng(1).normal(0, 4, (*image.shape[:2], 1))
    image[inside] = np.clip(np.array(colour) + texture, 0, 255).astype(np.uint8)[inside]
    return np.asarray(inside)


def stripe(image: Image, rows: slice, colour: tuple[int, int, int]) -> None:
    """A marker line across the slide."""
    image[rows] = colour


def slide_file(folder: Path, image: Image, name: str = "slide.tiff", quality: int = 90) -> Path:
    """The picture as a pyramidal TIFF of 0.5 um a pixel."""
    path = folder / name
    write_pyramid(path, image, mpp=0.5, quality=quality)
    return path
