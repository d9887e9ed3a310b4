"""Where the tissue is.

Detection works on optical density (OD = -ln of intensity over the slide's own background) at
about 8 um a pixel: stains absorb the colours unequally, glass, dust and shading absorb them alike.
A pixel is tissue when its densest and lightest channel differ by a little more than the glass's
do, and not by a small part of the density only, as in the shadow of a coverslip's edge. That is a
property of the glass, not of the tissue: a threshold between two populations (Otsu) loses pale
pieces beside dark ones and finds something on every empty slide.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from mm_assets.wsi.density import Density, median_of, optical_density
from mm_assets.wsi.errors import SlideError
from mm_assets.wsi.masks import Mask, as_bytes, disc, without_small
from mm_assets.wsi.outline import tissue_polygons
from mm_assets.wsi.pen import GREY_LOWEST, find_padding, find_pen
from mm_assets.wsi.quality import measure_quality
from mm_assets.wsi.slide import Pixels, Slide

OVERVIEW_MPP = 8.0
THUMBNAIL_PX = 512
LEAST_COLOUR, MOST_COLOUR = 0.035, 0.15
GLASS_DENSITY = 0.1
SMALLEST_PIECE_UM2 = 20_000.0
LARGEST_FILLED_HOLE_UM2 = 20_000.0
SMOOTHING_UM = 24.0
PEN_MARGIN_UM = 32.0
ONLY_PEN_ABOVE = 0.001


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
    padding = find_padding(density)
    pen = find_pen(density, padding)
    mask = segment(density, pen, padding, pixel_um)
    if not mask.any():
        marks = ": only pen marks" if pen.mean() > ONLY_PEN_ABOVE else ""
        raise SlideError(f"no tissue found on {slide.name}{marks}")
    return Tissue(
        mask=mask,
        downsample=downsample,
        polygons=tissue_polygons(mask, downsample, slide.mpp),
        quality=measure_quality(slide, density, mask, pen, downsample),
        thumbnail=_thumbnail(slide, image),
    )


def segment(density: Density, pen: Mask, padding: Mask, pixel_um: float) -> Mask:
    """Coloured pixels, gaps and small holes closed, without pen and its margin, padding, specks."""
    import cv2

    colour = np.asarray(cv2.medianBlur(density.highest - density.lowest, 3), np.float32)
    margin = cv2.dilate(as_bytes(pen), disc(PEN_MARGIN_UM, pixel_um)).view(bool)
    excluded = margin | padding
    glass = (density.highest < GLASS_DENSITY) & ~excluded
    tint = median_of(colour, glass)
    coloured = colour > np.clip(4 * tint, LEAST_COLOUR, MOST_COLOUR)
    mask = coloured & (density.lowest < GREY_LOWEST * density.highest) & ~excluded
    smoothing = disc(SMOOTHING_UM, pixel_um)
    closed = cv2.morphologyEx(as_bytes(mask), cv2.MORPH_CLOSE, smoothing)
    opened = cv2.morphologyEx(closed, cv2.MORPH_OPEN, smoothing).view(bool) & ~excluded
    pieces = without_small(opened, SMALLEST_PIECE_UM2 / pixel_um**2)
    if not pieces.any():
        return pieces
    return ~without_small(~pieces, LARGEST_FILLED_HOLE_UM2 / pixel_um**2) & ~excluded


def _thumbnail(slide: Slide, image: Pixels) -> Pixels:
    """The slide within `THUMBNAIL_PX`; of a small slide finer than the overview."""
    import cv2

    longest = max(slide.width, slide.height)
    if max(image.shape[:2]) < THUMBNAIL_PX:
        return slide.overview(math.ceil(longest / THUMBNAIL_PX) * slide.mpp)[0]
    scale = THUMBNAIL_PX / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
