"""Squares of a tiled TIFF pyramid, past OpenSlide: every compressed tile is decoded once.

OpenSlide spends most of a read compositing, not decoding (openslide#440). Here the compressed
tiles of a level are decoded row by row and their pixels put straight into the squares that want
them; memory holds the rows of squares in progress, whatever the height of the slide.
"""

import os
import struct
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mm_assets.wsi.watch import watched

if TYPE_CHECKING:
    import tifffile

Pixels = NDArray[np.uint8]
Codec = Callable[..., Any]

JPEG, APERIO_JPEG2000_RGB = 7, 33005
RGB, YCBCR = 2, 6
CHANNELS = 3
END_MARKER = b"\xff\xd9"
WHITE = 255
# Compressed tiles in one task of a thread, and tasks' rows that may be under way.
GROUP, ROWS_AHEAD = 8, 2


class TileError(ValueError):
    """A compressed tile cannot be decoded; says where."""

    def __init__(self, x: int, y: int, reason: str) -> None:
        super().__init__(reason)
        self.x, self.y = x, y


class LostEndError(TileError):
    """A compressed tile that lost its end: no reader shows what was in it."""


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
    """

    width: int
    height: int
    tile_width: int
    tile_height: int
    offsets: Sequence[int]
    counts: Sequence[int]
    decode: Codec = field(repr=False)

    @cached_property
    def columns(self) -> int:
        """Compressed tiles side by side."""
        return -(-self.width // self.tile_width)


@watched
def tiled_levels(path: Path) -> list[TiledLevel]:
    """Levels of a TIFF whose tiles can be decoded here; others are left out.

    JPEG and Aperio's JPEG 2000 in RGB, three 8-bit channels.
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
        return _decode_jpeg2000
    if page.compression == JPEG and page.photometric in (RGB, YCBCR):
        # Files that say RGB hold JPEG data without a colour transform and do not mark it.
        stored = RGB if page.photometric == RGB and not page.is_jfif else None
        return partial(
            imagecodecs.jpeg8_decode, tables=page.jpegtables, colorspace=stored, outcolorspace=RGB
        )
    return None


def _decode_jpeg2000(data: memoryview, out: Pixels) -> None:
    """Refuse another size first: the decoder looks only after decoding what may be gigabytes."""
    import imagecodecs

    height, width = out.shape[:2]
    if data[8:24] != struct.pack(">4I", width, height, 0, 0):
        raise ValueError(f"the compressed tile is not of {width} x {height} px")
    decode: Codec = imagecodecs.jpeg2k_decode
    decode(data, out=out)


def read_rows(
    path: Path,
    level: TiledLevel,
    lefts: Sequence[int],
    tops: Sequence[int],
    edge: int,
    wanted: Mapping[int, Sequence[int]],
    threads: int,
) -> Generator[tuple[int, Pixels]]:
    """Squares of a grid on one level, a row of them at a time.

    What lies outside the level, and tiles that the file leaves out, are white.

    Parameters
    ----------
    lefts, tops
        Left edge of every column and top edge of every row of the grid, level pixels, ascending.
    edge
        Edge of a square, level pixels.
    wanted
        Row of the grid -> columns wanted in it.
    threads
        Threads that decode.

    Yields
    ------
    The row and its pixels, uint8 (n, edge, edge, 3), in the order of `wanted[row]`; they are
    overwritten when the next row is asked for.

    Raises
    ------
    TileError
        A compressed tile cannot be decoded.
    """
    with _open(path) as file:
        rows = _Rows(level, lefts, tops, edge, wanted)
        decoder = _Decoder(level, rows.across, file)
        if threads == 1:
            for band in rows.bands():
                for columns in band.groups:
                    decoder.decode(band, columns)
                yield from rows.finished(band)
            return
        with closing(_decode_ahead(decoder, rows, threads)) as bands:
            for band in bands:
                yield from rows.finished(band)


@contextmanager
def _open(path: Path) -> Iterator[int]:
    file = os.open(path, os.O_RDONLY)
    try:
        yield file
    finally:
        os.close(file)


def _decode_ahead(decoder: "_Decoder", rows: "_Rows", threads: int) -> Generator["_Band"]:
    pending: deque[tuple[_Band, list[Future[None]]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def first() -> "_Band":
        band, tasks = pending.popleft()
        for task in tasks:
            task.result()
        return band

    try:
        for band in rows.bands():
            tasks = [pool.submit(decoder.decode, band, columns) for columns in band.groups]
            pending.append((band, tasks))
            if len(pending) > ROWS_AHEAD:
                yield first()
        while pending:
            yield first()
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Overlap:
    """What a square (by its index in the grid) takes of one compressed tile, along one axis."""

    square: int
    into: slice
    out_of: slice


def _overlaps(
    starts: Sequence[int], edge: int, tile: int, length: int, unit: int
) -> list[list[_Overlap]]:
    """For every compressed tile along an axis, the squares that overlap it; slices in `unit`s."""
    found: list[list[_Overlap]] = [[] for _ in range(-(-length // tile))]
    for square, start in enumerate(starts):
        low, high = max(start, 0), min(start + edge, length)
        for index in range(low // tile, -(-high // tile)):
            first, last = max(low, index * tile), min(high, (index + 1) * tile)
            into = slice((first - start) * unit, (last - start) * unit)
            base = index * tile
            found[index].append(
                _Overlap(square, into, slice((first - base) * unit, (last - base) * unit))
            )
    return found


@dataclass(frozen=True)
class _Row:
    """A row of squares in progress: (n, edge, edge * 3), and the place of each grid column."""

    memory: Pixels
    pixels: Pixels
    place: Mapping[int, int]


@dataclass(frozen=True)
class _Band:
    """A row of compressed tiles: which columns to decode, and the rows of squares they feed."""

    index: int
    groups: list[list[int]]
    rows: list[tuple[_Row, slice, slice]]
    finished: list[int]


class _Rows:
    """Walks the bands of a level and keeps the rows of squares they feed."""

    def __init__(
        self,
        level: TiledLevel,
        lefts: Sequence[int],
        tops: Sequence[int],
        edge: int,
        wanted: Mapping[int, Sequence[int]],
    ) -> None:
        self._level, self._lefts, self._tops, self._edge = level, lefts, tops, edge
        self._wanted = wanted
        self.across = _overlaps(lefts, edge, level.tile_width, level.width, CHANNELS)
        self._down = _overlaps(tops, edge, level.tile_height, level.height, 1)
        self._open: dict[int, _Row] = {}
        self._size = max(map(len, wanted.values()), default=0) * edge * edge * CHANNELS
        self._free: list[Pixels] = []

    def bands(self) -> Iterator[_Band]:
        """Rows of compressed tiles that hold something wanted, top to bottom."""
        last = {o.square: index for index, down in enumerate(self._down) for o in down}
        for index, down in enumerate(self._down):
            fed = [o for o in down if self._wanted.get(o.square)]
            if not fed:
                continue
            rows = [(self._row(o.square), o.into, o.out_of) for o in fed]
            needed = {column for row, _, _ in rows for column in row.place}
            columns = [
                tile
                for tile, across in enumerate(self.across)
                if any(o.square in needed for o in across)
            ]
            groups = [columns[at : at + GROUP] for at in range(0, len(columns), GROUP)]
            finished = [o.square for o in fed if last[o.square] == index]
            yield _Band(index, groups, rows, finished)

    def finished(self, band: _Band) -> Iterator[tuple[int, Pixels]]:
        """Rows of squares that are whole once `band` is decoded."""
        for row in band.finished:
            done = self._open.pop(row)
            yield row, done.pixels.reshape(len(done.pixels), self._edge, self._edge, CHANNELS)
            self._free.append(done.memory)

    def _row(self, row: int) -> _Row:
        if row not in self._open:
            columns = self._wanted[row]
            memory = self._free.pop() if self._free else unaligned(self._size)
            shape = (len(columns), self._edge, self._edge * CHANNELS)
            pixels = memory[: int(np.prod(shape))].reshape(shape)
            below = self._tops[row] + self._edge > self._level.height
            for place, column in enumerate(columns):
                if below or self._lefts[column] + self._edge > self._level.width:
                    pixels[place] = WHITE
            places = {column: place for place, column in enumerate(columns)}
            self._open[row] = _Row(memory, pixels, places)
        return self._open[row]


class _Decoder:
    """Decodes compressed tiles and gives their pixels to the squares that overlap them."""

    def __init__(self, level: TiledLevel, across: list[list[_Overlap]], file: int) -> None:
        self._level, self._across, self._file = level, across, file
        self._local = threading.local()

    @watched
    def decode(self, band: _Band, columns: list[int]) -> None:
        """Neighbouring compressed tiles of a band, into the rows that it feeds."""
        first = band.index * self._level.columns
        data = self._read([first + column for column in columns])
        for column, compressed in zip(columns, data, strict=True):
            whole = self._only_square(band, column)
            if whole is not None and len(compressed):
                self._decode_into(band.index, column, compressed, whole)
                continue
            scratch = self._scratch()
            if len(compressed):
                self._decode_into(band.index, column, compressed, scratch)
            else:
                scratch.fill(WHITE)
            self._paste(band, column, scratch.reshape(len(scratch), -1))

    def _paste(self, band: _Band, column: int, tile: Pixels) -> None:
        for row, into_y, out_of_y in band.rows:
            for overlap in self._across[column]:
                place = row.place.get(overlap.square)
                if place is not None:
                    row.pixels[place, into_y, overlap.into] = tile[out_of_y, overlap.out_of]

    def _only_square(self, band: _Band, column: int) -> Pixels | None:
        """The square that a compressed tile fills by itself: it is decoded in its place."""
        if len(band.rows) > 1 or len(self._across[column]) > 1:
            return None
        (row, into_y, _), (overlap,) = band.rows[0], self._across[column]
        height, width = self._level.tile_height, self._level.tile_width * CHANNELS
        pixels = row.pixels
        if pixels.shape[1:] != (height, width) or (into_y, overlap.into) != (
            slice(0, height),
            slice(0, width),
        ):
            return None
        return pixels[row.place[overlap.square]].reshape(height, -1, CHANNELS)

    def _read(self, tiles: list[int]) -> list[memoryview]:
        """Compressed bytes of tiles, in one read where they lie together."""
        spans = [(self._level.offsets[tile], self._level.counts[tile]) for tile in tiles]
        present = [(offset, count) for offset, count in spans if count]
        start = min((offset for offset, _ in present), default=0)
        end = max((offset + count for offset, count in present), default=0)
        if end - start > 2 * sum(count for _, count in present):
            return [memoryview(os.pread(self._file, count, offset)) for offset, count in spans]
        data = memoryview(os.pread(self._file, end - start, start))
        return [data[offset - start :][:count] if count else data[:0] for offset, count in spans]

    def _decode_into(self, row: int, column: int, data: memoryview, out: Pixels) -> None:
        x, y = column * self._level.tile_width, row * self._level.tile_height
        if not _is_ended(data):
            raise LostEndError(x, y, "the compressed tile has lost its end")
        try:
            self._level.decode(data, out=out)
        # Every codec has exceptions of its own, and NumPy's when the size is not as announced.
        except (RuntimeError, ValueError) as error:
            raise TileError(x, y, str(error)) from None

    def _scratch(self) -> Pixels:
        if not hasattr(self._local, "scratch"):
            shape = (self._level.tile_height, self._level.tile_width, CHANNELS)
            self._local.scratch = unaligned(int(np.prod(shape))).reshape(shape)
        scratch: Pixels = self._local.scratch
        return scratch


def _is_ended(data: memoryview) -> bool:
    """Whether a codestream is there to its end: the decoders paint a lost end grey and go on.

    JPEG and JPEG 2000 end with the same marker; some writers pad it.
    """
    return data[-2:] == END_MARKER or bytes(data).rstrip(b"\0\xff").endswith(END_MARKER)


def unaligned(size: int) -> Pixels:
    """Memory that starts 8 bytes beyond a multiple of 32.

    libjpeg-turbo writes rows that begin at such a multiple past the cache, which costs a fifth of
    the decoding time and again when the pixels are read.
    """
    raw = np.empty(size + 40, np.uint8)
    start = (8 - raw.ctypes.data) % 32
    return raw[start : start + size]
