"""Micrometres per pixel of a slide: from its header, else the manifest, else the TIFF tags."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mm_assets.wsi.errors import SlideError
from mm_assets.wsi.tiff import is_tiff, resolution_mpp

FINEST_MPP, COARSEST_MPP = 0.05, 20.0
MppSource = Literal["header", "manifest", "tiff tags"]


@dataclass(frozen=True)
class Resolution:
    """Micrometres per pixel of level 0, where it comes from, and a remark when sources disagree."""

    mpp: float
    source: MppSource
    note: str = ""


def resolve_mpp(path: Path, properties: Mapping[str, str], manifest: float | None) -> Resolution:
    """Micrometres per pixel of level 0; never a guess.

    Parameters
    ----------
    path
        The slide file, for its TIFF tags.
    properties
        OpenSlide's properties.
    manifest
        Value of the manifest, None or NaN when it gives none.

    Raises
    ------
    SlideError
        No source has a value, or the value is not plausible for a microscope slide.
    """
    given = None if manifest is None or math.isnan(manifest) else manifest
    header = _header_mpp(properties)
    if header is not None and (_plausible(*header) or given is None):
        mpp = _checked(path, *header, "its header")
        return Resolution(mpp, "header", _disagreement(mpp, given))
    if given is not None:
        return Resolution(_checked(path, given, given, "the manifest"), "manifest")
    tags = resolution_mpp(path) if is_tiff(path) else None
    if tags is not None:
        return Resolution(_checked(path, *tags, "its TIFF resolution tags"), "tiff tags")
    raise SlideError(
        f"{path.name} does not say how many micrometres a pixel is: give mpp in the manifest"
    )


def _header_mpp(properties: Mapping[str, str]) -> tuple[float, float] | None:
    """The scanner's own statement; OpenSlide fills generic TIFFs' from the resolution tags."""
    if properties.get("openslide.vendor") == "generic-tiff":
        return None
    try:
        mpp_x = float(properties["openslide.mpp-x"])
        return mpp_x, float(properties.get("openslide.mpp-y", mpp_x))
    except (KeyError, ValueError):
        return None


def _plausible(mpp_x: float, mpp_y: float) -> bool:
    in_range = FINEST_MPP <= mpp_x <= COARSEST_MPP and FINEST_MPP <= mpp_y <= COARSEST_MPP
    return in_range and abs(mpp_x - mpp_y) <= 0.05 * mpp_x


def _checked(path: Path, mpp_x: float, mpp_y: float, source: str) -> float:
    if not _plausible(mpp_x, mpp_y):
        raise SlideError(
            f"{path.name} would have pixels of {mpp_x:.4g} x {mpp_y:.4g} um according to {source}: "
            f"square pixels of {FINEST_MPP} to {COARSEST_MPP:g} um are plausible; give the right "
            "mpp in the manifest"
        )
    # Five digits are far below any scanner's calibration; binary noise beyond them would turn a
    # tile of exactly 256 px into one of 257.
    return float(f"{(mpp_x + mpp_y) / 2:.5g}")


def _disagreement(header: float, manifest: float | None) -> str:
    if manifest is None or abs(manifest - header) <= 0.05 * header:
        return ""
    return f"the manifest says {manifest:g} um a pixel, the header's {header:g} was used"
