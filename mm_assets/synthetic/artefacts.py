"""What happens to glass: pen marks, a fold, a patch out of focus."""

import cv2
import numpy as np
from shapely.geometry import MultiPolygon

PEN_COLOURS = {
    "blue": (40, 60, 165),
    "green": (25, 120, 70),
    "black": (28, 28, 32),
    "red": (200, 35, 50),
}


def draw_pen(
    rng: np.random.Generator, image: np.ndarray, tissue: MultiPolygon, colour: str
) -> None:
    """Draw an arc of felt pen round the tissue, in place.

    Parameters
    ----------
    image
        uint8, shape (height, width, 3).
    colour
        A key of `PEN_COLOURS`.
    """
    left, top, right, bottom = tissue.bounds
    centre = (int((left + right) / 2), int((top + bottom) / 2))
    axes = (int((right - left) * 0.49), int((bottom - top) * 0.49))
    start = rng.uniform(0, 360)
    ink: np.ndarray = np.zeros(image.shape[:2], np.uint8)
    width = int(rng.integers(16, 28))
    cv2.ellipse(ink, centre, axes, 0, start, start + rng.uniform(50, 100), 255, width)
    ink = cv2.GaussianBlur(ink, (0, 0), 1.5)
    rows, columns = _extent(ink)
    cover = ink[rows, columns, None].astype(np.float32) / 255 * 0.93
    patch = image[rows, columns]
    patch[:] = patch + cover * (np.array(PEN_COLOURS[colour], np.float32) - patch)


def fold(rng: np.random.Generator, image: np.ndarray, tissue: MultiPolygon) -> None:
    """Fold the tissue along a strip, in place: two layers absorb, so densities add."""
    left, top, right, bottom = tissue.bounds
    centre = np.array([(left + right) / 2, (top + bottom) / 2])
    angle = rng.uniform(0, np.pi)
    along = np.array([np.cos(angle), np.sin(angle)]) * 0.35 * min(right - left, bottom - top)
    ends = [tuple(int(v) for v in centre + sign * along) for sign in (-1, 1)]
    strip: np.ndarray = np.zeros(image.shape[:2], np.uint8)
    cv2.line(strip, ends[0], ends[1], 255, int(rng.integers(36, 60)))
    strip = cv2.GaussianBlur(strip, (0, 0), 2.5)
    rows, columns = _extent(strip)
    patch = image[rows, columns]
    second_layer = np.roll(patch, (37, 53), axis=(0, 1)).astype(np.float32) / 245
    cover = strip[rows, columns, None].astype(np.float32) / 255
    patch[:] = patch * (1 - cover * (1 - 0.85 * second_layer))


def blur_patch(rng: np.random.Generator, image: np.ndarray, tissue: MultiPolygon) -> None:
    """Put a round patch of tissue out of focus, in place."""
    point = tissue.representative_point()
    x, y = np.array([point.x, point.y]) + rng.uniform(-150, 150, 2)
    radius = int(rng.uniform(150, 260))
    mask: np.ndarray = np.zeros(image.shape[:2], np.uint8)
    cv2.circle(mask, (int(x), int(y)), radius, 255, -1)
    mask = cv2.GaussianBlur(mask, (0, 0), 20)
    rows, columns = _extent(mask)
    patch = image[rows, columns]
    blurred = cv2.GaussianBlur(patch, (0, 0), 4.5).astype(np.float32)
    cover = mask[rows, columns, None].astype(np.float32) / 255
    patch[:] = patch + cover * (blurred - patch)


def _extent(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns that hold everything above zero."""
    x, y, width, height = cv2.boundingRect(mask)
    return slice(y, y + height), slice(x, x + width)
