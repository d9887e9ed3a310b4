"""Tissue for people and other programs: polygons for QuPath, a small picture for the UI."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mm_assets.wsi.levels import Pixels
from mm_assets.wsi.masks import Mask, as_bytes

OUTLINE_COLOUR = (0, 140, 60)
PALETTE = 64
SMALLEST_PICTURE_PX = 32
MOST_BYTES = 45_000


def tissue_polygons(mask: Mask, downsample: int, mpp: float) -> dict[str, Any]:
    """GeoJSON FeatureCollection of the connected pieces in level-0 pixels, largest first.

    Parameters
    ----------
    mask
        bool (rows, columns).
    downsample
        Level-0 pixels along the edge of one pixel of the mask.
    mpp
        Micrometres per level-0 pixel.
    """
    import cv2

    # Pixels that touch only at a corner are two pieces: one ring cannot pass a point twice.
    _, labels, stats, _ = cv2.connectedComponentsWithStats(as_bytes(mask), connectivity=4)
    pixel_mm2 = (downsample * mpp / 1000) ** 2
    largest_first = 1 + np.argsort(-stats[1:, cv2.CC_STAT_AREA], kind="stable")
    features = []
    for tissue_id, label in enumerate(largest_first):
        left, top, width, height, area = (int(value) for value in stats[label])
        piece = labels[top : top + height, left : left + width] == label
        rings = _rings(piece, np.array([left, top]), downsample)
        features.append(_feature(tissue_id, rings, area * pixel_mm2))
    return {"type": "FeatureCollection", "features": features}


def _feature(tissue_id: int, rings: list[list[list[int]]], area_mm2: float) -> dict[str, Any]:
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": rings},
        "properties": {
            "objectType": "annotation",
            "classification": {"name": "Tissue"},
            "tissue_id": tissue_id,
            "area_mm2": round(area_mm2, 6),
        },
    }


def _rings(piece: Mask, corner: NDArray[Any], downsample: int) -> list[list[list[int]]]:
    """Outer ring, then holes, in level-0 pixels, traced exactly along the edges of the pixels."""
    import cv2

    doubled = cv2.resize(as_bytes(piece), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    outer = max(range(len(contours)), key=lambda index: cv2.contourArea(contours[index]))
    ordered = [contours[outer], *contours[:outer], *contours[outer + 1 :]]
    return [_ring(contour, corner, downsample) for contour in ordered if len(contour) > 2]


def _ring(contour: NDArray[Any], corner: NDArray[Any], downsample: int) -> list[list[int]]:
    """Closed ring in level-0 pixels of a contour traced on a doubled picture.

    The left (upper) half of a pixel was traced where the line runs along its left edge, the right
    half where along its right edge, so rounding halves up finds the edge, on both sides of a hole.
    """
    corners = (contour.reshape(-1, 2)[::-1] + 1) // 2
    turns = (corners != np.roll(corners, 1, axis=0)).any(axis=1)
    points = ((corners[turns] + corner) * downsample).tolist()
    return [*points, points[0]]


def outline_png(thumbnail: Pixels, mask: Mask, max_bytes: int = MOST_BYTES) -> bytes:
    """The thumbnail with the tissue outlined, as a PNG small enough to show inline."""
    return small_png(lambda scale: _outlined(thumbnail, mask, scale), max_bytes)


def small_png(draw: Callable[[float], Image.Image], max_bytes: int = MOST_BYTES) -> bytes:
    """A picture as a PNG of at most `max_bytes`.

    Colours are reduced to a palette, and the picture shrinks until it fits.

    Parameters
    ----------
    draw
        Gives the picture at a scale, 1 or less.
    """
    scale = 1.0
    while True:
        picture = draw(scale)
        file = io.BytesIO()
        # The octree makes the palette forty times faster than the default, median cut.
        few = picture.quantize(PALETTE, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        few.save(file, "PNG")
        if file.tell() <= max_bytes or max(picture.size) <= SMALLEST_PICTURE_PX:
            return file.getvalue()
        # Bytes grow about as the area: one more attempt is mostly enough.
        scale *= min(0.95, 0.97 * (max_bytes / file.tell()) ** 0.5)


def _outlined(thumbnail: Pixels, mask: Mask, scale: float) -> Image.Image:
    import cv2

    height, width = (max(1, round(edge * scale)) for edge in thumbnail.shape[:2])
    picture = cv2.resize(thumbnail, (width, height), interpolation=cv2.INTER_AREA)
    shown = cv2.resize(as_bytes(mask), (width, height), interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(shown, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return Image.fromarray(cv2.drawContours(picture, contours, -1, OUTLINE_COLOUR, 1))
