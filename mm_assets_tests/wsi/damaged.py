"""Damaged slides: what broken copies, bad disks, odd exports and malice make of a good one.

Every damage is a small function of a good file, so a corpus is a dictionary of name -> damage and
any of it can be made again by its name.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from mm_assets.synthetic.tiff import write_pyramid

Damage = Callable[[bytes], bytes]

SIDE = 640
WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
SAMPLES, PLANAR, TILE_WIDTH, TILE_LENGTH = 277, 284, 322, 323
TILE_OFFSETS, TILE_COUNTS = 324, 325
LONG = 4
JPEG_TABLES_BYTES = 600
_STRUCT = {1: "B", 2: "B", 3: "H", 4: "I", 5: "II", 7: "B", 12: "d", 16: "Q"}
DEFLATE, LZW, JPEG, APERIO_JPEG2000, PACKBITS = 8, 5, 7, 33005, 32773


def textured(seed: int = 0, side: int = SIDE) -> np.ndarray:
    """Pink, nucleated, noisy tissue on glass."""
    rng = np.random.default_rng(seed)
    image = np.full((side, side, 3), 242, np.uint8)
    inside = slice(32, side - 32)
    edge = side - 64
    tissue = np.array([214, 140, 180]) + rng.normal(0, 9, (edge, edge, 3))
    nuclei = cv2.dilate((rng.random((edge, edge)) < 0.002).astype(np.uint8), np.ones((7, 7)))
    tissue[nuclei > 0] = np.array([92, 60, 140]) + rng.normal(0, 9, (int(nuclei.sum()), 3))
    image[inside, inside] = np.clip(tissue, 0, 255).astype(np.uint8)
    return image


def jpeg_slide(path: Path, seed: int = 0) -> None:
    """A good pyramidal JPEG TIFF."""
    write_pyramid(path, textured(seed), mpp=0.5)


def jpeg2000_slide(path: Path, seed: int = 0) -> None:
    """A good Aperio slide of JPEG 2000."""
    tifffile.imwrite(
        path,
        textured(seed),
        tile=(256, 256),
        photometric="rgb",
        compression="APERIO_JP2000_RGB",
        metadata=None,
        description=f"Aperio Image Library v1\n{SIDE}x{SIDE}|AppMag = 20|MPP = 0.5",
    )


def deflate_slide(path: Path, seed: int = 0) -> None:
    """A good TIFF of the kind that is read with OpenSlide alone."""
    resolution = (20_000, 20_000)
    tifffile.imwrite(
        path,
        textured(seed),
        tile=(256, 256),
        photometric="rgb",
        compression="zlib",
        metadata=None,
        resolution=resolution,
        resolutionunit="CENTIMETER",
    )


@dataclass(frozen=True)
class Tag:
    """A TIFF tag: where its 12 bytes are, and where its values are."""

    entry: int
    values: int
    dtype: int
    count: int


def pages(data: bytes) -> list[dict[int, Tag]]:
    """Tags of every page of a good classic little-endian TIFF."""
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        return [
            {t.code: Tag(t.offset, t.valueoffset, int(t.dtype), t.count) for t in page.tags}
            for page in tiff.pages
        ]


def patched(data: bytes, at: int, new: bytes) -> bytes:
    """The bytes with `new` written at `at`."""
    return data[:at] + new + data[at + len(new) :]


# Damages


def truncated(percent: int) -> Damage:
    """Only the first `percent` per cent, as an interrupted copy leaves."""
    return lambda data: data[: len(data) * percent // 100]


def flipped(where: str, seed: int) -> Damage:
    """Bits flipped in the page directories, the JPEG tables or the tiles."""

    def damage(data: bytes) -> bytes:
        rng = np.random.default_rng(seed)
        spans = _spans(data)[where]
        spoiled = bytearray(data)
        for _ in range(int(rng.integers(1, 9))):
            first, size = spans[rng.integers(len(spans))]
            spoiled[first + int(rng.integers(size))] ^= 1 << int(rng.integers(8))
        return bytes(spoiled)

    return damage


def _spans(data: bytes) -> dict[str, list[tuple[int, int]]]:
    found = pages(data)
    directories = [(0, 8)]
    tables, tiles = [], []
    for tags in found:
        start = min(tag.entry for tag in tags.values()) - 2
        directories.append((start, 2 + 12 * len(tags) + 4))
        directories += [
            (t.values, t.count * struct.calcsize(_STRUCT[t.dtype]))
            for code, t in tags.items()
            if code in (TILE_OFFSETS, TILE_COUNTS)
        ]
        of_page = list(zip(_values(data, tags[TILE_OFFSETS]), _counts(data, tags), strict=True))
        tables += [(offset, min(count, JPEG_TABLES_BYTES)) for offset, count in of_page]
        tiles += of_page
    return {"directory": directories, "tables": tables, "tiles": tiles}


def _values(data: bytes, tag: Tag) -> list[int]:
    return list(struct.unpack_from(f"<{tag.count}{_STRUCT[tag.dtype]}", data, tag.values))


def _counts(data: bytes, tags: dict[int, Tag]) -> list[int]:
    return _values(data, tags[TILE_COUNTS])


def with_tag(code: int, value: int, page: int = 0, count: int = 1) -> Damage:
    """A tag of one page claims something else; the rest of the file is as it was."""

    def damage(data: bytes) -> bytes:
        entry = pages(data)[page][code].entry
        return patched(data, entry, struct.pack("<HHII", code, LONG, count, value))

    return damage


def with_tile(
    make_tile: Callable[[], bytes], *tags: tuple[int, int], only: int | None = None
) -> Damage:
    """Every tile (or one) of the first page is replaced by a new one, and tags with it."""

    def damage(data: bytes) -> bytes:
        for code, value in tags:
            data = with_tag(code, value)(data)
        first = pages(data)[0]
        tile = make_tile()
        end = len(data) + len(tile)
        tail = b""
        # The lists are written anew, as LONGs: the new count may be too large for SHORTs.
        for code, value in ((TILE_OFFSETS, len(data)), (TILE_COUNTS, len(tile))):
            values = _values(data, first[code])
            for index in range(len(values)) if only is None else (only,):
                values[index] = value
            entry = struct.pack("<HHII", code, LONG, len(values), end + len(tail))
            data = patched(data, first[code].entry, entry)
            tail += struct.pack(f"<{len(values)}I", *values)
        return data + tile + tail

    return damage


def looped(kind: str) -> Damage:
    """The chain of page directories never ends."""

    def damage(data: bytes) -> bytes:
        found = pages(data)
        starts = [min(tag.entry for tag in tags.values()) - 2 for tags in found]
        ends = [start + 2 + 12 * len(tags) for start, tags in zip(starts, found, strict=True)]
        tiles = _values(data, found[0][TILE_OFFSETS])
        to = {"self": starts[-1], "first": starts[0], "tiles": tiles[0] & ~1}[kind]
        return patched(data, ends[-1], struct.pack("<I", to))

    return damage


def tile_offsets(value: str) -> Damage:
    """Tile offsets that point at themselves, at the header or beyond everything."""

    def damage(data: bytes) -> bytes:
        tag = pages(data)[0][TILE_OFFSETS]
        to = {"themselves": tag.values, "header": 0, "beyond": 2**32 - 16}[value]
        return patched(data, tag.values, struct.pack(f"<{tag.count}I", *[to] * tag.count))

    return damage


def zeroed_tile(index: int, kept: float = 0.0) -> Damage:
    """The end of one compressed tile is zeros, as a hole in a copied file reads."""

    def damage(data: bytes) -> bytes:
        tags = pages(data)[0]
        offset, count = _values(data, tags[TILE_OFFSETS])[index], _counts(data, tags)[index]
        start = int(count * kept)
        return patched(data, offset + start, bytes(count - start))

    return damage


# Bombs: a few bytes that say, or expand to, gigabytes


def deflate_bomb(gigabytes: int) -> bytes:
    """Zeros by the gigabyte in a few megabytes."""
    packer = zlib.compressobj(9)
    head = packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)
    # After a full flush the same input gives the same bytes: they can be repeated.
    block = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + block * (gigabytes * 64) + packer.flush()


def jpeg_of(width: int, height: int) -> bytes:
    """A small JPEG that claims another size."""
    data = cv2.imencode(".jpg", textured(0, 256))[1].tobytes()
    at = data.index(b"\xff\xc0") + 5
    return patched(data, at, struct.pack(">HH", height, width))


def jpeg_of_true_size(width: int, height: int) -> bytes:
    """A real JPEG of a huge empty picture."""
    return bytes(imagecodecs.jpeg8_encode(np.zeros((height, width, 3), np.uint8), level=10))


def jpeg2000_of(width: int, height: int, tile: int) -> bytes:
    """A small JPEG 2000 codestream that claims another size of picture and tile."""
    data = bytes(imagecodecs.jpeg2k_encode(textured(0, 256), codecformat="j2k", level=0))
    at = data.index(b"\xff\x51") + 6
    return patched(data, at, struct.pack(">II8xII", width, height, tile, tile))


def jpeg2000_of_true_size(side: int) -> bytes:
    """A real JPEG 2000 of a huge empty picture."""
    empty = np.zeros((side, side, 3), np.uint8)
    return bytes(imagecodecs.jpeg2k_encode(empty, codecformat="j2k", level=0))


def lzw_bomb(megabytes: int) -> bytes:
    """Zeros, LZW-compressed."""
    return bytes(imagecodecs.lzw_encode(bytes(megabytes << 20)))


def many_scans() -> bytes:
    """A progressive JPEG of thousands of scans: slow to decode out of all proportion."""
    data = bytes(imagecodecs.jpeg8_encode(textured(0, 512), level=90))
    progressive = io.BytesIO()
    Image.open(io.BytesIO(data)).save(progressive, "JPEG", progressive=True)
    raw = progressive.getvalue()
    scan = raw.rindex(b"\xff\xda")
    return raw[:-2] + raw[scan:-2] * 2000 + b"\xff\xd9"


# Other files under a slide's name


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("slide.svs", bytes(100_000))
    return buffer.getvalue()


def _picture(kind: str) -> bytes:
    return cv2.imencode(kind, textured())[1].tobytes()


def _strip_tiff() -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, textured(), photometric="rgb", metadata=None)
    return buffer.getvalue()


def impostors() -> dict[str, bytes]:
    """Files that are no slides at all."""
    return {
        "zero": b"",
        "one-byte": b"I",
        "tiff-magic": b"II*\0",
        "bigtiff-magic": b"II+\0\x08\0\0\0",
        "tiff-header": b"II*\0\x08\0\0\0",
        "zeros": bytes(300_000),
        "text": b"slide_id,patient_id\nS1,P1\n" * 100,
        "html": b"<!doctype html><html><body>404 Not Found</body></html>",
        "xml": b"<?xml version='1.0'?><error><code>AccessDenied</code></error>",
        "pdf": b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\ntrailer\n%%EOF\n",
        "zip": _zip(),
        "gzip": zlib.compress(bytes(10_000), wbits=31),
        "png": _picture(".png"),
        "jpg": _picture(".jpg"),
        "noise": np.random.default_rng(0).bytes(200_000),
        "strips": _strip_tiff(),
        "git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 100\n",
    }


_SIZES = (0, 1, 2, 65_536, 1_000_000, 2**31 - 1, 2**32 - 1)


def _tag_damages() -> dict[str, Damage]:
    damages: dict[str, Damage] = {}
    for name, codes in (
        ("width", (WIDTH,)),
        ("length", (LENGTH,)),
        ("tile-width", (TILE_WIDTH,)),
        ("tile-length", (TILE_LENGTH,)),
        ("picture", (WIDTH, LENGTH)),
        ("tile", (TILE_WIDTH, TILE_LENGTH)),
    ):
        for value in _SIZES:
            damages[f"{name}={value}"] = _both([with_tag(code, value) for code in codes])
    # Few enough tiles that the counts agree with the picture, each of them of a gigabyte.
    for side in (16_384, 32_768, 65_520):
        tags = ((WIDTH, side), (LENGTH, side), (TILE_WIDTH, side), (TILE_LENGTH, side))
        damages[f"one-tile={side}"] = _both([with_tag(code, value) for code, value in tags])
    for name, code, values in (
        ("bits", BITS, (0, 1, 16, 32, 65_535)),
        ("samples", SAMPLES, (0, 1, 2, 4, 65_535)),
        (
            "compression",
            COMPRESSION,
            (0, 1, LZW, 6, DEFLATE, PACKBITS, 33003, 34712, 50000, 65_535),
        ),
        ("photometric", PHOTOMETRIC, (0, 1, 3, 5, 8, 65_535)),
    ):
        damages |= {f"{name}={value}": with_tag(code, value) for value in values}
    damages["planar=2"] = with_tag(PLANAR, 2)
    for name, code in (("offsets", TILE_OFFSETS), ("counts", TILE_COUNTS), ("bits", BITS)):
        for count in (0, 1, 2**24, 2**31 - 1, 2**32 - 1):
            damages[f"{name}-number={count}"] = with_tag(code, 8, count=count)
    return damages


def _both(damages: list[Damage]) -> Damage:
    def damage(data: bytes) -> bytes:
        for one in damages:
            data = one(data)
        return data

    return damage


def _bombs() -> dict[str, dict[str, Damage]]:
    """By base slide."""
    huge = 2**31 - 1
    return {
        "jpeg.tiff": {
            "bomb-claims-65500": with_tile(lambda: jpeg_of(65_500, 65_500)),
            "bomb-is-20000": with_tile(lambda: jpeg_of_true_size(20_000, 20_000)),
            "bomb-is-8000-once": with_tile(lambda: jpeg_of_true_size(8000, 8000), only=5),
            "bomb-scans": with_tile(many_scans),
            "bomb-lzw-1G": with_tile(lambda: lzw_bomb(1024), (COMPRESSION, LZW)),
            "bomb-lzw-1G-in-1-tile": with_tile(
                lambda: lzw_bomb(1024),
                (COMPRESSION, LZW),
                *((tag, 16_384) for tag in (WIDTH, LENGTH, TILE_WIDTH, TILE_LENGTH)),
            ),
        },
        "j2k.svs": {
            "bomb-claims-2G": with_tile(lambda: jpeg2000_of(huge, huge, huge)),
            "bomb-claims-60000": with_tile(lambda: jpeg2000_of(60_000, 60_000, 60_000)),
            "bomb-tiny-tiles": with_tile(lambda: jpeg2000_of(60_000, 60_000, 1)),
            "bomb-own-tiny-tiles": with_tile(lambda: jpeg2000_of(256, 256, 1)),
            "bomb-is-12000": with_tile(lambda: jpeg2000_of_true_size(12_000)),
            "bomb-is-12000-once": with_tile(lambda: jpeg2000_of_true_size(12_000), only=5),
        },
        "deflate.tiff": {
            "bomb-8G": with_tile(lambda: deflate_bomb(8)),
            "bomb-8G-in-1-tile": with_tile(
                lambda: deflate_bomb(8),
                *((tag, 32_768) for tag in (WIDTH, LENGTH, TILE_WIDTH, TILE_LENGTH)),
            ),
        },
    }


def _small() -> dict[str, Damage]:
    """Damages that fit every base slide."""
    return {
        **{f"loop-{kind}": looped(kind) for kind in ("self", "first", "tiles")},
        **{f"offsets-{to}": tile_offsets(to) for to in ("themselves", "header", "beyond")},
        **{f"zeroed-{index}": zeroed_tile(index) for index in (0, 4, 8)},
        **{f"hole-{index}": zeroed_tile(index, 0.5) for index in (0, 4)},
    }


BASES: dict[str, Callable[[Path], None]] = {
    "jpeg.tiff": jpeg_slide,
    "j2k.svs": jpeg2000_slide,
    "deflate.tiff": deflate_slide,
}


def corpus() -> dict[str, tuple[str, Damage]]:
    """Name of the damaged slide -> its base and what is done to it."""
    found: dict[str, tuple[str, Damage]] = {}

    def add(base: str, damages: dict[str, Damage]) -> None:
        found.update({f"{base.split('.')[0]}-{name}": (base, d) for name, d in damages.items()})

    for base in ("jpeg.tiff", "j2k.svs"):
        add(base, {f"cut-{percent:02d}": truncated(percent) for percent in range(1, 100)})
    add("jpeg.tiff", _tag_damages())
    for base in BASES:
        add(base, _small() | _bombs()[base])
    for base, where, seeds in (
        ("jpeg.tiff", "directory", 60),
        ("jpeg.tiff", "tables", 25),
        ("jpeg.tiff", "tiles", 25),
        ("j2k.svs", "directory", 30),
        ("j2k.svs", "tiles", 15),
        ("deflate.tiff", "directory", 15),
        ("deflate.tiff", "tiles", 20),
    ):
        add(base, {f"flip-{where}-{seed:02d}": flipped(where, seed) for seed in range(seeds)})
    for name, content in impostors().items():
        found[f"impostor-{name}"] = ("j2k.svs", lambda _, content=content: content)
    return found


def make(names: Sequence[str], folder: Path, scratch: Path, prefix: str = "") -> dict[str, Path]:
    """Write damaged slides of the corpus into a folder; name -> file."""
    bases = {}
    for base, write in BASES.items():
        write(scratch / base)
        bases[base] = (scratch / base).read_bytes()
    known = corpus()
    paths = {}
    for name in names:
        base, damage = known[name]
        paths[name] = folder / f"{prefix}{name.replace('=', '-')}.{base.split('.')[1]}"
        paths[name].write_bytes(damage(bases[base]))
    return paths
