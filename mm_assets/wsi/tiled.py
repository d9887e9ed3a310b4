"""Squares of a tiled TIFF pyramid, past OpenSlide: every compressed tile is decoded once.

OpenSlide spends most of a read compositing, not decoding (openslide#440). Here the compressed
tiles of a level are decoded row by row and their pixels put straight into the squares that want
them; memory holds the squares in progress, one row at most, whatever the height of the slide.
"""

import os
import threading
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from mm_assets.wsi.levels import CHANNELS, Pixels, TiledLevel, is_ended
from mm_assets.wsi.watch import watched

WHITE = 255
# Compressed tiles in one task of a thread, and tasks a thread that may wait.
GROUP, GROUPS_AHEAD = 4, 2


class TileError(ValueError):
    """A compressed tile cannot be decoded; says where."""

    def __init__(self, x: int, y: int, reason: str) -> None:
        super().__init__(reason)
        self.x, self.y = x, y


class LostEndError(TileError):
    """A compressed tile that lost its end: no reader shows what was in it."""


def read_squares(
    path: Path,
    level: TiledLevel,
    lefts: Sequence[int],
    tops: Sequence[int],
    edge: int,
    wanted: Mapping[int, Sequence[int]],
    threads: int,
) -> Generator[Pixels]:
    """Squares of a grid on one level, row by row.

    What lies outside the level, and tiles that the file leaves out, are white.

    Parameters
    ----------
    lefts, tops
        Left edge of every column and top edge of every row of the grid, level pixels, ascending.
    edge
        Edge of a square, level pixels.
    wanted
        Row of the grid -> columns wanted in it; both ascending.
    threads
        Threads that decode ahead of the consumer; with 1 nothing is decoded ahead.

    Yields
    ------
    uint8 (edge, edge, 3), RGB; overwritten when the next is asked for.

    Raises
    ------
    TileError
        A compressed tile cannot be decoded.
    """
    with _open(path) as file:
        squares = _Squares(level, lefts, tops, edge, wanted)
        decoder = _Decoder(level, file)
        waiting = squares.in_order()
        square, last = next(waiting, (None, 0))
        with closing(_decoded(decoder, squares.groups(), threads)) as groups:
            for group in chain(groups, [None]):
                done = len(level.offsets) if group is None else group[-1][0]
                while square is not None and last <= done:
                    pixels = squares.take(square)
                    yield pixels.reshape(edge, edge, CHANNELS)
                    squares.give_back(pixels)
                    square, last = next(waiting, (None, 0))


@contextmanager
def _open(path: Path) -> Iterator[int]:
    file = os.open(path, os.O_RDONLY)
    try:
        yield file
    finally:
        os.close(file)


# Square, its rows and bytes to fill, and the rows and bytes of the tile that fill them.
_Piece = tuple[Pixels, slice, slice, slice, slice]
# A compressed tile to decode, and the squares that it feeds.
_Tile = tuple[int, list[_Piece]]


def _decoded(
    decoder: "_Decoder", groups: Iterator[list[_Tile]], threads: int
) -> Generator[list[_Tile]]:
    """The same groups, each once it is decoded."""
    if threads == 1:
        for group in groups:
            decoder.decode(group)
            yield group
        return
    pending: deque[tuple[list[_Tile], Future[None]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def first() -> list[_Tile]:
        group, task = pending.popleft()
        task.result()
        return group

    try:
        for group in groups:
            pending.append((group, pool.submit(decoder.decode, group)))
            if len(pending) > threads * GROUPS_AHEAD:
                yield first()
        while pending:
            yield first()
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True, slots=True)
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


def _cut(starts: Sequence[int], edge: int, length: int) -> set[int]:
    """Squares that reach beyond the level along an axis."""
    return {square for square, start in enumerate(starts) if start < 0 or start + edge > length}


class _Squares:
    """The squares in progress: which compressed tiles feed them, and the memory they are in.

    Memory is given out again last in, first out: squares begin where one was just read, in the
    processor's cache.
    """

    def __init__(
        self,
        level: TiledLevel,
        lefts: Sequence[int],
        tops: Sequence[int],
        edge: int,
        wanted: Mapping[int, Sequence[int]],
    ) -> None:
        self._level, self._edge = level, edge
        self._wanted = wanted
        self._across = _overlaps(lefts, edge, level.tile_width, level.width, CHANNELS)
        self._down = _overlaps(tops, edge, level.tile_height, level.height, 1)
        self._cut_rows = _cut(tops, edge, level.height)
        self._cut_columns = _cut(lefts, edge, level.width)
        self._open: dict[tuple[int, int], Pixels] = {}
        self._free: list[Pixels] = []

    def in_order(self) -> Iterator[tuple[tuple[int, int], int]]:
        """The wanted squares (row, column), each with the last compressed tile that feeds it."""
        last_column = {o.square: tile for tile, across in enumerate(self._across) for o in across}
        last_row = {o.square: tile for tile, down in enumerate(self._down) for o in down}
        for row, columns in self._wanted.items():
            for column in columns:
                inside = row in last_row and column in last_column
                last = last_row[row] * self._level.columns + last_column[column] if inside else -1
                yield (row, column), last

    def groups(self) -> Iterator[list[_Tile]]:
        """Compressed tiles that hold something wanted, row by row, in groups of one task."""
        for band, down in enumerate(self._down):
            fed = [(o, set(self._wanted[o.square])) for o in down if o.square in self._wanted]
            needed = set().union(*(columns for _, columns in fed))
            columns = [
                tile
                for tile, across in enumerate(self._across)
                if any(o.square in needed for o in across)
            ]
            for at in range(0, len(columns), GROUP):
                yield [self._tile(band, column, fed) for column in columns[at : at + GROUP]]

    def take(self, square: tuple[int, int]) -> Pixels:
        """A square that is complete."""
        pixels = self._open.pop(square, None)
        return self._new(*square) if pixels is None else pixels

    def give_back(self, pixels: Pixels) -> None:
        """Memory of a square that the consumer is done with."""
        self._free.append(pixels)

    def _tile(self, band: int, column: int, fed: list[tuple[_Overlap, set[int]]]) -> _Tile:
        pieces: list[_Piece] = []
        for y, columns in fed:
            for x in self._across[column]:
                if x.square in columns:
                    square = (y.square, x.square)
                    pixels = self._open.get(square)
                    if pixels is None:
                        pixels = self._open[square] = self._new(*square)
                    pieces.append((pixels, y.into, x.into, y.out_of, x.out_of))
        return band * self._level.columns + column, pieces

    def _new(self, row: int, column: int) -> Pixels:
        if self._free:
            pixels = self._free.pop()
        else:
            size = self._edge * CHANNELS
            pixels = unaligned(self._edge * size).reshape(self._edge, size)
        if row in self._cut_rows or column in self._cut_columns:
            pixels.fill(WHITE)
        return pixels


class _Decoder:
    """Decodes compressed tiles and gives their pixels to the squares that overlap them."""

    def __init__(self, level: TiledLevel, file: int) -> None:
        self._level, self._file = level, file
        self._local = threading.local()
        self._shape = (level.tile_height, level.tile_width * CHANNELS)

    @watched
    def decode(self, tiles: list[_Tile]) -> None:
        """Neighbouring compressed tiles, into the squares that they feed."""
        for (index, pieces), data in zip(tiles, self._read([t[0] for t in tiles]), strict=True):
            whole = len(pieces) == 1 and self._is_whole(pieces[0])
            out = pieces[0][0] if whole else self._scratch()
            if len(data):
                self._decode_into(index, data, out)
            else:
                out.fill(WHITE)
            if not whole:
                for square, rows, columns, from_rows, from_columns in pieces:
                    square[rows, columns] = out[from_rows, from_columns]

    def _is_whole(self, piece: _Piece) -> bool:
        """Whether the tile is the square: it is decoded in its place."""
        square, rows, columns, _, _ = piece
        height, width = self._shape
        return square.shape == self._shape and (rows, columns) == (
            slice(0, height),
            slice(0, width),
        )

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

    def _decode_into(self, tile: int, data: memoryview, out: Pixels) -> None:
        row, column = divmod(tile, self._level.columns)
        x, y = column * self._level.tile_width, row * self._level.tile_height
        if self._level.has_end_marker and not is_ended(data):
            raise LostEndError(x, y, "the compressed tile has lost its end")
        try:
            self._level.decode(data, out=out.reshape(len(out), -1, CHANNELS))
        # Every codec has exceptions of its own, and NumPy's when the size is not as announced.
        except (RuntimeError, ValueError) as error:
            raise TileError(x, y, str(error)) from None

    def _scratch(self) -> Pixels:
        if not hasattr(self._local, "scratch"):
            self._local.scratch = unaligned(int(np.prod(self._shape))).reshape(self._shape)
        scratch: Pixels = self._local.scratch
        return scratch


def unaligned(size: int) -> Pixels:
    """Memory that starts 8 bytes beyond a multiple of 32.

    libjpeg-turbo writes rows that begin at such a multiple past the cache, which costs a fifth of
    the decoding time and again when the pixels are read.
    """
    raw = np.empty(size + 40, np.uint8)
    start = (8 - raw.ctypes.data) % 32
    return raw[start : start + size]
