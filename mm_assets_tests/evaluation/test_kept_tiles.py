"""Pictures of kept tiles."""

import io

import numpy as np
import pytest
from PIL import Image

from mm_assets.evaluation.kept_tiles import KEPT_COLOUR, KeptTiles, draw_kept_tiles

TITLE_PX = 16


def slide(thumbnail_px: int, kept: list[bool]) -> KeptTiles:
    """A grey slide of 4000 px with tiles of 1000 px along its diagonal."""
    file = io.BytesIO()
    Image.new("RGB", (thumbnail_px, thumbnail_px), (90, 90, 90)).save(file, "PNG")
    at = np.arange(len(kept), dtype=np.int32) * 1000
    sizes = np.full(len(kept), 1000, np.int32)
    return KeptTiles("S1", file.getvalue(), 4000, at, at, sizes, np.array(kept))


@pytest.mark.parametrize("thumbnail_px", [60, 500, 3000])
def test_kept_tiles_are_outlined_and_the_others_faded(thumbnail_px: int) -> None:
    png = draw_kept_tiles([slide(thumbnail_px, [True, False, False])])
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)[TITLE_PX:]
    tile = pixels.shape[1] / 4

    def colour(column: float, row: float) -> np.ndarray:
        return pixels[round(row * tile), round(column * tile)]

    outlined = np.abs(pixels - KEPT_COLOUR[:3]).max(axis=2) < 20
    rows, columns = np.nonzero(outlined)
    assert (rows.min(), columns.min()) == (0, 0)
    assert max(rows.max(), columns.max()) == pytest.approx(tile, abs=2)
    assert colour(0.5, 0.5).mean() == pytest.approx(90, abs=8)
    assert colour(1.5, 1.5).mean() > 150
    assert colour(3.5, 0.5).mean() == pytest.approx(90, abs=8)


def test_sheet_fits_its_limit() -> None:
    rng = np.random.default_rng(0)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (300, 300, 3), np.uint8)).save(file, "PNG")
    none = np.empty(0, np.int32)
    noisy = KeptTiles("noisy", file.getvalue(), 9000, none, none, none, none.astype(bool))
    png = draw_kept_tiles([noisy] * 4, max_bytes=20_000)
    assert len(png) <= 20_000
    assert Image.open(io.BytesIO(png)).width > 100


def test_no_slide_is_refused() -> None:
    with pytest.raises(ValueError, match="no slide"):
        draw_kept_tiles([])
