"""Evidence on a slide's thumbnail, and crops of what it points to."""

import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mm_assets.explain.document import Instance
from mm_assets.wsi.levels import Pixels
from mm_assets.wsi.outline import small_png
from mm_assets.wsi.slide import Slide

FOR, AGAINST = (200, 30, 30), (30, 80, 200)
THUMBNAIL_PX, CROP_PX = 1600, 1024
STRONGEST_TINT = 0.5
INLINE_BYTES = 36_000  # 48,000 in base64
PNG_EFFORT = 3  # of 9: nearly as small as 6 in half the time
INLINE_PX = 500  # more rarely fits into so many bytes


def thumbnail(slide: Slide, longest_px: int = THUMBNAIL_PX) -> tuple[Pixels, int]:
    """The whole slide, RGB uint8, at most `longest_px` long, and its integer downsample."""
    downsample = math.ceil(max(slide.width, slide.height) / longest_px)
    return slide.overview(downsample * slide.mpp)


def heat(
    instances: Sequence[Instance], shape: tuple[int, int], downsample: float
) -> NDArray[np.float64]:
    """Score by area: that of each instance is spread evenly over its square.

    A large square thereby tells less of any place in it than a small one of the same score. An
    instance whose score is shared out among smaller ones is not drawn beside them.

    Parameters
    ----------
    instances
        Of one slide.
    shape
        Rows and columns of the result.
    downsample
        Level-0 pixels along the edge of one pixel of the result.

    Returns
    -------
    float64 array of `shape`, score per level-0 pixel.
    """
    field = np.zeros(shape)
    for instance in instances:
        if instance.shared_out:
            continue
        left, top, right, bottom = _box(instance, downsample)
        # Not by its own area: what is smaller than a pixel of the result fills one.
        area = (right - left) * (bottom - top) * downsample**2
        field[max(top, 0) : bottom, max(left, 0) : right] += instance.score / area
    return field


def draw_evidence(
    picture: Pixels, instances: Sequence[Instance], downsample: float, outlined: int = 12
) -> Image.Image:
    """Heat over a thumbnail and the strongest instances outlined with their ranks.

    Red speaks for the risk or the predicted class, blue against it; the tint is the square root
    of the heat, so that weaker places show too.

    Parameters
    ----------
    picture
        RGB uint8 (rows, columns, 3).
    instances
        Of this slide.
    downsample
        Level-0 pixels along the edge of one pixel of the picture.
    outlined
        How many instances get an outline.
    """
    field = heat(instances, picture.shape[:2], downsample)
    strongest = np.abs(field).max(initial=0)
    tint = STRONGEST_TINT * np.sqrt(np.abs(field) / strongest) if strongest else field
    mask = Image.fromarray((tint * 255).round().astype(np.uint8))
    colours = np.array([AGAINST, FOR], np.uint8)[(field >= 0).astype(np.intp)]
    image = Image.composite(Image.fromarray(colours), Image.fromarray(picture), mask)
    pen = ImageDraw.Draw(image)
    ordered = sorted(instances, key=lambda instance: instance.rank)[:outlined]
    for instance in reversed(ordered):
        _outline(pen, instance, downsample, image.size)
    return image


def small_picture(picture: Pixels, instances: Sequence[Instance], downsample: float) -> bytes:
    """`draw_evidence` as a PNG small enough to show inline."""
    first = min(1.0, INLINE_PX / max(picture.shape))

    def draw(attempt: float) -> Image.Image:
        scale = first * attempt
        size = [max(1, round(edge * scale)) for edge in picture.shape[1::-1]]
        smaller = Image.fromarray(picture).resize((size[0], size[1]), Image.Resampling.BOX)
        return draw_evidence(np.asarray(smaller), instances, downsample / scale)

    return small_png(draw, INLINE_BYTES)


def png_bytes(image: Image.Image | Pixels) -> bytes:
    """A picture as PNG."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        file, "PNG", compress_level=PNG_EFFORT
    )
    return file.getvalue()


def crop(slide: Slide, instance: Instance) -> Pixels:
    """The instance's pixels, RGB uint8, at full resolution up to an edge of `CROP_PX`."""
    edge = min(instance.size0, CROP_PX)
    return slide.read(instance.x, instance.y, instance.size0, edge)


def _box(instance: Instance, downsample: float) -> tuple[int, int, int, int]:
    """Left, top, right and bottom on the picture; at least a pixel."""
    left, top = round(instance.x / downsample), round(instance.y / downsample)
    right = max(left + 1, round((instance.x + instance.size0) / downsample))
    bottom = max(top + 1, round((instance.y + instance.size0) / downsample))
    return left, top, right, bottom


def _outline(
    pen: ImageDraw.ImageDraw, instance: Instance, downsample: float, size: tuple[int, int]
) -> None:
    """A square and its rank, kept inside the picture."""
    left, top, right, bottom = _box(instance, downsample)
    left, top = max(left, 0), max(top, 0)
    right, bottom = min(right, size[0]) - 1, min(bottom, size[1]) - 1
    colour = FOR if instance.score >= 0 else AGAINST
    width = max(1, round(max(size) / 500))
    pen.rectangle((left, top, right, bottom), outline=colour, width=width)
    text = str(instance.rank)
    label = pen.textbbox((left + width, top + width), text, font_size=max(9, max(size) // 60))
    pen.rectangle(label, fill=colour)
    pen.text((left + width, top + width), text, fill="white", font_size=max(9, max(size) // 60))
