"""What in a slide file may tell who, where and when: photographs, header texts, stray bytes."""

import re
import struct
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from heapq import nlargest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openslide

from mm_assets.wsi.aperio import parse_description
from mm_assets.wsi.codestream import Damaged, plain_tables
from mm_assets.wsi.icc import plain_profile, worded_tags

if TYPE_CHECKING:
    import tifffile

APERIO, GENERIC = "aperio", "generic-tiff"
# What tifffile and reading by offsets raise on damaged files; its own error is a ValueError.
DAMAGE = (ValueError, TypeError, LookupError, ArithmeticError, struct.error)

IMAGE_DESCRIPTION, JPEG_TABLES, ICC_PROFILE = 270, 347, 34675
_SHORT, _LONG, _RATIONAL, _LONG8 = 3, 4, 5, 16
_WHOLE = (_SHORT, _LONG, _LONG8)
# Code -> TIFF types and the largest count with which a tag is geometry, resolution or decoding.
NUMERIC_TAGS: dict[int, tuple[tuple[int, ...], int]] = {
    254: (_WHOLE, 1),  # NewSubfileType
    256: (_WHOLE, 1),  # ImageWidth
    257: (_WHOLE, 1),  # ImageLength
    258: (_WHOLE, 8),  # BitsPerSample
    259: (_WHOLE, 1),  # Compression
    262: (_WHOLE, 1),  # PhotometricInterpretation
    266: (_WHOLE, 1),  # FillOrder
    274: (_WHOLE, 1),  # Orientation
    277: (_WHOLE, 1),  # SamplesPerPixel
    282: ((_RATIONAL,), 1),  # XResolution
    283: ((_RATIONAL,), 1),  # YResolution
    284: (_WHOLE, 1),  # PlanarConfiguration
    296: (_WHOLE, 1),  # ResolutionUnit
    317: (_WHOLE, 1),  # Predictor
    322: (_WHOLE, 1),  # TileWidth
    323: (_WHOLE, 1),  # TileLength
    338: (_WHOLE, 4),  # ExtraSamples
    339: (_WHOLE, 8),  # SampleFormat
    529: ((_RATIONAL,), 3),  # YCbCrCoefficients
    530: (_WHOLE, 2),  # YCbCrSubSampling
    531: (_WHOLE, 1),  # YCbCrPositioning
    532: ((_RATIONAL,), 6),  # ReferenceBlackWhite
    32997: (_WHOLE, 1),  # ImageDepth
}
# Strips and tiles: StripOffsets, RowsPerStrip, StripByteCounts, TileOffsets, TileByteCounts.
_PLACES = frozenset((273, 278, 279, 324, 325))
_PIECE = 1 << 20
_PLAIN_NUMBER = re.compile(r"-?\d{1,6}(\.\d{1,6})?")
# Runs of ASCII and UTF-8; in binary data the longest are the likeliest to be words.
_PRINTABLE = re.compile(rb"(?:[\x20-\x7e]|[\xc2-\xf4][\x80-\xbf]{1,3}){4,}")
_MOST_RUNS = 50
_KNOWN_KEY = re.compile(r"[A-Za-z][A-Za-z ]{1,24}")


@dataclass(frozen=True)
class Finding:
    """Something that may identify a person, an institution or a date.

    Attributes
    ----------
    what
        Its kind and place; never its content.
    texts
        The texts found there.
    """

    what: str
    texts: frozenset[str] = field(default=frozenset(), repr=False)


def identifying_findings(path: Path) -> list[Finding]:
    """What in a slide file is no pixel, geometry, optics or calibration, each place once.

    Counted are photographs (label, macro, thumbnail), header fields outside the allow-list or with
    something else than a plausible number, tags outside the allow-list, words in colour profiles
    and JPEG tables, and bytes that no page refers to. The same field on several pages is one
    finding. Compressed tiles are not looked into.

    Raises
    ------
    openslide.OpenSlideError
        OpenSlide does not open the file.
    """
    vendor = openslide.OpenSlide.detect_format(path)
    with closing(openslide.OpenSlide(path)) as slide:
        found = [Finding(f"{name} image") for name in slide.associated_images]
        try:
            in_header = _in_tiff(path) if vendor in (APERIO, GENERIC) else _in_properties(slide)
        except DAMAGE:
            in_header = [Finding("a header that cannot be read to its end")]
    return found + in_header


def is_numeric_tag(tag: "tifffile.TiffTag") -> bool:
    """Whether a tag is one of `NUMERIC_TAGS`, with a value of the right type and size."""
    types, count = NUMERIC_TAGS.get(tag.code, ((), 0))
    return tag.dtype in types and tag.count <= count


def raw_value(file: "tifffile.TiffFile", tag: "tifffile.TiffTag") -> bytes:
    """Bytes of a tag's value as they are in the file."""
    file.filehandle.seek(tag.valueoffset)
    return bytes(file.filehandle.read(tag.valuebytecount))


def unreferenced(file: "tifffile.TiffFile") -> list[tuple[int, int]]:
    """Start and end of the stretches of a file that no page refers to."""
    size = file.filehandle.size
    spans = [(0, 16 if file.is_bigtiff else 8)]
    for page in pages_of(file):
        spans.append(_directory_span(file, page))
        spans += [(tag.valueoffset, tag.valuebytecount) for tag in page.tags]
        spans += zip(page.dataoffsets, page.databytecounts, strict=False)
    every = np.array([(start, start + count) for start, count in spans if start < size], np.int64)
    every = every[np.argsort(every[:, 0], kind="stable")]
    ends = np.maximum.accumulate(every[:, 1])
    starts = np.append(every[1:, 0], size)
    gaps = starts > ends
    return [(int(a), int(b)) for a, b in zip(ends[gaps], starts[gaps], strict=True)]


def pages_of(file: "tifffile.TiffFile") -> "Iterator[tifffile.TiffPage]":
    """Every page of a file and, behind it, its sub-pages."""
    for entry in file.pages:
        page = entry.aspage()
        yield page
        for sub in page.pages or ():
            yield sub.aspage()


def _directory_span(file: "tifffile.TiffFile", page: "tifffile.TiffPage") -> tuple[int, int]:
    counter, entry, link = ("Q", 20, 8) if file.is_bigtiff else ("H", 12, 4)
    file.filehandle.seek(page.offset)
    head = struct.calcsize(f"<{counter}")
    (count,) = struct.unpack(file.byteorder + counter, file.filehandle.read(head))
    return page.offset, head + entry * count + link


def _in_properties(slide: openslide.OpenSlide) -> list[Finding]:
    return [
        Finding(f"header field {key}", frozenset((value,)))
        for key, value in slide.properties.items()
        if not key.startswith("openslide.") and not _PLAIN_NUMBER.fullmatch(value)
    ]


def _in_tiff(path: Path) -> list[Finding]:
    import tifffile

    texts: dict[str, set[str]] = {}
    with tifffile.TiffFile(path) as file:
        aperio = file.pages.first.description.startswith("Aperio")
        for page in pages_of(file):
            if not (page.is_tiled or aperio):
                texts.setdefault("image beside the levels", set())
            for tag in page.tags:
                for what, text in _in_tag(file, tag, aperio):
                    texts.setdefault(what, set()).update(text)
        for start, end in unreferenced(file):
            stray = _first_stray(file, start, end)
            if stray:
                where = "bytes that no page refers to"
                texts.setdefault(where, set()).update(_printable(stray))
    return [Finding(what, frozenset(found)) for what, found in texts.items()]


def _first_stray(file: "tifffile.TiffFile", start: int, end: int) -> bytes:
    """The first piece of a stretch of the file that is not all zeros; empty where all is."""
    file.filehandle.seek(start)
    for at in range(start, end, _PIECE):
        piece = file.filehandle.read(min(_PIECE, end - at)).strip(b"\0")
        if piece:
            return bytes(piece)
    return b""


def _in_tag(
    file: "tifffile.TiffFile", tag: "tifffile.TiffTag", aperio: bool
) -> Iterator[tuple[str, Iterable[str]]]:
    """Finding and its texts, of one tag."""
    if tag.code in _PLACES or is_numeric_tag(tag):
        return
    raw = raw_value(file, tag)
    if tag.code == IMAGE_DESCRIPTION and aperio:
        yield from _in_description(_text(raw.rstrip(b"\0")))
    elif tag.code == ICC_PROFILE:
        if plain_profile(raw) != raw:
            words = b"\n".join(worded_tags(raw))
            yield "words or dates in the colour profile", _printable(words)
    elif tag.code == JPEG_TABLES:
        left_out = _left_out(raw)
        if left_out:
            yield "comments in the JPEG tables", _printable(left_out)
    else:
        yield f"TIFF tag {tag.name}", [*_printable(raw), *_strings(tag.value)]


def _in_description(text: str) -> Iterator[tuple[str, Iterable[str]]]:
    description = parse_description(text)
    if description.head and not _photograph(description.head):
        yield "text before the header's first field", (description.head,)
    for key, value in description.others.items():
        if _KNOWN_KEY.fullmatch(key):
            yield f"header field {key}", (value,)
        else:
            yield "header field without a usual name", (key, value)


def _photograph(head: str) -> bool:
    """Whether a description says only that its page is a label or macro image of some size."""
    return bool(re.fullmatch(r"Aperio [\w. ]{1,40}\s*(label|macro) \d+x\d+\s*", head))


def _left_out(tables: bytes) -> bytes:
    try:
        return plain_tables(tables)[1]
    except Damaged:
        return tables


def _printable(raw: bytes) -> list[str]:
    # Without its zeros UTF-16 reads like UTF-8.
    runs = {run for data in (raw, raw.replace(b"\0", b"")) for run in _PRINTABLE.findall(data)}
    return [_text(run) for run in nlargest(_MOST_RUNS, runs, key=len)]


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _strings(value: Any) -> Iterator[str]:
    """Texts in what tifffile makes of a tag (an EXIF directory becomes a dictionary)."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, bytes):
        yield from _printable(value)
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from _strings(inner)
