"""What a TIFF's levels are made of: where their compressed tiles lie, and how one is decoded."""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mm_assets.wsi.codestream import (
    APERIO_JPEG2000_RGB,
    DEFLATE,
    JPEG,
    LZW,
    NONE,
    OLD_DEFLATE,
)
from mm_assets.wsi.watch import watched

if TYPE_CHECKING:
    import tifffile

Pixels = NDArray[np.uint8]
Codec = Callable[..., Any]

ZSTANDARD = 50000
LOSSLESS = (NONE, LZW, DEFLATE, OLD_DEFLATE, ZSTANDARD)
RGB, YCBCR = 2, 6
CHANNELS = 3
END_MARKER = b"\xff\xd9"


@dataclass(frozen=True)
class TiledLevel:
    """Where the compressed tiles of a level lie in the file, and how one is decoded.

    Attributes
    ----------
    width, height
        Pixels of the level.
    tile_width, tile_height
        Pixels of a compressed tile.
    offsets, counts
        Bytes, row by row of tiles; a count of 0 is a tile that the file leaves out.
    decode
        ``decode(data, out=pixels)`` writes a compressed tile into uint8 (tile_height, tile_width,
        3), RGB.
    has_end_marker
        Whether every compressed tile ends with a marker that tells that it is whole.
    """

    width: int
    height: int
    tile_width: int
    tile_height: int
    offsets: Sequence[int]
    counts: Sequence[int]
    decode: Codec = field(repr=False)
    has_end_marker: bool

    @cached_property
    def columns(self) -> int:
        """Compressed tiles side by side."""
        return -(-self.width // self.tile_width)


@watched
def tiled_levels(path: Path) -> list[TiledLevel]:
    """Levels of a TIFF whose tiles can be decoded here; others are left out.

    Three 8-bit channels: JPEG (of NDPI, the pieces between restart markers), Aperio's JPEG 2000 in
    RGB, and what tifffile decodes without loss (uncompressed, Deflate, LZW, Zstandard).
    """
    import tifffile

    with tifffile.TiffFile(path) as file:
        pages = (page.aspage() for page in file.pages)
        found = [(page, _codec(page)) for page in pages if page.is_tiled]
        return [
            TiledLevel(
                page.imagewidth,
                page.imagelength,
                page.tilewidth,
                page.tilelength,
                page.dataoffsets,
                page.databytecounts,
                codec,
                has_end_marker=page.compression not in LOSSLESS and page.jpegheader is None,
            )
            for page, codec in found
            if codec is not None
        ]


def _codec(page: "tifffile.TiffPage") -> Codec | None:
    import imagecodecs

    plain = page.samplesperpixel == CHANNELS and page.bitspersample == 8 and page.planarconfig == 1
    if not plain:
        return None
    if page.compression == APERIO_JPEG2000_RGB:
        return decode_jpeg2000
    if page.compression == JPEG and page.photometric in (RGB, YCBCR):
        # Files that say RGB hold JPEG data without a colour transform and do not mark it.
        stored = RGB if page.photometric == RGB and not page.is_jfif else None
        codec = partial(
            imagecodecs.jpeg8_decode, tables=page.jpegtables, colorspace=stored, outcolorspace=RGB
        )
        return partial(_decode_restarted, codec, page.jpegheader) if page.jpegheader else codec
    if page.compression in LOSSLESS and page.photometric == RGB:
        return partial(_decode_lossless, page)
    return None


def decode_jpeg2000(data: memoryview, out: Pixels) -> None:
    """Refuse another size first: the decoder looks only after decoding what may be gigabytes."""
    import imagecodecs

    height, width = out.shape[:2]
    if data[8:24] != struct.pack(">4I", width, height, 0, 0):
        raise ValueError(f"the compressed tile is not of {width} x {height} px")
    decode: Codec = imagecodecs.jpeg2k_decode
    decode(data, out=out)


def _decode_restarted(codec: Codec, header: bytes, data: memoryview, out: Pixels) -> None:
    """Decode what lies between two restart markers of a JPEG as a JPEG of its own."""
    codec(b"".join((header, data, END_MARKER)), out=out)


def _decode_lossless(page: "tifffile.TiffPage", data: memoryview, out: Pixels) -> None:
    tile, _, _ = page.decode(bytes(data), 0, _fullsize=True)
    if tile is None or tile.shape[1:] != out.shape:
        raise ValueError("the tile is not of the announced size")
    np.copyto(out, tile[0])


def is_ended(data: memoryview) -> bool:
    """Whether a codestream is there to its end: the decoders paint a lost end grey and go on.

    JPEG and JPEG 2000 end with the same marker; some writers pad it.
    """
    return data[-2:] == END_MARKER or bytes(data).rstrip(b"\0\xff").endswith(END_MARKER)
