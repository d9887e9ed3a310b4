"""Nuclei of H&E pixels without trained weights: stain deconvolution, blobs, watershed.

Haematoxylin that is darker than its surroundings is foreground; a nucleus begins at a blob (a
maximum of a difference of Gaussians, plus a little of the distance to the foreground's border, so
that clumps of chromatin do not split a large nucleus) and grows by watershed. Every size is in
micrometres. What a nucleus is depends on nothing further away than `REACH_UM`.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mm_assets.nuclei.stain import Density, Pixels, stain_densities

Labels = NDArray[np.int32]

# Three deviations of the widest filter, beside which all else is near.
REACH_UM = 24.0
_FINE, _SURROUNDINGS = 0.5, 8.0
_BLOB, _BLOB_SURROUNDINGS, _APART = 1.4, 2.8, 2.0
_LEAST_BLOB, _LEAST_CONTRAST, _CORE_WEIGHT, _DEEPEST = 0.015, 0.01, 0.08, 6.0
_OPENING_PX = 5
# Of the slide's threshold: what a pixel of a nucleus, and what a nucleus on average, must have.
_PIXEL_SHARE, _NUCLEUS_SHARE = 0.4, 0.6
_NUCLEUS_CONTRAST = 0.05
_AREAS_UM2, _LEAST_SOLIDITY = (8.0, 300.0), 0.7
# The brightest channel of ink and of folded dirt; nuclei keep some blue.
_INK = 75
_THRESHOLDS, _BACKGROUND, _LEAST_PIXELS = (0.12, 0.30), 0.05, 100


def haematoxylin_threshold(pictures: Sequence[Pixels], mpp: float) -> float:
    """Density between nuclei and the rest of a slide (Otsu 1979), from some of its tiles.

    Parameters
    ----------
    pictures
        uint8 (H, W, 3), RGB.
    """
    from skimage.filters import threshold_otsu

    densities = [_blurred(stain_densities(each)[..., 0], _FINE / mpp) for each in pictures]
    stained = np.concatenate([np.empty(0, np.float32), *(d[d > _BACKGROUND] for d in densities)])
    if len(stained) < _LEAST_PIXELS:
        return _THRESHOLDS[0]
    return float(np.clip(threshold_otsu(stained), *_THRESHOLDS))


def segment_nuclei(
    rgb: Pixels, densities: Density, mpp: float, threshold: float
) -> tuple[Labels, NDArray[np.int64]]:
    """Segment the nuclei of a picture.

    Parameters
    ----------
    rgb
        uint8 (H, W, 3).
    densities
        `stain_densities` of it.
    threshold
        From `haematoxylin_threshold` of the slide.

    Returns
    -------
    labels
        int32 (H, W), 0 outside nuclei.
    seeds
        int64 (n, 2), row and column where nucleus i + 1 began; some labels are of no nucleus (too
        small, too pale, ink) and appear nowhere in `labels`.
    """
    import cv2
    from skimage.feature import peak_local_max
    from skimage.segmentation import watershed

    stain = np.ascontiguousarray(densities[..., 0])
    smooth = _blurred(stain, _FINE / mpp)
    contrast = smooth - _blurred(stain, _SURROUNDINGS / mpp)
    dark = (smooth > _PIXEL_SHARE * threshold) & (contrast > _LEAST_CONTRAST)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (_OPENING_PX, _OPENING_PX))
    mask = cv2.morphologyEx(dark.astype(np.uint8), cv2.MORPH_OPEN, disc)
    depth = np.minimum(cv2.distanceTransform(mask, cv2.DIST_L2, 5) * mpp, _DEEPEST)
    blobs = _blurred(stain, _BLOB / mpp) - _blurred(stain, _BLOB_SURROUNDINGS / mpp)
    hills = blobs + _CORE_WEIGHT * _blurred(depth, _FINE / mpp)
    apart = max(1, round(_APART / mpp))
    seeds = peak_local_max(hills, min_distance=apart, exclude_border=False, labels=mask)
    seeds = seeds[blobs[tuple(seeds.T)] > _LEAST_BLOB]
    markers = np.zeros(mask.shape, np.int32)
    markers[tuple(seeds.T)] = np.arange(1, len(seeds) + 1)
    labels = _trimmed(watershed(-hills, markers, mask=mask.astype(bool)), smooth)
    return _plausible(labels, smooth, contrast, rgb, mpp, threshold), seeds


def _trimmed(labels: Labels, smooth: Density) -> Labels:
    """Each label within half of its own darkest stain, where a blurred border truly lies."""
    darkest = np.zeros(labels.max(initial=0) + 1, np.float32)
    np.maximum.at(darkest, labels.ravel(), smooth.ravel())
    return np.where(smooth > 0.5 * darkest[labels], labels, 0)


def _plausible(
    labels: Labels, smooth: Density, contrast: Density, rgb: Pixels, mpp: float, threshold: float
) -> Labels:
    """The labels without what is too small, large, ragged, pale, or ink."""
    from skimage.measure import regionprops_table

    values = np.dstack([smooth, contrast, rgb.max(axis=2).astype(np.float32)])
    found = regionprops_table(labels, values, properties=("label", "area", "intensity_mean"))
    area = found["area"] * mpp**2
    good = (
        (area > _AREAS_UM2[0])
        & (area < _AREAS_UM2[1])
        & (found["intensity_mean-0"] > _NUCLEUS_SHARE * threshold)
        & (found["intensity_mean-1"] > _NUCLEUS_CONTRAST)
        & (found["intensity_mean-2"] > _INK)
    )
    labels = _only(labels, found["label"][good])
    shapes = regionprops_table(labels, properties=("label", "solidity"))
    return _only(labels, shapes["label"][shapes["solidity"] > _LEAST_SOLIDITY])


def _only(labels: Labels, wanted: NDArray[np.int64]) -> Labels:
    kept = np.zeros(labels.max(initial=0) + 1, np.int32)
    kept[wanted] = wanted
    return kept[labels]


def _blurred(picture: Density, sigma: float) -> Density:
    import cv2

    return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma), np.float32)
