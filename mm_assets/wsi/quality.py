"""Quality figures of a slide's tissue: area, focus, pen, folds, stain."""

import numpy as np
from numpy.typing import NDArray

from mm_assets.wsi.density import Density, Plane
from mm_assets.wsi.masks import Mask, as_bytes, without_small
from mm_assets.wsi.slide import Pixels, Slide

FOCUS_SAMPLES = 16
FOCUS_PX = 96
FOCUS_MPP = 1.0
BLURRED_BELOW = 0.12
FOLD_NEIGHBOURHOOD_UM = 400.0
FOLD_FACTOR = 1.6
FOLD_LEAST_DENSITY = 0.4
FOLD_MOST_HUE, FOLD_HUE_OFFSET = 1.2, 0.05
SMALLEST_FOLD_UM2 = 2_000.0
COARSER = 4


def measure_quality(
    slide: Slide, density: Density, mask: Mask, pen: Mask, downsample: int
) -> dict[str, float]:
    """Figures about the tissue of a slide.

    Parameters
    ----------
    slide
        For the focus samples, which need a finer resolution than the overview.
    density
        Of the overview at about 8 um a pixel.
    mask, pen
        Tissue and marker ink, bool (rows, columns).
    downsample
        Level-0 pixels a pixel of the overview.

    Returns
    -------
    ``tissue_area_mm2``; ``tissue_fraction`` of the slide; ``pen_fraction`` (ink over ink and
    tissue); ``fold_fraction`` of the tissue; ``sharpness`` (median over samples, see `focus`);
    ``blur_fraction`` (share of samples out of focus); ``mean_saturation`` (HSV against the slide's
    background, 0 to 1); mean and standard deviation of each channel's optical density.
    """
    import cv2

    sharpness = focus(slide, mask, downsample)
    pixel_um = downsample * slide.mpp
    tissue_px = int(mask.sum())
    stains = {}
    for name, plane in zip(("red", "green", "blue"), density.channels, strict=True):
        mean, deviation = cv2.meanStdDev(plane, mask=as_bytes(mask))
        stains[f"density_{name}_mean"] = float(mean[0, 0])
        stains[f"density_{name}_sd"] = float(deviation[0, 0])
    return {
        "tissue_area_mm2": tissue_px * (pixel_um / 1000) ** 2,
        "tissue_fraction": float(mask.mean()),
        "pen_fraction": float(pen.sum() / (pen.sum() + tissue_px)),
        "fold_fraction": float(find_folds(density, mask, pixel_um).sum() / tissue_px),
        "sharpness": float(np.median(sharpness)),
        "blur_fraction": float(np.mean(sharpness < BLURRED_BELOW)),
        "mean_saturation": float(
            np.mean(1 - np.exp((density.lowest - density.highest)[mask]), dtype=np.float64)
        ),
        **stains,
    }


def find_folds(density: Density, mask: Mask, pixel_um: float) -> Mask:
    """Places that are far denser than the tissue around them, in the same colour.

    Two layers absorb twice in every channel (Beer-Lambert): the neighbourhood's density grows, its
    hue stays. Densely cellular tissue is bluer than its surroundings, haematoxylin absorbs red.
    Layers that grew so, such as keratin's, look like folds: the fraction is a reason to look at
    the slide, and nothing is removed for it.
    """
    import cv2

    around, hue_around = _surroundings(density, mask, pixel_um)
    denser = cv2.medianBlur(density.mean, 3) > np.maximum(FOLD_FACTOR * around, FOLD_LEAST_DENSITY)
    most_red = (FOLD_MOST_HUE * hue_around + FOLD_HUE_OFFSET) * cv2.medianBlur(density.green, 3)
    same_hue = cv2.medianBlur(density.red, 3) < most_red
    return without_small(denser & same_hue & mask, SMALLEST_FOLD_UM2 / pixel_um**2)


def _surroundings(density: Density, mask: Mask, pixel_um: float) -> tuple[Plane, Plane]:
    """Mean density, and red's share of green's, of the tissue within some distance."""
    import cv2

    edge = round(FOLD_NEIGHBOURHOOD_UM / (COARSER * pixel_um)) | 1
    weight = mask[::COARSER, ::COARSER].astype(np.float32)
    count, mean, red, green = (
        np.maximum(cv2.blur(plane * weight, (edge, edge)), np.float32(1e-6))
        for plane in (
            weight,
            *(p[::COARSER, ::COARSER] for p in (density.mean, density.red, density.green)),
        )
    )
    size = mask.shape[::-1]
    return (
        np.asarray(cv2.resize(mean / count, size), np.float32),
        np.asarray(cv2.resize(red / green, size), np.float32),
    )


def focus(slide: Slide, mask: Mask, downsample: int) -> NDArray[np.float64]:
    """Sharpness of samples spread evenly over the tissue, at 1 um a pixel.

    Variance of the detail finer than about 1 um over that of the detail of 1 to 4 um (difference
    of Gaussians), so neither stain strength nor the tissue's edge matters. On real slides .23 to
    1.7; blurred by a Gaussian of 1 um .08 to .25, of 2 um or more below .05.
    """
    places = np.argwhere(mask)
    chosen = places[np.linspace(0, len(places) - 1, FOCUS_SAMPLES + 2).astype(int)[1:-1]]
    size0 = max(FOCUS_PX, round(FOCUS_PX * FOCUS_MPP / slide.mpp))
    centres = (np.unique(chosen, axis=0)[:, ::-1] + 0.5) * downsample
    corners = (centres - size0 / 2).astype(int)
    return np.array([_sharpness(slide.read(int(x), int(y), size0, FOCUS_PX)) for x, y in corners])


def _sharpness(pixels: Pixels) -> float:
    import cv2

    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float64)
    finest, coarser = (cv2.GaussianBlur(grey, (0, 0), sigma) for sigma in (1, 4))
    return float((grey - finest).var() / ((finest - coarser).var() + 1))
