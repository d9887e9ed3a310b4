"""Optical density apart by stain: colour deconvolution (Ruifrok and Johnston 2001)."""

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Density = NDArray[np.float32]

_DENSITY_OF = (-np.log10((np.arange(256) + 1) / 256)).astype(np.float32)


def stain_densities(rgb: Pixels) -> Density:
    """Density of haematoxylin, eosin and the residual in every pixel.

    Parameters
    ----------
    rgb
        uint8 (H, W, 3); white is taken as no stain.

    Returns
    -------
    float32 (H, W, 3); where colours do not fit the stains, values may be negative.
    """
    from skimage.color import hed_from_rgb

    return np.asarray(_DENSITY_OF[rgb] @ hed_from_rgb.astype(np.float32), np.float32)
