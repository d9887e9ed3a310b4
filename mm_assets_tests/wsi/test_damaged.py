"""What the checks say of damaged slides, and that codestreams without an end are refused."""

import re
from pathlib import Path

import imagecodecs
import numpy as np
import pytest

from mm_assets.wsi.inspection import inspect_slide
from mm_assets.wsi.levels import tiled_levels
from mm_assets.wsi.slide import SlideError, open_slide
from mm_assets.wsi.tiled import TileError, read_squares
from mm_assets_tests.wsi.damaged import (
    BASES,
    corpus,
    jpeg2000_of_true_size,
    make,
    truncated,
    with_tile,
    zeroed_tile,
)


def test_the_corpus_is_large_and_its_names_are_files() -> None:
    names = list(corpus())
    assert len(names) >= 300
    assert len({name.replace("=", "-") for name in names}) == len(names)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("jpeg-cut-50", "the file is truncated"),
        ("jpeg-tile=1000000", "tiles of 1000000 x 1000000 px, which no scanner writes"),
        ("jpeg-one-tile=65520", "tiles of 65520 x 65520 px, which no scanner writes"),
        ("jpeg-picture=1000000", "(1000000 x 1000000 px) cannot be in 1"),
        ("jpeg-picture=2", "has 1 tiles, and lists 9"),
        ("jpeg-width=65536", "has 768 tiles, and lists 9"),
        ("jpeg-tile-length=0", "its TIFF structure is damaged (ZeroDivisionError)"),
        ("jpeg-bomb-claims-65500", "expected 256x256, got 65500x65500"),
        ("j2k-bomb-claims-2G", "expected 256x256, got 2147483647x2147483647"),
        ("impostor-zero", "is empty (0 bytes)"),
        ("impostor-html", "is not a slide in a format that OpenSlide reads"),
    ],
)
def test_reasons(tmp_path: Path, name: str, reason: str) -> None:
    path = make([name], tmp_path, tmp_path)[name]
    with pytest.raises(SlideError, match=re.escape(reason)) as refused:
        inspect_slide(path, None)
    assert str(refused.value).startswith(path.name)


def base(folder: Path, name: str) -> Path:
    path = folder / name
    BASES[name](path)
    return path


def squares(path: Path) -> list[np.ndarray]:
    """All tiles of level 0, by the fast path."""
    level = max(tiled_levels(path), key=lambda level: level.width)
    grid = [0, 256, 512]
    wanted = {row: [0, 1, 2] for row in range(3)}
    return [pixels.copy() for pixels in read_squares(path, level, grid, grid, 256, wanted, 1)]


@pytest.mark.parametrize("name", ["jpeg.tiff", "j2k.svs"])
@pytest.mark.parametrize("index", [0, 5, 8])
def test_a_tile_that_lost_its_end(tmp_path: Path, name: str, index: int) -> None:
    path = base(tmp_path, name)
    path.write_bytes(zeroed_tile(index, kept=0.6)(path.read_bytes()))
    with pytest.raises(TileError, match="has lost its end") as refused:
        squares(path)
    assert (refused.value.x, refused.value.y) == (index % 3 * 256, index // 3 * 256)
    whole = {row: [0, 1, 2] for row in range(3)}
    with open_slide(path) as slide:
        read = slide.read_squares([0, 256, 512], [0, 256, 512], 256, 256, whole, 1)
        with pytest.raises(SlideError, match=r"lost its end|Premature end"):
            list(read)


@pytest.mark.parametrize("padding", [b"\0", bytes(7), b"\xff\xff\0"])
def test_padding_behind_the_end_is_fine(tmp_path: Path, padding: bytes) -> None:
    path = base(tmp_path, "jpeg.tiff")
    tile = bytes(imagecodecs.jpeg8_encode(np.full((256, 256, 3), 200, np.uint8)))
    path.write_bytes(with_tile(lambda: tile + padding, only=5)(path.read_bytes()))
    assert abs(int(squares(path)[5][:128, :128].mean()) - 200) <= 2


def test_jpeg_2000_of_another_size_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = base(tmp_path, "j2k.svs")
    damage = with_tile(lambda: jpeg2000_of_true_size(1000), only=0)
    path.write_bytes(damage(path.read_bytes()))
    monkeypatch.setattr(imagecodecs, "jpeg2k_decode", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(TileError, match="not of 256 x 256 px"):
        squares(path)


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "TCGA-CR-7395-01A-01-TS1.svs"])
def test_real_slides_cut_short(shared_data: Path, tmp_path: Path, name: str) -> None:
    data = (shared_data / "slides" / name).read_bytes()
    path = tmp_path / name
    for percent in (1, 25, 50, 75, 90, 99):
        path.write_bytes(truncated(percent)(data))
        with pytest.raises(SlideError, match="truncated"):
            inspect_slide(path, 0.5)
