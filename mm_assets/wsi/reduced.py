"""Overviews of slides that have no small level: tiles are decoded at a fraction of their size.

JPEG and JPEG 2000 keep coarse detail apart from fine. A decoder that leaves the fine out gives
about the means of 2, 4 or 8 pixels a side (of 8, JPEG's own) at a fraction of the work. Good for
finding tissue (JPEG 2000 shows everything up to half a pixel nearer to the origin); not what
OpenSlide shows, so nothing is embedded from it.
"""

import io
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from mm_assets.wsi.levels import RGB, Pixels, TiledLevel, decode_jpeg2000
from mm_assets.wsi.tiled import read_squares

BLOCK = 256
FACTORS = (8, 4)
# An Adobe marker that says "no colour transform".
JPEG_START, JPEG_SAYS_RGB = b"\xff\xd8", b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"


def reduction(downsample: float) -> int:
    """By how much to reduce a level too fine by `downsample`; 1 where it is not worth it."""
    return next((factor for factor in FACTORS if factor <= downsample), 1)


def reduced_level(level: TiledLevel, factor: int) -> TiledLevel | None:
    """The level as if it were `factor` times smaller, or None if its codec cannot do that.

    The last pixel of a row or column may hold some of what pads the last tile.
    """
    if factor == 1:
        return level
    decode = _reduced_codec(level.decode, factor)
    if decode is None or level.tile_width % factor or level.tile_height % factor:
        return None
    return replace(
        level,
        width=-(-level.width // factor),
        height=-(-level.height // factor),
        tile_width=level.tile_width // factor,
        tile_height=level.tile_height // factor,
        decode=decode,
    )


def read_overview(path: Path, level: TiledLevel, scale: float, shape: tuple[int, int]) -> Pixels:
    """The whole level, reduced further by area averaging.

    Parameters
    ----------
    scale
        Level pixels along the edge of one pixel of the overview, 1 or more.
    shape
        Height and width of the overview; what lies outside the level is white.

    Returns
    -------
    uint8 RGB (height, width, 3).

    Raises
    ------
    TileError
        A compressed tile cannot be decoded.
    """
    import cv2

    height, width = shape
    tops, lefts = range(0, height, BLOCK), range(0, width, BLOCK)
    image = np.empty((height, width, 3), np.uint8)
    squares = read_squares(
        path,
        level,
        [round(left * scale) for left in lefts],
        [round(top * scale) for top in tops],
        round(BLOCK * scale),
        {row: range(len(lefts)) for row in range(len(tops))},
        1,
    )
    with closing(squares):
        for (top, left), square in zip(product(tops, lefts), squares, strict=True):
            block = cv2.resize(square, (BLOCK, BLOCK), interpolation=cv2.INTER_AREA)
            part = image[top : top + BLOCK, left : left + BLOCK]
            part[:] = block[: part.shape[0], : part.shape[1]]
    return image


def _reduced_codec(decode: Callable[..., Any], factor: int) -> Callable[..., Any] | None:
    import imagecodecs

    if decode is decode_jpeg2000:
        return partial(_decode_jpeg2000, factor=factor)
    if isinstance(decode, partial) and decode.func is imagecodecs.jpeg8_decode:
        tables = (decode.keywords["tables"] or b"")[len(JPEG_START) : -2]
        marker = JPEG_SAYS_RGB if decode.keywords["colorspace"] == RGB else b""
        return partial(_decode_jpeg, factor=factor, start=JPEG_START + marker + tables)
    return None


def _decode_jpeg(data: memoryview, out: Pixels, factor: int, start: bytes) -> None:
    import cv2

    flag = {4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}[factor]
    stream = np.frombuffer(start + data[len(JPEG_START) :], np.uint8)
    image = cv2.imdecode(stream, flag | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise ValueError("not valid JPEG data")
    out[:] = image[..., ::-1]


def _decode_jpeg2000(data: memoryview, out: Pixels, factor: int) -> None:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.size != (out.shape[1] * factor, out.shape[0] * factor):
                raise ValueError("the compressed tile is not of the announced size")
            image.reduce = factor.bit_length() - 1  # type: ignore[assignment, method-assign]
            out[:] = np.asarray(image)
    except OSError as error:
        raise ValueError(str(error)) from None
