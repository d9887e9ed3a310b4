"""A Hamamatsu NDPI file: one JPEG a level, with restart markers and their places in a tag."""

import io
import re
import struct
from pathlib import Path

import numpy as np
from PIL import Image

SHORT, LONG, SLONG, RATIONAL, FLOAT, ASCII = 3, 4, 9, 5, 11, 2
FORMAT_FLAG, SOURCE_LENS, FOCAL_PLANE, MCU_STARTS = 65420, 65421, 65424, 65426


def write_ndpi(path: Path, image: np.ndarray, blocks: int = 32, subsampling: int = 1) -> Path:
    """Write a single-level NDPI file at .5 um a pixel, 20 times magnified.

    Parameters
    ----------
    blocks
        JPEG blocks (MCUs) between restart markers; must divide the blocks of a row.
    subsampling
        As Pillow counts it: 0 is 4:4:4, 1 is 4:2:2, 2 is 4:2:0.
    """
    buffer = io.BytesIO()
    options = {"quality": 85, "subsampling": subsampling, "restart_marker_blocks": blocks}
    Image.fromarray(image).save(buffer, "JPEG", **options)
    jpeg = buffer.getvalue()
    scan = _end_of_header(jpeg)
    starts = [scan, *(found.end() for found in re.finditer(rb"\xff[\xd0-\xd7]", jpeg[scan:]))]
    starts[1:] = [scan + start for start in starts[1:]]
    height, width = image.shape[:2]
    strip = 12
    places = strip + len(jpeg)
    make = places + 4 * len(starts)
    resolution = make + len(b"Hamamatsu\0")
    directory = resolution + 8
    tags = [
        (256, LONG, 1, width),
        (257, LONG, 1, height),
        (258, SHORT, 1, 8),
        (259, SHORT, 1, 7),
        (262, SHORT, 1, 6),
        (271, ASCII, 10, make),
        (273, LONG, 1, strip),
        (277, SHORT, 1, 3),
        (278, LONG, 1, height),
        (279, LONG, 1, len(jpeg)),
        (282, RATIONAL, 1, resolution),
        (283, RATIONAL, 1, resolution),
        (296, SHORT, 1, 3),
        (FORMAT_FLAG, LONG, 1, 1),
        (SOURCE_LENS, FLOAT, 1, struct.unpack("<I", struct.pack("<f", 20))[0]),
        (FOCAL_PLANE, SLONG, 1, 0),
        (MCU_STARTS, LONG, len(starts), places),
    ]
    path.write_bytes(
        struct.pack("<2sHQ", b"II", 42, directory)
        + jpeg
        + struct.pack(f"<{len(starts)}I", *starts)
        + b"Hamamatsu\0"
        + struct.pack("<II", 20_000, 1)
        + struct.pack("<H", len(tags))
        + b"".join(struct.pack("<HHII", *tag) for tag in tags)
        + struct.pack("<Q", 0)
        + bytes(4 * len(tags))
    )
    return path


def _end_of_header(jpeg: bytes) -> int:
    """Offset of the first compressed byte: behind the start-of-scan segment."""
    at = 2
    while jpeg[at + 1] != 0xDA:
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
