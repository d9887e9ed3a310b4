"""What a compressed tile carries besides pixels: comments, metadata segments, bytes after its end.

JPEG (ITU-T T.81, annex B) and JPEG 2000 codestreams (ITU-T T.800, annex A) are walked marker by
marker; nothing is decoded.
"""

import re
import zlib
from collections.abc import Iterator

NONE, LZW, JPEG, DEFLATE, OLD_DEFLATE = 1, 5, 7, 8, 32946
APERIO_JPEG2000_YCBCR, APERIO_JPEG2000_RGB = 33003, 33005
CHECKED_COMPRESSIONS = frozenset(
    (NONE, LZW, JPEG, DEFLATE, OLD_DEFLATE, APERIO_JPEG2000_YCBCR, APERIO_JPEG2000_RGB)
)

_SOI, _EOI, _SOS, _APP0, _APP14, _COM = 0xD8, 0xD9, 0xDA, 0xE0, 0xEE, 0xFE
_TABLES = frozenset((0xDB, 0xC4, 0xDD))
_FRAMES = frozenset((0xC0, 0xC1, 0xC2, 0xDC))
_AFTER_SCAN = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")

_SOC, _SOT, _SOD, _EOC, _J2K_COM = 0x4F, 0x90, 0x93, 0xD9, 0x64
_J2K_NUMERIC = frozenset(
    (0x50, 0x51, 0x52, 0x53, 0x55, 0x57, 0x58, 0x5C, 0x5D, 0x5E, 0x5F, 0x60, 0x61, 0x63)
)
# What encoders say about themselves.
_CODEC_COMMENT = re.compile(
    rb"\x00\x01(Kakadu-v?[\d.]{1,8}|Created by OpenJPEG version [\d.]{1,12}"
    rb"|Kdu-Layer-Info: log_2\{[A-Za-z0-9()\[\]/^*_-]{1,60}\}, L\(bytes\)\n"
    rb"( *-?[\d.]{1,12}, *[\d.]{1,12}e[+-]\d{1,3}\n)*)\x00?"
)


class Damaged(ValueError):
    """Not a sequence of markers that can be followed to its end."""


def foreign_content(data: bytes, compression: int, size: int) -> str | None:
    """What a compressed tile holds that is neither pixels nor needed to decode them, or None.

    Parameters
    ----------
    data
        The compressed tile.
    compression
        One of `CHECKED_COMPRESSIONS`, as in the TIFF tag. An LZW tile is not looked into.
    size
        Bytes of the tile without compression.
    """
    try:
        if compression == JPEG:
            return _first_foreign_in_jpeg(data)
        if compression in (APERIO_JPEG2000_RGB, APERIO_JPEG2000_YCBCR):
            return _first_foreign_in_jpeg2000(data)
        if compression in (DEFLATE, OLD_DEFLATE):
            return _after(_inflated_rest(data, size))
    except (ValueError, IndexError, zlib.error):
        return "data that cannot be followed to their end"
    return _after(data[size:]) if compression == NONE else None


def plain_tables(tables: bytes) -> tuple[bytes, bytes]:
    """JPEG tables of a TIFF page without comments and metadata segments, and what was left out.

    Raises
    ------
    Damaged
        They are not JPEG tables.
    """
    kept, left_out, end = b"", b"", 2
    for marker, start, end in _jpeg_segments(tables):
        if marker in _TABLES:
            kept += tables[start:end]
        elif marker != _EOI:
            left_out += tables[start:end]
    return b"\xff\xd8" + kept + b"\xff\xd9", left_out + tables[end:]


def _first_foreign_in_jpeg(data: bytes) -> str | None:
    for marker, start, end in _jpeg_segments(data):
        body = data[start + 4 : end]
        if marker == _EOI:
            return _after(data[end:])
        if marker == _APP0 and body[:5] == b"JFIF\0" and len(body) == 14 and not any(body[12:]):
            continue
        if marker == _APP14 and body[:5] == b"Adobe" and len(body) == 12:
            continue
        if marker not in _TABLES | _FRAMES | {_SOS}:
            return "a JPEG comment" if marker == _COM else f"a JPEG segment of type {marker:02X}"
    return None


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of every segment from the first to EOI; of a scan, its header."""
    if data[:2] != bytes((0xFF, _SOI)):
        raise Damaged("no start of image")
    at = 2
    while True:
        while data[at : at + 2] == b"\xff\xff":
            at += 1
        if at + 2 > len(data) or data[at] != 0xFF:
            raise Damaged("a marker is missing")
        marker = data[at + 1]
        if marker == _EOI:
            yield marker, at, at + 2
            return
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if not at + 4 <= end <= len(data):
            raise Damaged("a segment leads out of the tile")
        yield marker, at, end
        at = end
        if marker == _SOS:
            following = _AFTER_SCAN.search(data, end)
            if following is None:
                raise Damaged("no end of image")
            at = following.end() - 2


def _first_foreign_in_jpeg2000(data: bytes) -> str | None:
    if data[:2] != bytes((0xFF, _SOC)):
        raise Damaged("no start of codestream")
    at = 2
    while data[at : at + 2] != bytes((0xFF, _EOC)):
        part, length = at, 0
        marker = _marker(data, at)
        while marker != _SOD:
            body_end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
            if marker == _SOT:
                part, length = at, int.from_bytes(data[at + 6 : at + 10])
            elif marker == _J2K_COM:
                if not _CODEC_COMMENT.fullmatch(data[at + 4 : body_end]):
                    return "a JPEG 2000 comment"
            elif marker not in _J2K_NUMERIC:
                return f"a JPEG 2000 segment of type {marker:02X}"
            at, marker = body_end, _marker(data, body_end)
        # A length of 0 means: up to the end of the codestream, the first such bytes after a header.
        following = part + length if length else data.index(bytes((0xFF, _EOC)), at)
        if following <= at:
            raise Damaged("a tile part ends before it begins")
        at = following
    return _after(data[at + 2 :])


def _marker(data: bytes, at: int) -> int:
    if data[at] != 0xFF:
        raise Damaged("a marker is missing")
    return data[at + 1]


def _inflated_rest(data: bytes, size: int) -> bytes:
    stream = zlib.decompressobj()
    stream.decompress(data, size + 1)
    if not stream.eof:
        raise Damaged("no end of data")
    return stream.unused_data


def _after(rest: bytes) -> str | None:
    return "bytes after its end" if rest.strip(b"\0") else None
