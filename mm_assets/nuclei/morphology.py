"""Size, shape and stain of segmented nuclei, in micrometres."""

import numpy as np
import pandas as pd

from mm_assets.nuclei.detection import Labels
from mm_assets.nuclei.stain import Density

MORPHOLOGY = (
    "area_um2", "perimeter_um", "major_um", "minor_um", "eccentricity", "solidity",
    "hematoxylin_mean", "hematoxylin_sd", "eosin_mean",
)  # fmt: skip
_SHAPES = (
    "label", "centroid", "area", "perimeter", "axis_major_length", "axis_minor_length",
    "eccentricity", "solidity", "intensity_mean", "intensity_std",
)  # fmt: skip


def measure_nuclei(labels: Labels, densities: Density, mpp: float) -> pd.DataFrame:
    """Measure every nucleus.

    Parameters
    ----------
    labels
        int32 (H, W), 0 outside nuclei.
    densities
        float32 (H, W, 3), from `stain_densities`.

    Returns
    -------
    Index label; columns row and column (centroid, pixels; a pixel's centre is at whole numbers)
    and `MORPHOLOGY`, float32.
    """
    from skimage.measure import regionprops_table

    found = pd.DataFrame(regionprops_table(labels, densities, properties=_SHAPES))
    table = pd.DataFrame(
        {
            "row": found["centroid-0"],
            "column": found["centroid-1"],
            "area_um2": found["area"] * mpp**2,
            "perimeter_um": found["perimeter"] * mpp,
            "major_um": found["axis_major_length"] * mpp,
            "minor_um": found["axis_minor_length"] * mpp,
            "eccentricity": found["eccentricity"],
            "solidity": found["solidity"],
            "hematoxylin_mean": found["intensity_mean-0"],
            "hematoxylin_sd": found["intensity_std-0"],
            "eosin_mean": found["intensity_mean-1"],
        }
    ).astype(np.float32)
    return table.set_index(pd.Index(found["label"], name="label"))
