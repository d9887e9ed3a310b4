"""Open a whole-slide image and read areas of it."""

import math
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import openslide

from mm_assets.wsi.errors import SlideError as SlideError
from mm_assets.wsi.errors import without_folders
from mm_assets.wsi.levels import Pixels, TiledLevel, tiled_levels
from mm_assets.wsi.reduced import read_overview, reduced_level, reduction
from mm_assets.wsi.resolution import Resolution, resolve_mpp
from mm_assets.wsi.tiled import LostEndError, TileError, read_squares
from mm_assets.wsi.watch import watched

CACHE_BYTES = 128 * 1024**2
DECODE_AHEAD = 64
# Formats of OpenSlide whose levels are, or begin with, the tiled pages of one TIFF.
TILED_VENDORS = ("aperio", "generic-tiff", "hamamatsu")
# A level may be coarser than wanted by this factor: pyramids of odd sizes say 2.0005 for 2.
LEVEL_TOLERANCE = 1.01


class Slide:
    """An open slide; made by `open_slide`.

    Attributes
    ----------
    name
        File name.
    width, height
        Level-0 pixels.
    mpp
        Micrometres per level-0 pixel.
    levels
        Width, height and downsample of each level, finest first.
    """

    def __init__(self, path: Path, handle: openslide.OpenSlide, resolution: Resolution):
        self.name = path.name
        self.width, self.height = handle.dimensions
        self.resolution = resolution
        self.mpp = resolution.mpp
        self.levels = tuple(
            (width, height, downsample)
            for (width, height), downsample in zip(
                handle.level_dimensions, handle.level_downsamples, strict=True
            )
        )
        self._path = path
        self._handle = handle
        self._compared: dict[int, TiledLevel | None] = {}

    def read(self, x0: int, y0: int, size0: int, out_px: int) -> Pixels:
        """A square of the slide at any resolution.

        Read from the coarsest level that is at least as fine as wanted and reduced by area
        averaging. Transparent pixels and everything outside the slide are white.

        Parameters
        ----------
        x0, y0
            Top-left corner, level-0 pixels; may lie outside the slide.
        size0
            Edge in level-0 pixels.
        out_px
            Edge of the result.

        Returns
        -------
        uint8 array of shape (out_px, out_px, 3), RGB.

        Raises
        ------
        SlideError
            The pixels cannot be decoded.
        """
        if x0 >= self.width or y0 >= self.height or x0 + size0 <= 0 or y0 + size0 <= 0:
            return np.full((out_px, out_px, 3), 255, np.uint8)
        level = self._level_for(size0 / out_px)
        edge = max(1, round(size0 / self.levels[level][2]))
        pixels = self._read_level(x0, y0, level, edge)
        return pixels if edge == out_px else _resize(pixels, out_px)

    def reader_at(self, downsample: float) -> str:
        """What reads squares of a resolution (level-0 pixels a pixel), with its version."""
        import imagecodecs

        if self._tiled(self._level_for(downsample)):
            return f"imagecodecs {imagecodecs.__version__}"
        return f"openslide {openslide.__library_version__}"

    def read_squares(
        self,
        lefts: Sequence[int],
        tops: Sequence[int],
        size0: int,
        out_px: int,
        wanted: Mapping[int, Sequence[int]],
        threads: int,
    ) -> Generator[Pixels]:
        """Squares of a grid, row by row, decoded by threads ahead of the consumer.

        Levels and outside are as for `read`. Where the level is a tiled TIFF that decodes to what
        OpenSlide shows, every compressed tile is decoded once; coarser levels are then read at
        whole pixels, where OpenSlide interpolates.

        Parameters
        ----------
        lefts, tops
            Left edge of every column and top edge of every row of the grid, level-0 pixels.
        size0
            Edge in level-0 pixels.
        out_px
            Edge of the results.
        wanted
            Row of the grid -> columns wanted in it; both ascending.

        Yields
        ------
        uint8 (out_px, out_px, 3), RGB; valid until the next is asked for.

        Raises
        ------
        SlideError
            The pixels cannot be decoded.
        """
        index = self._level_for(size0 / out_px)
        tiled = self._tiled(index)
        if tiled is None:
            corners = [(lefts[c], tops[row]) for row, columns in wanted.items() for c in columns]
            yield from self._read_each(corners, size0, out_px, threads)
            return
        downsample = self.levels[index][2]
        squares = read_squares(
            self._path,
            tiled,
            [round(left / downsample) for left in lefts],
            [round(top / downsample) for top in tops],
            max(1, round(size0 / downsample)),
            wanted,
            threads,
        )
        try:
            with closing(squares):
                for pixels in squares:
                    yield pixels if len(pixels) == out_px else _resize(pixels, out_px)
        except TileError as error:
            x0, y0 = round(error.x * downsample), round(error.y * downsample)
            raise self._undecodable(x0, y0, index, str(error)) from None

    def _read_each(
        self, corners: Iterable[tuple[int, int]], size0: int, out_px: int, threads: int
    ) -> Generator[Pixels]:
        pending: deque[Future[Pixels]] = deque()
        pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        try:
            for x0, y0 in corners:
                pending.append(pool.submit(self.read, x0, y0, size0, out_px))
                if len(pending) > DECODE_AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _tiled(self, index: int) -> TiledLevel | None:
        """A level that is read past OpenSlide: it was compared with it."""
        if index not in self._compared:
            self._compared[index] = self._compare(index)
        return self._compared[index]

    def _compare(self, index: int) -> TiledLevel | None:
        level = self._levels_of_tiles.get(self.levels[index][:2])
        if level is None:
            return None
        # Opened again: OpenSlide reads nothing more from a slide in which it met damage.
        with closing(_open_handle(self._path)) as handle:
            other = Slide(self._path, handle, self.resolution)
            return level if other._agrees(index, level) else None

    @cached_property
    def _levels_of_tiles(self) -> dict[tuple[int, int], TiledLevel]:
        """Levels of compressed tiles by width and height."""
        if self._handle.properties[openslide.PROPERTY_NAME_VENDOR] not in TILED_VENDORS:
            return {}
        return {(level.width, level.height): level for level in tiled_levels(self._path)}

    def _agrees(self, index: int, level: TiledLevel) -> bool:
        """Whether sampled compressed tiles hold exactly what OpenSlide shows there."""
        downsample = self.levels[index][2]
        places = np.flatnonzero(level.counts)
        for place in {int(places[at]) for at in (0, len(places) // 2, -1)} if len(places) else ():
            row, column = divmod(place, level.columns)
            x, y = column * level.tile_width, row * level.tile_height
            x0, y0 = round(x * downsample), round(y * downsample)
            # Between whole pixels OpenSlide interpolates: nothing to compare.
            if (x0, y0) != (x * downsample, y * downsample):
                continue
            edge = max(level.tile_width, level.tile_height)
            try:
                shown = self._read_level(x0, y0, index, edge)
                with closing(read_squares(self._path, level, [x], [y], edge, {0: [0]}, 1)) as found:
                    if not np.array_equal(shown, next(found)):
                        return False
            except LostEndError as error:
                raise self._undecodable(x0, y0, index, str(error)) from None
            except (SlideError, TileError):
                return False
        return True

    def check_decodes(self) -> None:
        """Decode a little in the middle of every level: damaged codec data fail now, not mid-run.

        Raises
        ------
        SlideError
            One cannot be decoded.
        """
        for level in range(len(self.levels)):
            self._read_level(self.width // 2, self.height // 2, level, 8)

    @property
    def properties(self) -> Mapping[str, str]:
        """The header as OpenSlide has it, which may name people, places and dates."""
        properties: Mapping[str, str] = self._handle.properties
        return properties

    @property
    def photographs(self) -> set[str]:
        """Names of the pictures beside the pyramid (label, macro, thumbnail)."""
        return set(self._handle.associated_images)

    def overview(self, mpp: float) -> tuple[Pixels, int]:
        """The whole slide near `mpp`: RGB uint8 (height, width, 3) and its integer downsample.

        Pixel (row, column) covers exactly the level-0 square of edge `downsample` at
        (column * downsample, row * downsample).
        """
        downsample = max(1, round(mpp / self.mpp))
        height, width = math.ceil(self.height / downsample), math.ceil(self.width / downsample)
        image = self._tiled_overview(downsample, height, width)
        if image is not None:
            return image, downsample
        block = max(1, 2048 // max(1, round(downsample / self._downsample_for(downsample))))
        block = min(block, max(height, width))
        image = np.empty((height, width, 3), np.uint8)
        for top in range(0, height, block):
            for left in range(0, width, block):
                x0, y0 = left * downsample, top * downsample
                pixels = self.read(x0, y0, block * downsample, block)
                image[top : top + block, left : left + block] = pixels[
                    : height - top, : width - left
                ]
        return image, downsample

    def _tiled_overview(self, downsample: int, height: int, width: int) -> Pixels | None:
        """The overview past OpenSlide, from tiles decoded at a fraction of their size if so."""
        index = self._level_for(downsample)
        fineness = downsample / self.levels[index][2]
        factor = reduction(fineness * LEVEL_TOLERANCE)
        tiled = self._tiled(index)
        level = reduced_level(tiled, factor) if tiled else None
        if level is None:
            return None
        try:
            return read_overview(self._path, level, fineness / factor, (height, width))
        except TileError as error:
            x0, y0 = (round(at * downsample * factor / fineness) for at in (error.x, error.y))
            raise self._undecodable(x0, y0, index, str(error)) from None

    def _downsample_for(self, wanted: float) -> float:
        return self.levels[self._level_for(wanted)][2]

    def _level_for(self, wanted: float) -> int:
        fine_enough = [
            level
            for level, (_, _, downsample) in enumerate(self.levels)
            if downsample <= wanted * LEVEL_TOLERANCE
        ]
        return fine_enough[-1] if fine_enough else 0

    @watched
    def _read_level(self, x0: int, y0: int, level: int, edge: int) -> Pixels:
        try:
            region = self._handle.read_region((x0, y0), level, (edge, edge))
        except openslide.OpenSlideError as error:
            raise self._undecodable(x0, y0, level, str(error)) from None
        return _on_white(np.asarray(region))

    def _undecodable(self, x0: int, y0: int, level: int, reason: str) -> SlideError:
        return SlideError(
            f"{self.name} cannot be decoded near x={x0}, y={y0} (level {level}): "
            f"{without_folders(reason, self._path)}"
        )


@contextmanager
def open_slide(path: Path, mpp: float | None = None) -> Iterator[Slide]:
    """Open a slide for reading.

    Parameters
    ----------
    path
        Local file.
    mpp
        The manifest's micrometres per pixel, used when the header has none.

    Raises
    ------
    SlideError
        Not a readable slide, or its resolution is unknown or implausible.
    """
    handle = _open_handle(path)
    try:
        yield Slide(path, handle, resolve_mpp(path, handle.properties, mpp))
    finally:
        handle.close()


def check_present(path: Path) -> None:
    """Refuse what is no file or has no bytes, with a `SlideError`."""
    if not path.exists():
        raise SlideError(f"{path.name} does not exist where the manifest says")
    if not path.is_file():
        raise SlideError(f"{path.name} is a folder, not a slide file")
    if path.stat().st_size == 0:
        raise SlideError(f"{path.name} is empty (0 bytes)")


@watched
def _open_handle(path: Path) -> openslide.OpenSlide:
    check_present(path)
    try:
        handle = openslide.OpenSlide(path)
    except openslide.OpenSlideUnsupportedFormatError:
        raise SlideError(f"{path.name} is not a slide in a format that OpenSlide reads") from None
    except openslide.OpenSlideError as error:
        reason = without_folders(str(error), path)
        raise SlideError(f"{path.name} cannot be opened: {reason}") from None
    handle.set_cache(openslide.OpenSlideCache(CACHE_BYTES))
    return handle


def _on_white(rgba: Pixels) -> Pixels:
    """Alpha-composite straight RGBA on white."""
    import cv2

    pixels = np.asarray(cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB), np.uint8)
    alpha = rgba[..., 3]
    if alpha.min() == 255:
        return pixels
    np.copyto(pixels, np.uint8(255), where=(alpha == 0)[..., None])
    partly = (alpha > 0) & (alpha < 255)
    if partly.any():
        weight = alpha[partly, None].astype(np.uint16)
        pixels[partly] = (pixels[partly] * weight + 255 * (255 - weight) + 127) // 255
    return pixels


def _resize(pixels: Pixels, out_px: int) -> Pixels:
    import cv2

    reduce = out_px < pixels.shape[0]
    method = cv2.INTER_AREA if reduce else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(pixels, (out_px, out_px), interpolation=method), dtype=np.uint8)
