"""Thumbnails of slides with the tiles that a selection keeps."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mm_assets.wsi.outline import MOST_BYTES, small_png

PANEL_PX, GAP_PX = 360, 12
KEPT_COLOUR, DROPPED_VEIL = (200, 30, 60, 255), (255, 255, 255, 150)


@dataclass(frozen=True, eq=False)
class KeptTiles:
    """A slide and its tiles.

    Attributes
    ----------
    title
        Written above the slide.
    thumbnail
        PNG or JPEG of the whole slide.
    width
        Level-0 pixels across the slide.
    x, y, size0
        int32 [n]: top-left corner and edge of each tile in level-0 pixels.
    kept
        bool [n].
    """

    title: str
    thumbnail: bytes
    width: int
    x: NDArray[np.int32]
    y: NDArray[np.int32]
    size0: NDArray[np.int32]
    kept: NDArray[np.bool_]


def draw_kept_tiles(slides: Sequence[KeptTiles], max_bytes: int = MOST_BYTES) -> bytes:
    """The slides side by side as one PNG: kept tiles outlined, the others faded.

    Raises
    ------
    ValueError
        If there is no slide.
    """
    if not slides:
        raise ValueError("no slide to draw")
    panels = [_panel(slide) for slide in slides]
    sheet = Image.new(
        "RGB",
        (
            sum(panel.width for panel in panels) + GAP_PX * (len(panels) - 1),
            max(panel.height for panel in panels),
        ),
        "white",
    )
    left = 0
    for panel in panels:
        sheet.paste(panel, (left, 0))
        left += panel.width + GAP_PX

    def at(scale: float) -> Image.Image:
        return sheet.resize(
            (max(1, round(sheet.width * scale)), max(1, round(sheet.height * scale))),
            Image.Resampling.BOX,
        )

    return small_png(at, max_bytes)


def _panel(slide: KeptTiles) -> Image.Image:
    """One slide, its longer edge `PANEL_PX`, under its title."""
    picture = Image.open(io.BytesIO(slide.thumbnail)).convert("RGB")
    zoom = PANEL_PX / max(picture.size)
    size = (max(1, round(picture.width * zoom)), max(1, round(picture.height * zoom)))
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    overlay = Image.new("RGBA", picture.size)
    pen = ImageDraw.Draw(overlay)
    scale = picture.width / slide.width
    corners = np.column_stack([slide.x, slide.y, slide.x + slide.size0, slide.y + slide.size0])
    # Kept tiles last, so that their outline is not faded by a neighbour.
    for kept in (False, True):
        for left, top, right, bottom in (corners[slide.kept == kept] * scale).tolist():
            box = (left, top, right - 1, bottom - 1)
            if kept:
                pen.rectangle(box, outline=KEPT_COLOUR, width=2)
            else:
                pen.rectangle(box, fill=DROPPED_VEIL)
    picture.paste(overlay, mask=overlay)
    panel = Image.new("RGB", (picture.width, picture.height + 16), "white")
    panel.paste(picture, (0, 16))
    ImageDraw.Draw(panel).text((2, 2), slide.title, fill="black")
    return panel
