import hashlib
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
import tifffile

from mm_assets.synthetic.tiff import write_pyramid
from mm_assets.wsi.errors import without_folders
from mm_assets.wsi.inspection import inspect_slide, slide_digest
from mm_assets.wsi.levels import tiled_levels
from mm_assets.wsi.slide import SlideError, _on_white, open_slide
from mm_assets_tests.wsi import painted


@pytest.fixture(scope="module")
def textured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1500 x 1100 px of smooth random texture, pyramidal, 0.5 um a pixel."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 255, (70, 95, 3)).astype(np.uint8)
    image = cv2.resize(coarse, (1500, 1100), interpolation=cv2.INTER_CUBIC)
    return painted.slide_file(tmp_path_factory.mktemp("slides"), image)


@pytest.fixture(scope="module")
def flat(textured: Path) -> Path:
    """The same pixels without a pyramid and without loss."""
    path = textured.with_name("flat.tiff")
    image = level_0(textured)
    tifffile.imwrite(
        path, image, tile=(256, 256), compression="deflate", metadata=None, photometric="rgb"
    )
    return path


def level_0(path: Path) -> np.ndarray:
    with openslide.OpenSlide(path) as handle:
        return np.asarray(handle.read_region((0, 0), 0, handle.dimensions).convert("RGB"))


def write_plain(path: Path, **tags) -> Path:
    tifffile.imwrite(
        path,
        painted.glass(512, 512),
        tile=(256, 256),
        compression="jpeg",
        metadata=None,
        **tags,
    )
    return path


# ---- reading ------------------------------------------------------------------------------------


def test_without_resampling_pixels_are_openslides(textured):
    image = level_0(textured)
    with open_slide(textured) as slide:
        for x, y in ((0, 0), (256, 512), (133, 77), (1244, 844)):
            assert (slide.read(x, y, 256, 256) == image[y : y + 256, x : x + 256]).all()


def test_real_slides_without_resampling(shared_data):
    for name in ("CMU-1-Small-Region.svs", "TCGA-CR-7395-01A-01-TS1.svs"):
        path = shared_data / "slides" / name
        with open_slide(path, 0.5) as slide, openslide.OpenSlide(path) as handle:
            region = np.asarray(handle.read_region((700, 900), 0, (300, 300)).convert("RGB"))
            assert (slide.read(700, 900, 300, 300) == region).all()


def test_reduction_is_the_mean_of_the_area(flat):
    image = level_0(flat)
    with open_slide(flat, 0.5) as slide:
        assert len(slide.levels) == 1
        quarter = slide.read(100, 50, 512, 128).astype(float)
    means = image[50:562, 100:612].reshape(128, 4, 128, 4, 3).mean((1, 3))
    assert np.abs(quarter - means).max() <= 0.5 + 1e-6


def test_the_coarsest_level_that_is_fine_enough_is_read(textured):
    with open_slide(textured) as slide, openslide.OpenSlide(textured) as handle:
        assert [round(downsample) for _, _, downsample in slide.levels] == [1, 2, 4]
        second = np.asarray(handle.read_region((0, 0), 1, (256, 256)).convert("RGB"))
        assert (slide.read(0, 0, 512, 256) == second).all()
        reduced = cv2.resize(second, (192, 192), interpolation=cv2.INTER_AREA)
        assert (slide.read(0, 0, 512, 192) == reduced).all()


def test_outside_the_slide_is_white(textured):
    image = level_0(textured)
    with open_slide(textured) as slide:
        corner = slide.read(1400, 1000, 256, 256)
        assert (corner[:100, :100] == image[1000:, 1400:]).all()
        assert (corner[100:] == 255).all()
        assert (corner[:, 100:] == 255).all()
        before = slide.read(-56, -56, 256, 256)
        assert (before[:56] == 255).all()
        assert (before[56:, 56:] == image[:200, :200]).all()
        assert (slide.read(5000, 0, 256, 64) == 255).all()


def test_transparent_pixels_are_white():
    rgba = np.array([[[10, 20, 30, 0], [10, 20, 30, 255], [100, 0, 200, 51]]], np.uint8)
    assert _on_white(rgba).tolist() == [[[255, 255, 255], [10, 20, 30], [224, 204, 244]]]


def test_overview_pixels_cover_whole_squares(flat):
    image = level_0(flat)
    with open_slide(flat, 0.5) as slide:
        overview, downsample = slide.overview(8.0)
    assert downsample == 16
    assert overview.shape == (69, 94, 3)
    means = image[:1088, :1488].reshape(68, 16, 93, 16, 3).mean((1, 3))
    assert np.abs(overview[:68, :93] - means).max() <= 0.5 + 1e-6


def grid_of(length: int, size: int) -> list[int]:
    return list(range(0, length, size))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("size0", "out_px"), [(256, 256), (240, 240), (200, 150)])
def test_squares_are_those_of_single_reads_in_grid_order(textured, size0, out_px, threads):
    with open_slide(textured) as slide:
        lefts, tops = grid_of(slide.width, size0), grid_of(slide.height, size0)
        wanted = {0: [0, len(lefts) - 1], 2: [1, 2], len(tops) - 1: list(range(len(lefts)))}
        squares = slide.read_squares(lefts, tops, size0, out_px, wanted, threads)
        copies = [pixels.copy() for pixels in squares]
        places = [(row, column) for row, columns in wanted.items() for column in columns]
        assert len(copies) == len(places)
        assert slide.reader_at(1).startswith("imagecodecs ")
        for (row, column), pixels in zip(places, copies, strict=True):
            assert (pixels == slide.read(lefts[column], tops[row], size0, out_px)).all()


def test_squares_of_a_coarser_level_are_its_whole_pixels_averaged(textured):
    with open_slide(textured) as slide:
        (width, height, downsample) = slide.levels[1]
        lefts, tops = grid_of(slide.width, 333), grid_of(slide.height, 333)
        level = np.asarray(slide._handle.read_region((0, 0), 1, (width, height)))[..., :3]
        edge = round(333 / downsample)
        squares = slide.read_squares(lefts, tops, 333, 111, {0: [0, 1], 2: [2]}, threads=2)
        for (row, column), pixels in zip([(0, 0), (0, 1), (2, 2)], squares, strict=True):
            x, y = round(lefts[column] / downsample), round(tops[row] / downsample)
            square = level[y : y + edge, x : x + edge]
            wanted = cv2.resize(square, (111, 111), interpolation=cv2.INTER_AREA)
            assert (pixels == wanted).all()


def test_a_damaged_sampled_tile_leaves_the_slide_to_openslide(textured, tmp_path):
    level = tiled_levels(textured)[0]
    data = bytearray(textured.read_bytes())
    data[level.offsets[0] : level.offsets[0] + level.counts[0]] = bytes(level.counts[0])
    path = tmp_path / "damaged.tiff"
    path.write_bytes(data)
    with open_slide(path) as slide:
        (pixels,) = slide.read_squares([512], [512], 256, 256, {0: [0]}, threads=1)
        assert slide.reader_at(1).startswith("openslide ")
    assert (pixels == level_0(textured)[512:768, 512:768]).all()


def test_what_is_not_decoded_here_is_left_to_openslide(textured, tmp_path):
    image = level_0(textured)
    path = tmp_path / "alpha.tiff"
    opaque = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
    tifffile.imwrite(path, opaque, tile=(256, 256), photometric="rgb", extrasamples=["unassalpha"])
    with open_slide(path, 0.5) as slide:
        first, last = slide.read_squares([0, 300], [40], 128, 128, {0: [0, 1]}, threads=2)
        assert slide.reader_at(1).startswith("openslide ")
    assert (first == image[40:168, :128]).all()
    assert (last == image[40:168, 300:428]).all()


def test_a_decoder_that_differs_from_openslide_is_not_used(textured, monkeypatch):
    import imagecodecs

    def brighter(data, out, **options):
        imagecodecs_decode(data, out=out, **options)
        out[0, 0, 0] ^= 1

    imagecodecs_decode = imagecodecs.jpeg8_decode
    monkeypatch.setattr(imagecodecs, "jpeg8_decode", brighter)
    with open_slide(textured) as slide:
        (pixels,) = slide.read_squares([0], [0], 256, 256, {0: [0]}, threads=1)
        assert slide.reader_at(1).startswith("openslide ")
    assert (pixels == level_0(textured)[:256, :256]).all()


# ---- what is refused, and why -------------------------------------------------------------------


def reason(path: Path, mpp: float | None = None) -> str:
    with pytest.raises(SlideError) as caught:
        inspect_slide(path, mpp)
    assert str(path.parent) not in str(caught.value)
    assert path.name in str(caught.value)
    return str(caught.value)


def test_missing_empty_and_foreign_files(tmp_path):
    assert "does not exist" in reason(tmp_path / "gone.svs")
    (tmp_path / "empty.svs").write_bytes(b"")
    assert "0 bytes" in reason(tmp_path / "empty.svs")
    (tmp_path / "text.svs").write_text("not a slide " * 100)
    assert "is not a slide" in reason(tmp_path / "text.svs")
    (tmp_path / "folder.svs").mkdir()
    assert "is a folder" in reason(tmp_path / "folder.svs")


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.9, 0.99])
def test_truncated(textured, tmp_path, kept):
    data = textured.read_bytes()
    path = tmp_path / "cut.tiff"
    path.write_bytes(data[: int(kept * len(data))])
    assert "truncated" in reason(path)


@pytest.mark.parametrize("kept", [0.2, 0.6, 0.8, 0.97])
def test_truncated_real_slides(shared_data, tmp_path, kept):
    for name in ("CMU-1-Small-Region.svs", "TCGA-CR-7395-01A-01-TS1.svs"):
        data = (shared_data / "slides" / name).read_bytes()
        path = tmp_path / name
        path.write_bytes(data[: int(kept * len(data))])
        assert "truncated" in reason(path, 0.5)


def test_no_mpp_is_refused_and_the_manifest_helps(tmp_path):
    path = tmp_path / "bare.tiff"
    write_pyramid(path, painted.glass(512, 512), mpp=None)
    assert "give mpp in the manifest" in reason(path)
    assert "give mpp in the manifest" in reason(path, float("nan"))
    facts = inspect_slide(path, 0.25)
    assert (facts.mpp, facts.mpp_source) == (0.25, "manifest")


@pytest.mark.parametrize(
    ("resolution", "unit"),
    [((72, 72), "INCH"), ((96, 96), "INCH"), ((1, 1), "CENTIMETER"), ((20000, 20000), "NONE")],
)
def test_default_resolution_tags_are_no_mpp(tmp_path, resolution, unit):
    path = write_plain(tmp_path / "dpi.tiff", resolution=resolution, resolutionunit=unit)
    assert "give mpp in the manifest" in reason(path)


def test_resolution_tags_of_a_scanner_are_used_after_the_manifest(tmp_path):
    path = write_plain(tmp_path / "tags.tiff", resolution=(1e5, 1e5), resolutionunit="INCH")
    facts = inspect_slide(path, None)
    assert (facts.mpp, facts.mpp_source) == (0.254, "tiff tags")
    assert inspect_slide(path, 0.3).mpp == 0.3


def test_unequal_and_implausible_mpp(tmp_path):
    path = write_plain(tmp_path / "flat.tiff", resolution=(2e4, 1e4), resolutionunit="CENTIMETER")
    assert "0.5 x 1 um" in reason(path)
    for mpp in (0.0, -1.0, 0.01, 300.0, float("inf")):
        assert "plausible" in reason(path, mpp)


def test_a_header_is_preferred_and_disagreement_noted(shared_data):
    facts = inspect_slide(shared_data / "slides" / "CMU-1-Small-Region.svs", 0.25)
    assert (facts.mpp, facts.mpp_source) == (0.499, "header")
    assert facts.mpp_note == "the manifest says 0.25 um a pixel, the header's 0.499 was used"
    assert inspect_slide(shared_data / "slides" / "CMU-1-Small-Region.svs", 0.5).mpp_note == ""


def test_absurd_dimensions(tmp_path, textured):
    path = tmp_path / "tiny.tiff"
    write_pyramid(path, painted.glass(32, 2000))
    assert "too small" in reason(path)
    long = tmp_path / "long.tiff"
    write_pyramid(long, painted.glass(64, 11_000), mpp=None)
    assert "220 mm long" in reason(long, 20.0)


def test_damaged_pixels_name_the_place(textured, tmp_path):
    data = bytearray(textured.read_bytes())
    with tifffile.TiffFile(textured) as file:
        page = file.pages[0].aspage()
        start, count = page.dataoffsets[0], page.databytecounts[0]
    data[start : start + count] = b"\xff" * count
    path = tmp_path / "damaged.tiff"
    path.write_bytes(data)
    with open_slide(path) as slide:
        slide.read(1000, 600, 128, 128)
        with pytest.raises(SlideError, match=r"damaged.tiff cannot be decoded near x=10, y=20"):
            slide.read(10, 20, 128, 128)


def test_every_odd_file_has_its_own_reason(shared_data):
    odd = {
        "broken.svs": "is not a slide in a format",
        "small.svs": "16 x 16 px: too small",
        "boxes.tiff": "how many micrometres",
        "unopenable.tiff": "cannot be opened: Unsupported TIFF compression",
        "unreadable.svs": "cannot be decoded near x=8, y=8",
    }
    for name, words in odd.items():
        assert words in reason(shared_data / "slides" / name)
    assert inspect_slide(shared_data / "slides" / "boxes.tiff", 0.5).vendor == "generic-tiff"


def test_facts_hold_no_header_text(shared_data):
    path = shared_data / "slides" / "CMU-1-Small-Region.svs"
    facts = inspect_slide(path, None)
    assert (facts.width, facts.height, facts.magnification) == (2220, 2967, 20.0)
    assert (facts.has_label, facts.has_macro) == (True, True)
    assert facts.size_bytes == path.stat().st_size
    for identifying in ("CPAPERIOCS", "b414003d", "12/29/09", "09:59:15", "CMU-1", "1004486"):
        assert identifying not in repr(facts)


def test_digest_is_of_the_bytes(textured):
    assert slide_digest(textured) == hashlib.sha256(textured.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("message", "plain"),
    [
        ("Can't open /mnt/ward 7/x/Slidedat.ini: No such file", "Can't open Slidedat.ini: "),
        ("Couldn't open C:\\Users\\me\\scan.svs", "Couldn't open scan.svs"),
        ("bad tile 3/4 in TIFF", "bad tile 3/4 in TIFF"),
    ],
)
def test_folders_leave_messages(message, plain):
    shown = without_folders(message, Path("/mnt/ward 7/x/scan.mrxs"))
    assert shown.startswith(plain)
    assert "ward" not in shown
