"""Writing a TIFF from tags and compressed tiles that are there already, byte for byte.

tifffile's writer derives tags from arrays; here tags and tiles are carried over as another file has
them, whatever their codec. Tiles are streamed, a page at a time, and every byte of the file belongs
to its header, a directory, a tag's value, a tile, or is a single zero before an even offset.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Literal

ByteOrder = Literal["<", ">"]

TILE_OFFSETS, TILE_BYTE_COUNTS = 324, 325
_LONG, _LONG8 = 4, 16


@dataclass(frozen=True)
class Field:
    """A tag: code, TIFF type, count, and its value in the byte order of the file."""

    code: int
    type: int
    count: int
    value: bytes


@dataclass(frozen=True)
class Page:
    """Tags of a page without those that locate its tiles, and its tiles; empty ones are left out
    of the file."""

    fields: Sequence[Field]
    tiles: Iterable[bytes]


def write_tiff(file: BinaryIO, order: ByteOrder, big: bool, pages: Iterable[Page]) -> None:
    """Write a TIFF, or a BigTIFF if `big`, into an empty file.

    Raises
    ------
    struct.error
        Four GiB are exceeded and `big` is false.
    """
    version = struct.pack(f"{order}HHH", 43, 8, 0) if big else struct.pack(f"{order}H", 42)
    file.write((b"II" if order == "<" else b"MM") + version)
    number, type_ = ("Q", _LONG8) if big else ("I", _LONG)
    link = file.tell()
    file.write(struct.pack(order + number, 0))
    for page in pages:
        offsets, counts = [], []
        for tile in page.tiles:
            offsets.append(file.tell() if tile else 0)
            counts.append(len(tile))
            file.write(tile)
        places = [
            Field(code, type_, len(values), struct.pack(f"{order}{len(values)}{number}", *values))
            for code, values in ((TILE_OFFSETS, offsets), (TILE_BYTE_COUNTS, counts))
        ]
        fields = sorted([*page.fields, *places], key=lambda field: field.code)
        link = _write_directory(file, order, big, fields, link)


def _write_directory(
    file: BinaryIO, order: ByteOrder, big: bool, fields: Sequence[Field], link: int
) -> int:
    """Write a directory and its values; returns where the offset of the next one belongs."""
    number, counter = ("Q", "Q") if big else ("I", "H")
    # Bytes of the number of entries, of an entry, and of an offset or a value beside its tag.
    head, entry, inline = (8, 20, 8) if big else (2, 12, 4)
    file.write(bytes(file.tell() % 2))
    start = file.tell()
    file.seek(link)
    file.write(struct.pack(order + number, start))
    file.seek(start)
    link = start + head + entry * len(fields)
    entries, values, at = [], [], link + inline
    for field in fields:
        described = struct.pack(f"{order}HH{number}", field.code, field.type, field.count)
        if len(field.value) <= inline:
            entries.append(described + field.value.ljust(inline, b"\0"))
            continue
        entries.append(described + struct.pack(order + number, at))
        values.append(field.value + bytes(len(field.value) % 2))
        at += len(values[-1])
    file.write(struct.pack(order + counter, len(fields)))
    file.write(b"".join(entries) + struct.pack(order + number, 0) + b"".join(values))
    return link
