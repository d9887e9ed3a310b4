"""Second look at a rewritten slide, with readers that did not write it.

OpenSlide and tifffile open the copy; every one of its bytes must be accounted for.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import openslide

from mm_assets.wsi.aperio import NUMERIC_FIELDS, is_plain
from mm_assets.wsi.byte_search import SHORTEST_AMONG_PIXELS, SHORTEST_TEXT, ByteSearch
from mm_assets.wsi.findings import (
    IMAGE_DESCRIPTION,
    identifying_findings,
    raw_value,
    unreferenced,
)

if TYPE_CHECKING:
    import tifffile

_STANDARD_PROPERTIES = ("openslide.", "tiff.XRes", "tiff.YRes", "tiff.ResolutionUnit")
_SAMPLE_PX = 64


class Unclean(ValueError):
    """The copy differs from what it should be; says in what, without any identifying text."""


def rescan(source: Path, pages: Iterable[int], copy: Path, texts: Iterable[str]) -> None:
    """Check that a copy shows the same slide and nothing that identifies.

    Parameters
    ----------
    source
        The slide that was copied.
    pages
        Numbers of its pages that are in the copy.
    copy
        The copy.
    texts
        What must not be found in the bytes of the copy.

    Raises
    ------
    Unclean
        A photograph, a text or bytes without a purpose remain, or pixels differ.
    """
    import tifffile

    found = identifying_findings(copy)
    if found:
        raise Unclean(f"still has: {', '.join(finding.what for finding in found)}")
    texts = list(texts)
    with tifffile.TiffFile(copy) as file:
        _check_structure(file)
        _check_descriptions(file, texts)
        with tifffile.TiffFile(source) as original:
            _check_tiles([original.pages[number].aspage() for number in pages], file)
    for _, at in ByteSearch(texts, SHORTEST_AMONG_PIXELS).in_file(copy):
        raise Unclean(f"has an identifying text of the source at byte {at}")
    _check_view(source, copy)


def _check_structure(file: "tifffile.TiffFile") -> None:
    for start, end in unreferenced(file):
        file.filehandle.seek(start)
        if file.filehandle.read(end - start) != b"\0":
            raise Unclean(f"has bytes {start} to {end} that no page refers to")
    for page in file.pages:
        if not page.aspage().is_tiled or page.aspage().pages:
            raise Unclean(f"has a page {page.index} that is no level")


def _check_descriptions(file: "tifffile.TiffFile", texts: list[str]) -> None:
    search = ByteSearch(texts, SHORTEST_TEXT)
    for page in (entry.aspage() for entry in file.pages):
        tag = page.tags.get(IMAGE_DESCRIPTION)
        if tag is None:
            continue
        raw = raw_value(file, tag).rstrip(b"\0")
        if not is_plain(raw.decode("ascii")):
            raise Unclean(f"has an unusual description on page {page.index}")
        if any(search.in_bytes(raw)):
            raise Unclean(f"has an identifying text of the source on page {page.index}")


def _check_tiles(originals: "list[tifffile.TiffPage]", file: "tifffile.TiffFile") -> None:
    copies = [page.aspage() for page in file.pages]
    if len(copies) != len(originals):
        raise Unclean(f"has {len(copies)} levels instead of {len(originals)}")
    for level, (original, copied) in enumerate(zip(originals, copies, strict=True)):
        if len(original.databytecounts) != len(copied.databytecounts):
            raise Unclean(f"has another number of tiles in level {level}")
        for number, (before, after) in enumerate(
            zip(_tiles(original), _tiles(copied), strict=True)
        ):
            if before != after:
                raise Unclean(f"has other bytes in tile {number} of level {level}")


def _tiles(page: "tifffile.TiffPage") -> Iterator[bytes]:
    file = page.parent.filehandle
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        if count:
            file.seek(offset)
        yield file.read(count) if count else b""


def _check_view(source: Path, copy: Path) -> None:
    with (
        closing(openslide.OpenSlide(source)) as before,
        closing(openslide.OpenSlide(copy)) as after,
    ):
        for what, same in (
            ("format", _property(before, "vendor") == _property(after, "vendor")),
            ("levels", before.level_dimensions == after.level_dimensions),
            ("scales of levels", before.level_downsamples == after.level_downsamples),
            (
                "magnification",
                _property(before, "objective-power") == _property(after, "objective-power"),
            ),
            ("resolution", all(_close(before, after, key) for key in ("mpp-x", "mpp-y"))),
            (
                "pixels",
                all(_same_pixels(before, after, level) for level in range(before.level_count)),
            ),
        ):
            if not same:
                raise Unclean(f"shows other {what} in OpenSlide")
        if len(after.associated_images):
            raise Unclean("has photographs in OpenSlide")
        allowed = {f"aperio.{name}" for name in NUMERIC_FIELDS} | {"tiff.ImageDescription"}
        for key in after.properties:
            if key not in allowed and not key.startswith(_STANDARD_PROPERTIES):
                raise Unclean("has an unusual property in OpenSlide")


def _property(slide: openslide.OpenSlide, name: str) -> str | None:
    return slide.properties.get(f"openslide.{name}")


def _close(before: openslide.OpenSlide, after: openslide.OpenSlide, name: str) -> bool:
    values = [_property(slide, name) for slide in (before, after)]
    if None in values:
        return values[0] == values[1]
    return math.isclose(*(float(value or "nan") for value in values), rel_tol=1e-5)


def _same_pixels(before: openslide.OpenSlide, after: openslide.OpenSlide, level: int) -> bool:
    place = (before.dimensions[0] // 2, before.dimensions[1] // 2)
    size = (_SAMPLE_PX, _SAMPLE_PX)
    shown, copied = (slide.read_region(place, level, size) for slide in (before, after))
    return np.array_equal(np.asarray(shown), np.asarray(copied))
