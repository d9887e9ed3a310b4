"""Where the tissue is, and how good it looks.

Detection works on optical density (OD = -ln of intensity over the slide's own background) at
about 8 um a pixel: stains absorb the colours unequally, glass, dust and shading absorb them alike.
A pixel is tissue when its densest and lightest channel differ by a little more than the glass's
do. That is a property of the glass, not of the tissue: a threshold between two populations (Otsu)
loses pale pieces beside dark ones and finds something on every empty slide.
"""

import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mm_assets.wsi.errors import SlideError
from mm_assets.wsi.quality import measure_quality
from mm_assets.wsi.slide import Pixels, Slide

Mask = NDArray[np.bool_]

OVERVIEW_MPP = 8.0
THUMBNAIL_PX = 512
LEAST_COLOUR, MOST_COLOUR = 0.035, 0.15
GLASS_DENSITY = 0.1
SMALLEST_PIECE_UM2 = 20_000.0
LARGEST_FILLED_HOLE_UM2 = 20_000.0
SMOOTHING_UM = 24.0
PEN_MARGIN_UM = 32.0
SMALLEST_MARK_PX = 8
DARKEST_STAIN = 45
PADDING_LEVEL = 10
OUTLINE_COLOUR = (0, 140, 60)
PALETTE = 64


@dataclass(frozen=True)
class Tissue:
    """Tissue of one slide.

    Attributes
    ----------
    mask
        bool (rows, columns) at about 8 um a pixel.
    downsample
        Level-0 pixels along the edge of one pixel of the mask.
    polygons
        GeoJSON FeatureCollection in level-0 pixels, a feature a piece, largest first, with
        ``tissue_id`` and ``area_mm2``; opens in QuPath.
    quality
        See `mm_assets.wsi.quality.measure_quality`.
    thumbnail
        uint8 RGB of at most 512 px.
    """

    mask: Mask
    downsample: int
    polygons: dict[str, Any]
    quality: dict[str, float]
    thumbnail: Pixels


def find_tissue(slide: Slide) -> Tissue:
    """Segment the tissue of an H&E slide and measure its quality.

    Raises
    ------
    SlideError
        No tissue, or the slide cannot be decoded.
    """
    image, downsample = slide.overview(OVERVIEW_MPP)
    pixel_um = downsample * slide.mpp
    density = optical_density(image)
    pen = find_pen(image, density, pixel_um)
    mask = segment(image, density, pen, pixel_um)
    if not mask.any():
        marks = ": only pen marks" if pen.mean() > 0.001 else ""
        raise SlideError(f"no tissue found on {slide.name}{marks}")
    return Tissue(
        mask=mask,
        downsample=downsample,
        polygons=_polygons(mask, downsample, slide.mpp),
        quality=measure_quality(slide, image, density, mask, pen, downsample),
        thumbnail=_thumbnail(slide, image),
    )


def optical_density(image: Pixels) -> NDArray[np.float32]:
    """Natural-log optical density of each channel against the slide's own background.

    The background is the median of the brightest tenth of the pixels, as far as they are bright
    and nearly colourless; where none are (tissue fills the picture) it is white.
    """
    values = image.astype(np.float32)
    brightness = values.min(axis=2)
    colourless = values.max(axis=2) - brightness <= 30
    bright = colourless & (brightness >= max(float(np.quantile(brightness, 0.9)), 200.0))
    background = np.median(values[bright], axis=0) if bright.any() else np.full(3, 255.0)
    return np.maximum(-np.log(np.maximum(values, 1) / background), 0).astype(np.float32)


def find_pen(image: Pixels, density: NDArray[np.float32], pixel_um: float) -> Mask:
    """Marker ink: black, blue, green or red.

    Haematoxylin and eosin both absorb green most: on real slides the density in red is at most .9
    of that in green, in blue .9, and the lowest of the three .75 of the highest. Blue and green
    inks absorb red more than that, black ink all alike; red ink lets red pass, unlike
    haematoxylin, and absorbs blue, unlike eosin.
    """
    red, green, blue = np.moveaxis(density, 2, 0)
    highest, lowest = density.max(axis=2), density.min(axis=2)
    blue_or_green = (red > 0.95 * green) & (highest - lowest > 0.25)
    red_ink = (blue > 0.78 * green) & (red < 0.2 * green) & (green > 0.6)
    black_ink = (lowest > 0.6) & (lowest > 0.78 * highest)
    black_ink |= image.max(axis=2) < DARKEST_STAIN
    ink = (blue_or_green | red_ink | black_ink) & ~find_padding(image)
    return _without_small(ink, SMALLEST_MARK_PX * pixel_um**2, pixel_um)


def find_padding(image: Pixels) -> Mask:
    """Pure black, with which some scanners fill what they did not scan, and one pixel around."""
    import cv2

    black = (image.max(axis=2) < PADDING_LEVEL).astype(np.uint8)
    return cv2.dilate(black, np.ones((3, 3), np.uint8)).astype(bool)


def segment(image: Pixels, density: NDArray[np.float32], pen: Mask, pixel_um: float) -> Mask:
    """Coloured pixels, gaps and small holes closed, without pen and its margin, padding, specks."""
    import cv2

    colour = density.max(axis=2) - density.min(axis=2)
    colour = cv2.medianBlur(colour.astype(np.float32), 3)
    margin = cv2.dilate(pen.astype(np.uint8), _disc(PEN_MARGIN_UM, pixel_um)).astype(bool)
    excluded = margin | find_padding(image)
    glass = (density.max(axis=2) < GLASS_DENSITY) & ~excluded
    tint = float(np.median(colour[glass])) if glass.any() else 0.0
    mask = (colour > np.clip(4 * tint, LEAST_COLOUR, MOST_COLOUR)) & ~excluded
    disc = _disc(SMOOTHING_UM, pixel_um)
    closed = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, disc)
    opened = cv2.morphologyEx(closed, cv2.MORPH_OPEN, disc).astype(bool) & ~excluded
    pieces = _without_small(opened, SMALLEST_PIECE_UM2, pixel_um)
    return ~_without_small(~pieces, LARGEST_FILLED_HOLE_UM2, pixel_um) & ~excluded


def tissue_outline_png(tissue: Tissue, max_bytes: int = 45_000) -> bytes:
    """The thumbnail with the tissue outlined, as a PNG small enough to show inline.

    Colours are reduced to a palette, and the picture shrinks until it fits `max_bytes`.
    """
    scale = 1.0
    while True:
        picture = _outlined(tissue, scale)
        file = io.BytesIO()
        picture.quantize(PALETTE, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
        if file.tell() <= max_bytes or max(picture.size) <= 32:
            return file.getvalue()
        scale *= 0.85


def _outlined(tissue: Tissue, scale: float) -> Image.Image:
    import cv2

    height, width = (max(1, round(edge * scale)) for edge in tissue.thumbnail.shape[:2])
    picture = cv2.resize(tissue.thumbnail, (width, height), interpolation=cv2.INTER_AREA)
    mask = cv2.resize(
        tissue.mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST
    )
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return Image.fromarray(cv2.drawContours(picture, contours, -1, OUTLINE_COLOUR, 1))


def _polygons(mask: Mask, downsample: int, mpp: float) -> dict[str, Any]:
    """GeoJSON of the connected pieces, largest first."""
    import cv2

    # Pixels that touch only at a corner are two pieces: one ring cannot pass a point twice.
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    areas = stats[1:, cv2.CC_STAT_AREA]
    pixel_mm2 = (downsample * mpp / 1000) ** 2
    features = [
        _feature(tissue_id, labels == 1 + index, float(areas[index]) * pixel_mm2, downsample)
        for tissue_id, index in enumerate(np.argsort(-areas, kind="stable"))
    ]
    return {"type": "FeatureCollection", "features": features}


def _feature(tissue_id: int, piece: Mask, area_mm2: float, downsample: int) -> dict[str, Any]:
    """One piece as a GeoJSON polygon with holes, traced exactly along the edges of its pixels."""
    import cv2

    doubled = piece.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    contours, _ = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    outer = max(range(len(contours)), key=lambda index: cv2.contourArea(contours[index]))
    rings = [contours[outer], *contours[:outer], *contours[outer + 1 :]]
    return {
        "type": "Feature",
        "geometry": {
            "type": "Polygon",
            "coordinates": [_ring(ring, downsample) for ring in rings if len(ring) > 2],
        },
        "properties": {
            "objectType": "annotation",
            "classification": {"name": "Tissue"},
            "tissue_id": tissue_id,
            "area_mm2": round(area_mm2, 6),
        },
    }


def _ring(contour: NDArray[Any], downsample: int) -> list[list[int]]:
    """Closed ring in level-0 pixels of a contour traced on a doubled picture.

    The left (upper) half of a pixel was traced where the line runs along its left edge, the right
    half where along its right edge, so rounding halves up finds the edge, on both sides of a hole.
    """
    corners = (contour.reshape(-1, 2)[::-1] + 1) // 2
    turns = (corners != np.roll(corners, 1, axis=0)).any(axis=1)
    points = (corners[turns] * downsample).tolist()
    return [*points, points[0]]


def _without_small(mask: Mask, least_um2: float, pixel_um: float) -> Mask:
    """The mask without connected components smaller than an area."""
    import cv2

    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    keep = stats[:, cv2.CC_STAT_AREA] * pixel_um**2 >= least_um2
    keep[0] = False
    return np.asarray(keep[labels], dtype=bool)


def _disc(diameter_um: float, pixel_um: float) -> Pixels:
    import cv2

    edge = max(1, round(diameter_um / pixel_um)) | 1
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (edge, edge)), dtype=np.uint8)


def _thumbnail(slide: Slide, image: Pixels) -> Pixels:
    """The slide within `THUMBNAIL_PX`; of a small slide finer than the overview."""
    import cv2

    longest = max(slide.width, slide.height)
    if max(image.shape[:2]) < THUMBNAIL_PX:
        return slide.overview(math.ceil(longest / THUMBNAIL_PX) * slide.mpp)[0]
    scale = THUMBNAIL_PX / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
