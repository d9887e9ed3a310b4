"""Quality figures of a slide's tissue: area, focus, pen, folds, stain."""

import numpy as np
from numpy.typing import NDArray

from mm_assets.wsi.slide import Pixels, Slide

Mask = NDArray[np.bool_]

FOCUS_SAMPLES = 24
FOCUS_PX = 128
FOCUS_MPP = 1.0
BLURRED_BELOW = 0.12
FOLD_FACTOR = 2.5
FOLD_LEAST_DENSITY = 1.1
FOLD_LEAST_PX = 12


def measure_quality(
    slide: Slide,
    image: Pixels,
    density: NDArray[np.float32],
    mask: Mask,
    pen: Mask,
    downsample: int,
) -> dict[str, float]:
    """Figures about the tissue of a slide.

    Parameters
    ----------
    slide
        For the focus samples, which need a finer resolution than the overview.
    image, density
        The overview at about 8 um a pixel and its optical density, (rows, columns, 3).
    mask, pen
        Tissue and marker ink, bool (rows, columns).
    downsample
        Level-0 pixels a pixel of the overview.

    Returns
    -------
    ``tissue_area_mm2``; ``tissue_fraction`` of the slide; ``pen_fraction`` (ink over ink and
    tissue); ``fold_fraction`` of the tissue; ``sharpness`` (median over samples, see `focus`);
    ``blur_fraction`` (share of samples out of focus); ``mean_saturation`` (HSV, 0 to 1); mean and
    standard deviation of each channel's optical density.
    """
    tissue = density[mask].astype(np.float64)
    sharpness = focus(slide, mask, downsample)
    stains = {
        f"density_{channel}_{name}": float(value)
        for index, channel in enumerate(("red", "green", "blue"))
        for name, value in (("mean", tissue[:, index].mean()), ("sd", tissue[:, index].std()))
    }
    return {
        "tissue_area_mm2": float(mask.sum()) * (downsample * slide.mpp / 1000) ** 2,
        "tissue_fraction": float(mask.mean()),
        "pen_fraction": float(pen.sum() / (pen.sum() + mask.sum())),
        "fold_fraction": float(find_folds(density, mask)[mask].mean()),
        "sharpness": float(np.median(sharpness)),
        "blur_fraction": float(np.mean(sharpness < BLURRED_BELOW)),
        "mean_saturation": _saturation(image[mask]),
        **stains,
    }


def find_folds(density: NDArray[np.float32], mask: Mask) -> Mask:
    """Candidates for folds: pieces of the overview that are far denser than the tissue's median.

    Two layers absorb twice (Beer-Lambert), but so does densely cellular tissue at this resolution:
    the fraction is a reason to look at the slide, and nothing is removed for it.
    """
    import cv2

    mean = density.mean(axis=2)
    limit = max(FOLD_FACTOR * float(np.median(mean[mask])), FOLD_LEAST_DENSITY)
    dark = ((mean > limit) & mask).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(dark)
    large = stats[:, cv2.CC_STAT_AREA] >= FOLD_LEAST_PX
    large[0] = False
    return np.asarray(large[labels], dtype=bool)


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


def _saturation(pixels: Pixels) -> float:
    highest = pixels.max(axis=1).astype(np.float64)
    return float(np.mean((highest - pixels.min(axis=1)) / np.maximum(highest, 1)))
