"""Marker ink and scanner padding on a slide's overview, told from stain by their spectra."""

import numpy as np

from mm_assets.wsi.density import Density
from mm_assets.wsi.masks import Mask, as_bytes, without_small

SMALLEST_MARK_PX = 8
# Share of red's, blue's and the lowest density in green's, or in the highest, that no stain has.
MOST_RED, MOST_BLUE, MOST_LOWEST = 0.95, 0.78, 0.78
LEAST_COLOUR = 0.25
RED_INK_RED, RED_INK_GREEN = 0.25, 0.3
BLACK_INK, SATURATED = 0.6, 1.7
GREY_LOWEST, LEAST_GREY_SHARE = 0.85, 0.1
PADDING = 3.2


def find_pen(density: Density, padding: Mask) -> Mask:
    """Marker ink: black, blue, green or red.

    Haematoxylin and eosin both absorb green most: on real slides the density in red is at most .9
    of that in green, in blue .9, and the lowest of the three .75 of the highest. Blue and green
    inks absorb red more than that, black ink all alike; red ink lets red pass, unlike
    haematoxylin, and absorbs blue, unlike eosin. A line thinner than a pixel of the overview is
    fainter but keeps these ratios.

    Over-stained tissue leaves so little light that its colour is lost, too. But only of ink, a
    fair share of every mark is grey; of over-stained tissue a few in a hundred pixels are.
    """
    red, green, blue = density.channels
    blue_or_green = (red > MOST_RED * green) & (density.highest - density.lowest > LEAST_COLOUR)
    red_ink = (blue > MOST_BLUE * green) & (red < RED_INK_RED * green) & (green > RED_INK_GREEN)
    colourless = density.lowest > MOST_LOWEST * density.highest
    black = (colourless | (density.lowest > SATURATED)) & (density.lowest > BLACK_INK)
    black_ink = _marks(black, density.lowest > GREY_LOWEST * density.highest)
    return without_small((blue_or_green | red_ink | black_ink) & ~padding, SMALLEST_MARK_PX)


def _marks(dark: Mask, grey: Mask) -> Mask:
    """Connected parts of the dark that are grey enough."""
    import cv2

    if not dark.any():
        return dark
    _, labels = cv2.connectedComponents(as_bytes(dark))
    size = np.bincount(labels.ravel())
    grey_size = np.bincount(labels[dark & grey], minlength=len(size))
    keep = grey_size >= LEAST_GREY_SHARE * size
    keep[0] = False
    return np.asarray(keep.take(np.asarray(labels, np.int32)), bool)


def find_padding(density: Density) -> Mask:
    """Pure black, with which some scanners fill what they did not scan, and one pixel around."""
    import cv2

    black = density.lowest > PADDING
    return (
        cv2.dilate(as_bytes(black), np.ones((3, 3), np.uint8)).view(bool) if black.any() else black
    )
