"""Whether a file is a slide that can be used, and what it is."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import openslide

from mm_assets.wsi.errors import SlideError
from mm_assets.wsi.resolution import MppSource
from mm_assets.wsi.slide import Slide, check_present, open_slide
from mm_assets.wsi.tiff import find_damage, is_tiff

SMALLEST_SIDE_PX = 64
LARGEST_SIDE_PX = 1_000_000
LARGEST_SIDE_MM = 200.0


@dataclass(frozen=True)
class SlideFacts:
    """What a slide is, without any header text that could name a person, place or date.

    Attributes
    ----------
    vendor
        OpenSlide's name of the format.
    width, height
        Level-0 pixels.
    mpp, mpp_source, mpp_note
        Micrometres per level-0 pixel, its source, and a remark when the manifest disagrees.
    levels
        Width, height and downsample of each level, finest first.
    magnification
        Objective power, where the header states it.
    has_label, has_macro
        Whether the file carries these photographs, which may show identifying text.
    """

    vendor: str
    width: int
    height: int
    mpp: float
    mpp_source: MppSource
    mpp_note: str
    levels: tuple[tuple[int, int, float], ...]
    magnification: float | None
    has_label: bool
    has_macro: bool
    size_bytes: int


def inspect_slide(path: Path, mpp: float | None) -> SlideFacts:
    """Check that a slide is whole, readable and of known scale, and describe it.

    Parameters
    ----------
    path
        Local file.
    mpp
        The manifest's micrometres per pixel, used when the header has none; None or NaN if absent.

    Raises
    ------
    SlideError
        Missing, empty, not a slide, truncated, undecodable, of unknown or implausible resolution,
        or of absurd dimensions; each with its own sentence.
    """
    check_present(path)
    # The structure first: a file that lost its end is otherwise called no slide at all.
    damage = find_damage(path) if is_tiff(path) else None
    if damage:
        raise SlideError(f"{path.name}: {damage}; copy or scan it again")
    with open_slide(path, mpp) as slide:
        slide.check_decodes()
        _check_dimensions(slide)
        properties = slide.properties
        return SlideFacts(
            vendor=properties[openslide.PROPERTY_NAME_VENDOR],
            width=slide.width,
            height=slide.height,
            mpp=slide.mpp,
            mpp_source=slide.resolution.source,
            mpp_note=slide.resolution.note,
            levels=slide.levels,
            magnification=_number(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER)),
            has_label="label" in slide.photographs,
            has_macro="macro" in slide.photographs,
            size_bytes=path.stat().st_size,
        )


def slide_digest(path: Path) -> str:
    """SHA-256 of the file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_dimensions(slide: Slide) -> None:
    shape = f"{slide.name} is {slide.width} x {slide.height} px"
    if min(slide.width, slide.height) < SMALLEST_SIDE_PX:
        raise SlideError(f"{shape}: too small to hold tissue")
    longest = max(slide.width, slide.height)
    if longest > LARGEST_SIDE_PX:
        raise SlideError(f"{shape}: no scanner makes that, its header must be damaged")
    if longest * slide.mpp / 1000 > LARGEST_SIDE_MM:
        raise SlideError(
            f"{shape} of {slide.mpp:g} um, {longest * slide.mpp / 1000:.0f} mm long: no glass is "
            "that large, give the right mpp in the manifest"
        )


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
