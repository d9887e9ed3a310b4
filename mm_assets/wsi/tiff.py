"""What the TIFF structure itself says: is it whole and credible, and what is the resolution."""

import logging
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm_assets.wsi.watch import watched

if TYPE_CHECKING:
    import tifffile

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MICROMETRES_PER_UNIT = {2: 25_400.0, 3: 10_000.0, 4: 1_000.0, 5: 1.0}
_COARSEST_TAG_MPP = 10.0
# Scanners write tiles of 240 to 4096 px; every decoder allocates what the header announces.
_LARGEST_TILE_PX = 8192**2
# An all-white JPEG has 57 pixels a byte; this leaves room for slides of mostly absent tiles.
_MOST_PIXELS_PER_BYTE = 10_000


def is_tiff(path: Path) -> bool:
    """Whether the file begins like a TIFF or BigTIFF."""
    with path.open("rb") as file:
        return file.read(4) in _MAGIC


@watched
def find_damage(path: Path) -> str | None:
    """Why the TIFF is not whole or not credible, or None.

    OpenSlide opens files whose tail is missing and fails, or paints white, only when the missing
    tiles are read; what it allocates for a tile is what the header says. Here every directory,
    tile and strip of every page must lie inside the file, and sizes must agree with each other
    and with the file.
    """
    size = path.stat().st_size
    try:
        with _open(path) as file:
            if not _chain_ends(file):
                return "the file is truncated: a page directory lies beyond its end"
            return next(filter(None, (_fault(page, size) for page in _pages(file))), None)
    # The parser meets garbage with whatever exception the operation at hand has.
    except Exception as error:
        return f"the file is truncated or its TIFF structure is damaged ({type(error).__name__})"


def _fault(page: "tifffile.TiffPage", size: int) -> str | None:
    """What is wrong with one page of a file of `size` bytes."""
    width, height = page.imagewidth, page.imagelength
    name = f"page {page.index} ({width} x {height} px)"
    ends = [
        offset + count
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False)
        if count
    ]
    if ends and max(ends) > size:
        beyond = sum(end > size for end in ends)
        return (
            f"the file is truncated: {beyond} of {len(ends)} tiles of {name} lie beyond its "
            f"{size} bytes"
        )
    if not page.is_tiled:
        return None
    if page.tilewidth * page.tilelength > _LARGEST_TILE_PX:
        return (
            f"its header is damaged: {name} has tiles of {page.tilewidth} x {page.tilelength} px, "
            "which no scanner writes"
        )
    if width * height > size * _MOST_PIXELS_PER_BYTE:
        return f"its header is damaged: {name} cannot be in {size} bytes"
    tiles = math.ceil(width / page.tilewidth) * math.ceil(height / page.tilelength)
    tiles *= page.imagedepth * (page.samplesperpixel if page.planarconfig == 2 else 1)
    listed = len(page.dataoffsets), len(page.databytecounts)
    if listed != (tiles, tiles):
        return f"its header is damaged: {name} has {tiles} tiles, and lists {min(listed)}"
    return None


@watched
def resolution_mpp(path: Path) -> tuple[float, float] | None:
    """Micrometres per pixel in x and y from the first page's resolution tags, or None.

    Tags without a unit, and resolutions coarser than 10 um (2540 dpi), are what image software
    writes when it knows nothing (72, 96, 300 dpi; 1 pixel a millimetre): they say nothing.
    """
    import tifffile

    try:
        with _open(path) as file:
            tags = file.pages[0].aspage().tags
            unit = int(tags.valueof("ResolutionUnit", 2))
            values = [tags.valueof("XResolution"), tags.valueof("YResolution")]
    except (tifffile.TiffFileError, struct.error, IndexError, KeyError, TypeError, ValueError):
        return None
    if unit not in _MICROMETRES_PER_UNIT or not all(values):
        return None
    mpp_x, mpp_y = (_micrometres(value, _MICROMETRES_PER_UNIT[unit]) for value in values)
    return (mpp_x, mpp_y) if 0 < mpp_x <= _COARSEST_TAG_MPP else None


def _micrometres(resolution: Any, unit_micrometres: float) -> float:
    numerator, denominator = resolution
    return unit_micrometres * denominator / numerator if numerator else math.inf


def _pages(file: "tifffile.TiffFile") -> "Iterator[tifffile.TiffPage]":
    for entry in file.pages:
        page = entry.aspage()
        yield page
        for sub in page.pages or ():
            yield sub.aspage()


def _chain_ends(file: "tifffile.TiffFile") -> bool:
    """Whether the last directory found is the last one written.

    tifffile stops quietly at a directory it cannot reach, and the slide would lose its lower
    levels without a word.
    """
    len(file.pages)
    at = file.pages.next_page_offset
    if at is None:
        return False
    file.filehandle.seek(at)
    pointer = file.filehandle.read(file.tiff.offsetsize)
    return len(pointer) == file.tiff.offsetsize and not any(pointer)


def _open(path: Path) -> "tifffile.TiffFile":
    import tifffile

    # What it logs of damaged files is reported here, with the slide's name.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    return tifffile.TiffFile(path)
