"""The fast path of tiled TIFFs shows what OpenSlide shows, and decodes each tile once."""

from dataclasses import replace
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_assets.wsi.inspection import inspect_slide
from mm_assets.wsi.levels import TiledLevel, tiled_levels
from mm_assets.wsi.slide import open_slide
from mm_assets.wsi.tiled import TileError, read_squares, unaligned
from mm_assets_tests.wsi.hamamatsu import write_ndpi

HEIGHT, WIDTH = 900, 1300


def picture(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 255, (height // 12, width // 12, 3))
    return cv2.resize(coarse.astype(np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)


def write(path: Path, image: np.ndarray, tile: int, **options) -> Path:
    tifffile.imwrite(path, image, tile=(tile, tile), metadata=None, **options)
    return path


@pytest.fixture(scope="module")
def jpeg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiled") / "jpeg.tiff"
    return write(path, picture(), 240, photometric="ycbcr", compression="jpeg")


def shown(path: Path, level: int = 0) -> np.ndarray:
    """All pixels of a level as OpenSlide has them, on white."""
    with openslide.OpenSlide(path) as handle:
        rgba = np.asarray(handle.read_region((0, 0), level, handle.level_dimensions[level]))
    return np.where(rgba[..., 3:] == 0, 255, rgba[..., :3]).astype(np.uint8)


def expected(image: np.ndarray, left: int, top: int, edge: int) -> np.ndarray:
    canvas = np.full((edge, edge, 3), 255, np.uint8)
    inside = image[top : top + edge, left : left + edge]
    canvas[: inside.shape[0], : inside.shape[1]] = inside
    return canvas


def assert_same(path: Path, level: TiledLevel, image: np.ndarray, edge: int, shift: int) -> None:
    lefts = list(range(shift, level.width, edge))
    tops = list(range(shift, level.height, edge))
    wanted = {row: list(range(len(lefts))) for row in range(len(tops))}
    corners = [(left, top) for top in tops for left in lefts]
    squares = read_squares(path, level, lefts, tops, edge, wanted, 2)
    for corner, square in zip(corners, squares, strict=True):
        assert (square == expected(image, *corner, edge)).all(), corner


@pytest.mark.parametrize("tile", [240, 256, 512])
@pytest.mark.parametrize(
    ("photometric", "subsampling"),
    [("ycbcr", (1, 1)), ("ycbcr", (2, 1)), ("ycbcr", (2, 2)), ("rgb", None)],
)
def test_jpeg_pixels_are_openslides(tmp_path, tile, photometric, subsampling):
    path = write(
        tmp_path / "a.tiff",
        picture(),
        tile,
        photometric=photometric,
        subsampling=subsampling,
        compression="jpeg",
    )
    image = shown(path)
    for level in tiled_levels(path):
        for edge, shift in ((tile, 0), (256, 0), (256, 100), (97, 13)):
            assert_same(path, level, image, edge, shift)


@pytest.mark.parametrize(
    ("compression", "predictor"),
    [(None, None), ("lzw", True), ("deflate", True), ("deflate", False)],
)
def test_lossless_pixels_are_openslides(tmp_path, compression, predictor):
    path = write(
        tmp_path / "a.tiff",
        picture(),
        256,
        photometric="rgb",
        compression=compression,
        predictor=predictor,
        resolution=(20_000, 20_000),
        resolutionunit="CENTIMETER",
    )
    (level,) = tiled_levels(path)
    for edge, shift in ((256, 0), (240, 31)):
        assert_same(path, level, shown(path), edge, shift)
    with open_slide(path) as slide:
        assert slide.reader_at(1).startswith("imagecodecs ")


@pytest.mark.parametrize(("subsampling", "blocks"), [(0, 32), (1, 32), (1, 16)])
def test_ndpi_pixels_are_openslides(tmp_path, subsampling, blocks):
    path = write_ndpi(tmp_path / "a.ndpi", picture(1024, 2048), blocks, subsampling)
    (level,) = tiled_levels(path)
    assert level.tile_height == 8
    image = shown(path)
    for edge, shift in ((256, 0), (240, 31)):
        assert_same(path, level, image, edge, shift)
    facts = inspect_slide(path, None)
    assert (facts.vendor, facts.mpp, facts.magnification) == ("hamamatsu", 0.5, 20)
    with open_slide(path) as slide:
        assert slide.reader_at(1).startswith("imagecodecs ")
        half = next(slide.read_squares([0], [0], 512, 256, {0: [0]}, 1)).copy()
        assert (half == slide.read(0, 0, 512, 256)).all()


def test_the_base_level_of_ome_tiff_is_read_past_openslide(tmp_path):
    path = tmp_path / "a.ome.tiff"
    options = {"tile": (256, 256), "photometric": "ycbcr", "compression": "jpeg"}
    resolution = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(picture(), subifds=1, **options, **resolution)
        writer.write(picture()[::2, ::2], subfiletype=1, **options)
    with open_slide(path) as slide:
        assert slide.reader_at(1).startswith("imagecodecs ")
        image = shown(path)
        squares = slide.read_squares([7, 263], [9], 256, 256, {0: [0, 1]}, 2)
        for left, pixels in zip((7, 263), squares, strict=True):
            assert (pixels == expected(image, left, 9, 256)).all()


def test_aperio_jpeg_2000_pixels_are_openslides(tmp_path):
    path = write(
        tmp_path / "a.svs",
        picture(),
        256,
        photometric="rgb",
        compression="APERIO_JP2000_RGB",
        description="Aperio Image Library v1\n1300x900|AppMag = 20|MPP = 0.5",
    )
    (level,) = tiled_levels(path)
    for edge, shift in ((256, 0), (200, 31)):
        assert_same(path, level, shown(path), edge, shift)
    with open_slide(path) as slide:
        assert slide.reader_at(1).startswith("imagecodecs ")


@settings(max_examples=40, deadline=None)
@given(
    edge=st.integers(1, 400),
    left=st.integers(0, 300),
    top=st.integers(0, 300),
    keep=st.lists(st.booleans(), min_size=64, max_size=64),
    threads=st.integers(1, 3),
)
def test_any_grid_and_any_choice_of_its_squares(jpeg, edge, left, top, keep, threads):
    (level,) = tiled_levels(jpeg)
    image = shown(jpeg)
    lefts = list(range(left, WIDTH, edge))[:8]
    tops = list(range(top, HEIGHT, edge))[:8]
    chosen = {
        row: [column for column in range(len(lefts)) if keep[row * 8 + column]]
        for row in range(len(tops))
    }
    wanted = {row: columns for row, columns in chosen.items() if columns}
    corners = [(lefts[column], tops[row]) for row, columns in wanted.items() for column in columns]
    squares = read_squares(jpeg, level, lefts, tops, edge, wanted, threads)
    for corner, square in zip(corners, squares, strict=True):
        assert (square == expected(image, *corner, edge)).all()


@pytest.mark.parametrize(("edge", "shift"), [(240, 0), (256, 0), (256, 100), (500, 7)])
def test_every_compressed_tile_is_decoded_once(jpeg, edge, shift):
    (level,) = tiled_levels(jpeg)
    decoded: list[bytes] = []

    def counting(data, out):
        decoded.append(bytes(data))
        level.decode(data, out=out)

    counted = replace(level, decode=counting)
    lefts, tops = list(range(shift, WIDTH, edge)), list(range(shift, HEIGHT, edge))
    wanted = {row: list(range(len(lefts))) for row in range(len(tops))}
    for _ in read_squares(jpeg, counted, lefts, tops, edge, wanted, 2):
        pass
    assert len(decoded) == len(set(decoded)) == len(level.offsets)

    decoded.clear()
    for _ in read_squares(jpeg, counted, lefts, tops, edge, {1: [1]}, 2):
        pass
    columns = {x // 240 for x in (lefts[1], lefts[1] + edge - 1)}
    rows = {y // 240 for y in (tops[1], min(tops[1] + edge, HEIGHT) - 1)}
    assert len(decoded) == len(range(min(columns), max(columns) + 1)) * len(
        range(min(rows), max(rows) + 1)
    )


def test_tiles_that_the_file_leaves_out_are_white(jpeg, tmp_path):
    path = tmp_path / "sparse.tiff"
    data = bytearray(jpeg.read_bytes())
    with tifffile.TiffFile(jpeg) as file:
        tags = file.pages[0].aspage().tags
        for name in ("TileOffsets", "TileByteCounts"):
            tag = tags[name]
            size = tag.valuebytecount // tag.count
            data[tag.valueoffset + size : tag.valueoffset + 3 * size] = bytes(2 * size)
    path.write_bytes(data)
    (level,) = tiled_levels(path)
    assert list(level.counts[1:3]) == [0, 0]
    image = shown(path)
    assert (image[:240, 240:720] == 255).all()
    for edge, shift in ((240, 0), (256, 50)):
        assert_same(path, level, image, edge, shift)


def test_a_damaged_tile_says_where_it_is(jpeg, tmp_path):
    (level,) = tiled_levels(jpeg)
    path = tmp_path / "damaged.tiff"
    data = bytearray(jpeg.read_bytes())
    at = level.columns + 2
    data[level.offsets[at] : level.offsets[at] + level.counts[at]] = bytes(level.counts[at])
    path.write_bytes(data)
    with pytest.raises(TileError) as caught:
        list(read_squares(path, level, [0, 500], [300], 256, {0: [0, 1]}, 2))
    assert (caught.value.x, caught.value.y) == (480, 240)


def test_buffers_are_not_written_past_the_cache():
    for size in (1, 240 * 240 * 3, 5_000_000):
        assert unaligned(size).ctypes.data % 32 == 8
        assert unaligned(size).size == size


def test_memory_does_not_grow_with_the_height(tmp_path):
    import tracemalloc

    def peak(height: int) -> int:
        path = write(
            tmp_path / f"{height}.tiff",
            picture(height, 512),
            256,
            photometric="ycbcr",
            compression="jpeg",
        )
        (level,) = tiled_levels(path)
        tops = list(range(0, height, 240))
        wanted = {row: [0, 1] for row in range(len(tops))}
        tracemalloc.start()
        for _ in read_squares(path, level, [0, 240], tops, 240, wanted, 2):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    # How far the threads run ahead, and with it the peak, varies by a third.
    assert peak(16_384) < 2 * peak(2048)


def test_a_large_slide_of_one_level(tmp_path):
    """20,480 x 20,000 px from a hundred different tiles."""
    image = picture(2560, 2560)
    encoded = [
        bytes(imagecodecs.jpeg8_encode(image[y : y + 256, x : x + 256], level=50))
        for y in range(0, 2560, 256)
        for x in range(0, 2560, 256)
    ]
    path = tmp_path / "large.tiff"
    tifffile.imwrite(
        path,
        (encoded[(7 * number) % 100] for number in range(79 * 80)),
        shape=(20_000, 20_480, 3),
        dtype=np.uint8,
        tile=(256, 256),
        photometric="ycbcr",
        subsampling=(2, 2),
        compression="jpeg",
        metadata=None,
    )
    lefts, tops = list(range(100, 20_480, 300)), list(range(100, 20_000, 300))
    wanted = {row: list(range(row % 7, len(lefts), 7)) for row in range(0, len(tops), 3)}
    corners = [(lefts[column], tops[row]) for row, columns in wanted.items() for column in columns]
    with openslide.OpenSlide(path) as handle, open_slide(path, 0.5) as slide:
        squares = slide.read_squares(lefts, tops, 300, 300, wanted, 2)
        for corner, square in zip(corners, squares, strict=True):
            rgba = np.asarray(handle.read_region(corner, 0, (300, 300)))
            shown_there = np.where(rgba[..., 3:] == 0, 255, rgba[..., :3])
            assert (square == shown_there).all(), corner
        assert slide.reader_at(1).startswith("imagecodecs ")


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "TCGA-CR-7395-01A-01-TS1.svs"])
def test_real_slides_read_as_openslide_shows_them(shared_data, name):
    path = shared_data / "slides" / name
    level = tiled_levels(path)[0]
    for edge, shift in ((level.tile_width, 0), (256, 77)):
        assert_same(path, level, shown(path), edge, shift)
    with open_slide(path, 0.5) as slide:
        assert slide.reader_at(1).startswith("imagecodecs ")


@pytest.mark.parametrize("name", ["small.svs", "boxes.tiff"])
def test_odd_slides_read_as_openslide_shows_them(shared_data, name):
    path = shared_data / "slides" / name
    image = shown(path)
    with open_slide(path, 0.5) as slide:
        lefts, tops = list(range(0, slide.width, 97)), list(range(0, slide.height, 97))
        wanted = {row: list(range(len(lefts))) for row in range(len(tops))}
        corners = [(left, top) for top in tops for left in lefts]
        squares = slide.read_squares(lefts, tops, 97, 97, wanted, 2)
        for (left, top), square in zip(corners, squares, strict=True):
            assert (square == expected(image, left, top, 97)).all()
