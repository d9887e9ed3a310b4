"""Slides with names, dates and numbers of patients planted wherever a file has room for them."""

import base64
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from PIL import ImageCms

from mm_assets_tests.wsi import painted

TILE = 128
PIXELS = painted.glass(300, 400)
painted.ellipse(PIXELS, (150, 200), (90, 120), painted.PINK)

JPEG, JPEG_2000, DEFLATE, LZW, NONE = "jpeg", "aperio_jp2000_rgb", "deflate", "lzw", None
COMMENT = b"\xff\xfe"
_BEFORE_EXIF = 34664


@dataclass(frozen=True)
class Person:
    """Texts that may not be in a copy."""

    name: str
    number: str
    born: str
    accession: str

    @classmethod
    def drawn(cls, seed: int) -> "Person":
        random = np.random.default_rng(seed)
        pick = lambda *words: words[random.integers(len(words))]  # noqa: E731
        name = f"{pick('DOE', 'Nguyen', 'Müller', 'OKAFOR')}^{pick('Jane', 'JOHN', 'Zoë')}{seed}"
        return cls(
            name,
            f"MRN{random.integers(10**7, 10**8)}",
            f"19{random.integers(30, 99)}-{random.integers(10, 13)}-{random.integers(10, 29)}",
            f"S{random.integers(10, 30)}-{random.integers(10000, 99999)}",
        )

    def texts(self) -> tuple[str, ...]:
        return self.name, self.number, self.born, self.accession


@dataclass(frozen=True)
class Kind:
    """How a slide is written."""

    aperio: bool = True
    compression: str | None = JPEG
    byteorder: str = "<"
    big: bool = False

    @classmethod
    def drawn(cls, seed: int) -> "Kind":
        random = np.random.default_rng(seed)
        aperio = bool(random.integers(2))
        codecs = (JPEG, JPEG_2000) if aperio else (JPEG, DEFLATE, LZW, NONE)
        # OpenSlide opens no big-endian files but BigTIFF.
        byteorder, big = (("<", False), ("<", True), (">", True))[random.integers(3)]
        return cls(aperio, codecs[random.integers(len(codecs))], byteorder, big)


def plant(folder: Path, person: Person, kind: Kind) -> Path:
    """A two-level slide full of identifying texts, with label and macro images."""
    path = folder / f"{person.accession}.{'svs' if kind.aperio else 'tif'}"
    with tifffile.TiffWriter(path, byteorder=kind.byteorder, bigtiff=kind.big) as writer:
        _level(writer, PIXELS, 0, person, kind)
        if kind.aperio:
            _photograph(writer, PIXELS[::3, ::3], f"Aperio Image Library v1\n{person.name}", 0)
        _level(writer, PIXELS[::2, ::2].copy(), 1, person, kind)
        _photograph(writer, _label(person), "Aperio Image Library v1\nlabel 80x60", 1)
        _photograph(writer, _label(person), "Aperio Image Library v1\nmacro 80x60", 9)
    _append_exif(path, person, kind)
    with path.open("ab") as file:
        file.write(f"\n{person.name}\n".encode("utf-16-be") + person.number.encode())
    return path


def description(person: Person, size: str = "400x300 (128x128) JPEG/RGB Q=70") -> str:
    """An Aperio description with harmless numbers, texts, and texts where numbers belong."""
    return "|".join(
        [
            f"Aperio Image Library v12.0.15\r\n{size}",
            "AppMag = 20",
            "MPP = 0.4990",
            f"Filename = {person.accession}",
            f"Title = {person.name} {person.born}".encode("ascii", "replace").decode(),
            f"User = {base64.b64encode(person.name.encode()).decode()}",
            f"ImageID = {person.number}",
            f"Left = {person.number[3:]}",
            f"{person.number} = 1",
            "LineCameraSkew = -0.000424",
            f"Date = {person.born}",
        ]
    )


def encoded(tile: np.ndarray, compression: str | None, byteorder: str = "<") -> bytes:
    """One compressed tile."""
    if compression == JPEG:
        return bytes(imagecodecs.jpeg8_encode(tile, level=80))
    if compression == JPEG_2000:
        return bytes(imagecodecs.jpeg2k_encode(tile, level=60, codecformat="j2k"))
    if compression == DEFLATE:
        return bytes(imagecodecs.zlib_encode(tile))
    return bytes(imagecodecs.lzw_encode(tile)) if compression == LZW else tile.tobytes()


def commented_tables(tile: bytes, text: str) -> bytes:
    """JPEG tables as in a JPEG tile, with a comment."""
    start = tile.index(b"\xff\xdb")
    (length,) = struct.unpack_from(">H", tile, start + 2)
    return b"\xff\xd8" + segment(COMMENT, text) + tile[start : start + 2 + length] + b"\xff\xd9"


def segment(marker: bytes, text: str) -> bytes:
    """A JPEG segment with a text."""
    return marker + struct.pack(">H", len(text.encode()) + 2) + text.encode()


def profile(person: Person) -> bytes:
    """sRGB with a name in place of its description."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    wide = "sRGB built-in".encode("utf-16-be")
    assert wide in srgb
    return srgb.replace(wide, person.number.ljust(13).encode("utf-16-be"))


def _level(
    writer: tifffile.TiffWriter, image: np.ndarray, level: int, person: Person, kind: Kind
) -> None:
    height, width = image.shape[:2]
    tiles = [
        encoded(np.ascontiguousarray(part), kind.compression)
        for part in _cut(np.pad(image, ((0, -height % TILE), (0, -width % TILE), (0, 0))))
    ]
    options: dict[str, Any] = {}
    if kind.compression == JPEG:
        options["jpegtables"] = commented_tables(tiles[0], person.name)
        options["subsampling"] = (2, 2)
    size = f"400x300 ({TILE}x{TILE})" + (f" -> {width}x{height}" if level else "")
    text = description(person, size) if kind.aperio else f"{person.name} {person.born}"
    writer.write(
        iter(tiles),
        shape=image.shape,
        dtype=np.uint8,
        tile=(TILE, TILE),
        photometric="ycbcr" if kind.compression == JPEG else "rgb",
        compression=kind.compression,
        subfiletype=0 if kind.aperio else level,
        description=text.encode(),
        software=f"Scanner of {person.name}".encode(),
        datetime=f"{person.born.replace('-', ':')} 09:59:15",
        resolution=(20_000, 20_000),
        resolutionunit="CENTIMETER",
        iccprofile=profile(person),
        metadata=None,
        extratags=_tags(person),
        **options,
    )


def _tags(person: Person) -> list[tuple[Any, ...]]:
    xmp = f"<x:xmpmeta><dc:creator>{person.name}</dc:creator></x:xmpmeta>".encode()
    iptc = b"\x1c\x02\x50\x00\x08" + person.name.encode()
    wide = person.name.encode("utf-16-le") + b"\0\0"
    packed = base64.b64encode(person.texts()[1].encode())
    return [
        (315, 2, None, person.name.encode() + b"\0", False),  # Artist
        (316, 2, None, person.accession.encode() + b"\0", False),  # HostComputer
        (271, 2, None, packed + b"\0", False),  # Make
        (700, 1, len(xmp), xmp, False),
        (33723, 7, len(iptc), iptc, False),
        (34377, 7, len(iptc), b"8BIM" + iptc[4:], False),  # Photoshop
        (40093, 1, len(wide), wide, False),  # XPAuthor
        (65000, 7, len(xmp), xmp, False),  # private
        (_BEFORE_EXIF, 4, 1, 0, False),  # becomes the EXIF directory
    ]


def _cut(image: np.ndarray) -> list[np.ndarray]:
    rows, columns = (range(0, edge, TILE) for edge in image.shape[:2])
    return [image[top : top + TILE, left : left + TILE] for top in rows for left in columns]


def _photograph(
    writer: tifffile.TiffWriter, image: np.ndarray, text: str, subfiletype: int
) -> None:
    writer.write(
        np.ascontiguousarray(image),
        photometric="rgb",
        compression="lzw" if subfiletype == 1 else None,
        rowsperstrip=16,
        subfiletype=subfiletype,
        description=text.encode(),
        software=False,
        metadata=None,
    )


def _label(person: Person) -> np.ndarray:
    """Pixels that spell the name, so that a byte search meets it in an uncompressed image."""
    letters = np.frombuffer(" ".join(person.texts()).encode(), np.uint8)
    return np.resize(letters, (60, 80, 3))


def _append_exif(path: Path, person: Person, kind: Kind) -> None:
    """An EXIF directory with a comment of the user, at the end of the file."""
    comment = b"ASCII\0\0\0" + person.name.encode()
    counter, number, size = ("Q", "Q", 20) if kind.big else ("H", "I", 12)
    with tifffile.TiffFile(path, mode="r+") as file:
        place = file.pages.first.tags[_BEFORE_EXIF].offset
        handle = file.filehandle
        at = (handle.seek(0, 2) + 1) // 2 * 2
        text = at + struct.calcsize(f"<{counter}") + size + struct.calcsize(f"<{number}")
        handle.seek(at)
        handle.write(struct.pack(kind.byteorder + counter, 1))
        entry = (37510, 7, len(comment), text)
        handle.write(struct.pack(f"{kind.byteorder}HH{number}{number}", *entry))
        handle.write(struct.pack(kind.byteorder + number, 0) + comment)
        # tifffile does not write this tag itself.
        handle.seek(place)
        type_ = 16 if kind.big else 4
        handle.write(struct.pack(f"{kind.byteorder}HH{number}{number}", 34665, type_, 1, at))
