"""Small operations on masks that several steps of tissue detection share."""

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def without_small(mask: Mask, least_px: float) -> Mask:
    """The mask without 4-connected components of fewer pixels."""
    import cv2

    if not mask.any():
        return mask
    _, labels = cv2.connectedComponents(as_bytes(mask), connectivity=4)
    keep = np.bincount(labels.ravel()) >= least_px
    keep[0] = False
    return np.asarray(keep.take(np.asarray(labels, np.int32)), bool)


def disc(diameter_um: float, pixel_um: float) -> NDArray[np.uint8]:
    """Structuring element of an odd number of pixels across, 1 or more."""
    import cv2

    edge = max(1, round(diameter_um / pixel_um)) | 1
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (edge, edge)), dtype=np.uint8)


def as_bytes(mask: Mask) -> NDArray[np.uint8]:
    """The same memory as uint8, as OpenCV wants it."""
    return np.ascontiguousarray(mask).view(np.uint8)
