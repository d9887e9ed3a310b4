"""Writing tiled pyramidal JPEG TIFFs that OpenSlide opens."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

SMALLEST_LEVEL_PX = 256


def write_pyramid(
    path: Path,
    image: np.ndarray,
    mpp: float | None = 0.5,
    tile: int = 256,
    quality: int = 85,
) -> None:
    """Write an RGB image as a tiled, pyramidal JPEG TIFF (YCbCr 4:2:0, as scanners do).

    Every level is half the one before, down to `SMALLEST_LEVEL_PX` on the shorter side. The same
    arguments always give the same bytes.

    Parameters
    ----------
    path
        File to write; its folder must exist.
    image
        uint8, shape (height, width, 3), RGB: level 0.
    mpp
        Micrometres per pixel of level 0, written as resolution tags; None leaves them unset, as in
        exports that lost their scale.
    tile
        Edge of the square tiles in pixels, a multiple of 16.
    quality
        JPEG quality, 1 to 100.

    Raises
    ------
    ValueError
        If the image is not uint8 RGB.
    """
    import tifffile

    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected uint8 RGB, found {image.dtype} of shape {image.shape}")
    with tifffile.TiffWriter(path) as writer:
        for number, level in enumerate(_levels(image)):
            writer.write(
                _tiles(level, tile),
                shape=level.shape,
                dtype=level.dtype,
                photometric="rgb",
                tile=(tile, tile),
                compression="jpeg",
                compressionargs={"level": quality},
                subfiletype=int(number > 0),
                metadata=None,
                software=False,
                **_resolution(mpp, image.shape[1] / level.shape[1]),
            )


def _levels(image: np.ndarray) -> list[np.ndarray]:
    import cv2

    levels = [image]
    while min(levels[-1].shape[:2]) >= 2 * SMALLEST_LEVEL_PX:
        height, width = levels[-1].shape[:2]
        smaller = cv2.resize(levels[-1], (width // 2, height // 2), interpolation=cv2.INTER_AREA)
        levels.append(smaller)
    return levels


def _tiles(level: np.ndarray, tile: int) -> Iterator[np.ndarray]:
    """Tiles in row-major order; those at the edge repeat it, so that JPEG does not ring there."""
    height, width = level.shape[:2]
    padded = np.pad(level, ((0, -height % tile), (0, -width % tile), (0, 0)), mode="edge")
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            yield padded[top : top + tile, left : left + tile]


def _resolution(mpp: float | None, downsample: float) -> dict[str, Any]:
    if mpp is None:
        return {}
    per_centimetre = 10_000 / (mpp * downsample)
    return {"resolution": (per_centimetre, per_centimetre), "resolutionunit": "CENTIMETER"}
