"""A slide rewritten without anything that identifies: the same pixels in a new file.

Only what an allow-list names is carried over (Aperio's SVS and generic tiled TIFF): the compressed
tiles of the pyramid byte for byte, tags that decode and place them, resolution, magnification,
calibration, and colour profiles without their words. Photographs of the slide, every other tag and
whatever lies between the pages stay behind. Text inside the scanned pixels is not looked for.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import openslide

from mm_assets.wsi.aperio import NUMERIC_FIELDS, TITLE, build_description, parse_description
from mm_assets.wsi.byte_search import identifiers
from mm_assets.wsi.codestream import (
    CHECKED_COMPRESSIONS,
    foreign_content,
    plain_tables,
)
from mm_assets.wsi.errors import SlideError
from mm_assets.wsi.findings import (
    APERIO,
    DAMAGE,
    GENERIC,
    ICC_PROFILE,
    IMAGE_DESCRIPTION,
    JPEG_TABLES,
    Finding,
    identifying_findings,
    is_numeric_tag,
    raw_value,
)
from mm_assets.wsi.icc import plain_profile
from mm_assets.wsi.rescan import Unclean, rescan
from mm_assets.wsi.tiff_writer import Field, Page, write_tiff

if TYPE_CHECKING:
    import tifffile

EXTENSIONS = {APERIO: "svs", GENERIC: "tiff"}

_ASCII, _UNDEFINED = 2, 7
_REDUCED = 1
# Levels of odd sizes differ a little from the shape of level 0; photographs differ by far more.
_SHAPE_TOLERANCE, _ROUNDING_PX = 0.02, 4
_LARGEST_TILE_BYTES = 256 << 20
# Beyond this, offsets in a classic TIFF might not reach; the rest is for directories.
_LARGEST_CLASSIC = (1 << 32) - (64 << 20)
_SEPARATE = 2
# Empty tiles may share their bytes; the copy has them once for each tile.
_MOST_SHARING = 10
# Words that every copy may hold.
_CONSTANTS = " ".join((TITLE, *NUMERIC_FIELDS, "enUS")).lower()


def copy_extension(vendor: str) -> str:
    """Extension of the rewritten file of a slide of OpenSlide's format `vendor`.

    Raises
    ------
    SlideError
        Slides of this format are not rewritten.
    """
    if vendor not in EXTENSIONS:
        raise SlideError(
            f"slides of format {vendor} are not rewritten (slides.deidentify: copy knows Aperio "
            "SVS and generic tiled TIFF), and may hold a label image or names: convert it to a "
            "pyramidal TIFF, or put it into a cohort of its own with slides.deidentify: none"
        )
    return EXTENSIONS[vendor]


def deidentify_slide(source: Path, target: Path, names: Iterable[str] = ()) -> list[Finding]:
    """Write a copy of a slide that holds nothing that identifies, and prove it.

    The copy is read again by OpenSlide and tifffile: same format, levels, resolution and tiles, no
    byte without a purpose, and none of the texts found in the source's header in UTF-8, UTF-16 or
    base64. Memory does not grow with the slide.

    Parameters
    ----------
    source
        SVS or generic tiled TIFF.
    target
        File to write; removed again when anything is wrong.
    names
        Further texts that must not be in the copy, such as the patient's id.

    Returns
    -------
    What in the source identified.

    Raises
    ------
    SlideError
        The format is not rewritten, tiles hold more than pixels, or the copy is not clean.
    """
    import tifffile

    vendor = openslide.OpenSlide.detect_format(source)
    copy_extension(vendor or "unknown")
    try:
        found = identifying_findings(source)
        with tifffile.TiffFile(source) as file:
            pages = _levels(file, source, vendor == APERIO)
            with target.open("wb") as sink:
                write_tiff(sink, file.byteorder, _big(file, pages), _rewritten(file, pages, source))
        texts = identifiers([*names, *(text for finding in found for text in finding.texts)])
        telling = [text for text in texts if text.lower() not in _CONSTANTS]
        rescan(source, [page.index for page in pages], target, telling)
    except BaseException as error:
        target.unlink(missing_ok=True)
        raise _explained(error, source) from None
    return found


def _explained(error: BaseException, source: Path) -> BaseException:
    if isinstance(error, Unclean):
        return SlideError(f"{source.name}: its copy {error}; nothing was kept of it")
    if isinstance(error, (*DAMAGE, openslide.OpenSlideError)) and not isinstance(error, SlideError):
        return SlideError(
            f"{source.name} cannot be rewritten, its structure is damaged "
            f"({type(error).__name__}); copy or scan it again"
        )
    return error


def _levels(file: "tifffile.TiffFile", source: Path, aperio: bool) -> "list[tifffile.TiffPage]":
    """Pages that are OpenSlide's levels, in the order of the file."""
    if file.is_ome:
        raise SlideError(
            f"{source.name} is an OME-TIFF, whose levels and metadata are not rewritten: convert "
            "it to a pyramidal TIFF, or use slides.deidentify: none"
        )
    every = [entry.aspage() for entry in file.pages]
    levels = [
        page
        for page in every
        if page.is_tiled and (aperio or page.index == 0 or page.subfiletype & _REDUCED)
    ]
    for page in levels:
        _check_level(page, levels[0], source)
    if _size(levels) > _MOST_SHARING * file.filehandle.size:
        raise SlideError(
            f"{source.name}: its tiles claim far more bytes than the file has: its header is "
            "damaged; copy or scan it again"
        )
    with openslide.OpenSlide(source) as slide:
        if sorted(slide.level_dimensions) != sorted((p.imagewidth, p.imagelength) for p in levels):
            raise SlideError(
                f"{source.name}: OpenSlide's levels are not the tiled pages of the file, so it "
                "cannot be told which pages are the slide; export it again as a pyramidal TIFF"
            )
    return levels


def _check_level(page: "tifffile.TiffPage", base: "tifffile.TiffPage", source: Path) -> None:
    size = f"page {page.index} ({page.imagewidth} x {page.imagelength} px)"
    scale = base.imagewidth / page.imagewidth
    unlike = abs(base.imagelength / scale - page.imagelength)
    if unlike > max(_ROUNDING_PX, _SHAPE_TOLERANCE * page.imagelength) or scale < 1:
        raise SlideError(
            f"{source.name}: {size} does not have the shape of the slide and may be a photograph "
            "of it, with its label; export the slide again without that page"
        )
    if page.compression not in CHECKED_COMPRESSIONS or page.photometric not in (1, 2, 6):
        raise SlideError(
            f"{source.name}: texts cannot be ruled out in the way in which {size} is compressed "
            f"({int(page.compression)}); export the slide again with JPEG tiles"
        )


def _big(file: "tifffile.TiffFile", pages: "list[tifffile.TiffPage]") -> bool:
    # OpenSlide opens big-endian files as BigTIFF only: what the source is the copy must be.
    return bool(file.is_bigtiff) or _size(pages) > _LARGEST_CLASSIC


def _size(pages: "list[tifffile.TiffPage]") -> int:
    return sum(sum(page.databytecounts) for page in pages)


def _rewritten(
    file: "tifffile.TiffFile", pages: "list[tifffile.TiffPage]", source: Path
) -> Iterator[Page]:
    base = pages[0]
    for level, page in enumerate(pages):
        fields = [
            field for tag in page.tags if (field := _field(file, page, base, tag)) is not None
        ]
        yield Page(fields, _tiles(file, page, f"{source.name}: tile {{}} of level {level}"))


def _field(
    file: "tifffile.TiffFile",
    page: "tifffile.TiffPage",
    base: "tifffile.TiffPage",
    tag: "tifffile.TiffTag",
) -> Field | None:
    """The tag as it is carried over, or None."""
    raw = raw_value(file, tag)
    if is_numeric_tag(tag):
        return Field(tag.code, int(tag.dtype), tag.count, raw)
    if tag.code == IMAGE_DESCRIPTION and file.pages.first.description.startswith("Aperio"):
        numbers = parse_description(raw.rstrip(b"\0").decode("utf-8", "replace")).numbers
        plain = build_description(
            (base.imagewidth, base.imagelength),
            (page.imagewidth, page.imagelength),
            (page.tilewidth, page.tilelength),
            numbers,
        )
        return Field(tag.code, _ASCII, len(plain) + 1, plain.encode("ascii") + b"\0")
    value = None
    if tag.code == JPEG_TABLES:
        value, _ = plain_tables(raw)
    elif tag.code == ICC_PROFILE:
        value = plain_profile(raw)
    return Field(tag.code, _UNDEFINED, len(value), value) if value else None


def _tiles(file: "tifffile.TiffFile", page: "tifffile.TiffPage", where: str) -> Iterator[bytes]:
    samples = 1 if page.planarconfig == _SEPARATE else page.samplesperpixel
    size = page.tilewidth * page.tilelength * samples * page.bitspersample // 8
    for number, (offset, count) in enumerate(
        zip(page.dataoffsets, page.databytecounts, strict=True)
    ):
        if not count:
            yield b""
            continue
        if count > _LARGEST_TILE_BYTES or offset + count > file.filehandle.size:
            raise SlideError(f"{where.format(number)} cannot be in the file: scan or copy it again")
        file.filehandle.seek(offset)
        data = file.filehandle.read(count)
        foreign = foreign_content(data, page.compression, size)
        if foreign:
            raise SlideError(
                f"{where.format(number)} holds {foreign}, which may identify and cannot be taken "
                "out without touching the pixels; export the slide again without it"
            )
        yield data
