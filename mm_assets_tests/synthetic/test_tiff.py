from pathlib import Path

import numpy as np
import openslide
import pytest

from mm_assets.synthetic.tiff import write_pyramid


def ramp(height: int, width: int) -> np.ndarray:
    """A smooth picture, which JPEG keeps within a few grey levels."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 200 // width, y * 200 // height, 120 + 0 * x], axis=-1).astype(np.uint8)


def test_openslide_reads_levels_scale_and_pixels(tmp_path: Path) -> None:
    image = ramp(1030, 1301)
    write_pyramid(tmp_path / "a.tiff", image, mpp=0.25)
    with openslide.OpenSlide(tmp_path / "a.tiff") as slide:
        assert slide.properties["openslide.vendor"] == "generic-tiff"
        assert slide.level_dimensions == ((1301, 1030), (650, 515), (325, 257))
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.25)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.25)
        pixels = np.asarray(slide.read_region((0, 0), 0, slide.dimensions))
    assert (pixels[..., 3] == 255).all()
    assert np.abs(pixels[..., :3].astype(int) - image).max() <= 12


def test_no_scale_when_none_is_given(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "a.tiff", ramp(300, 300), mpp=None)
    with openslide.OpenSlide(tmp_path / "a.tiff") as slide:
        assert "openslide.mpp-x" not in slide.properties
        assert slide.level_count == 1


def test_same_arguments_give_same_bytes(tmp_path: Path) -> None:
    for name in ("a.tiff", "b.tiff"):
        write_pyramid(tmp_path / name, ramp(520, 610))
    assert (tmp_path / "a.tiff").read_bytes() == (tmp_path / "b.tiff").read_bytes()


@pytest.mark.parametrize("image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32)])
def test_other_images_are_refused(tmp_path: Path, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected uint8 RGB"):
        write_pyramid(tmp_path / "a.tiff", image)
