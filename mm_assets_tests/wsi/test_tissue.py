import json

import cv2
import numpy as np
import pytest
from shapely.geometry import shape

from mm_assets.synthetic.oddities import SlidePlan
from mm_assets.synthetic.slides import write_slide
from mm_assets.wsi.outline import outline_png
from mm_assets.wsi.slide import SlideError, open_slide
from mm_assets.wsi.tissue import Tissue, find_tissue
from mm_assets_tests.wsi import painted


def overlap(tissue: Tissue, truth: np.ndarray) -> float:
    """Intersection over union at level 0."""
    found = tissue.mask.repeat(tissue.downsample, 0).repeat(tissue.downsample, 1)
    found = found[: truth.shape[0], : truth.shape[1]]
    return float((found & truth).sum() / (found | truth).sum())


def detect(tmp_path, image) -> Tissue:
    with open_slide(painted.slide_file(tmp_path, image)) as slide:
        return find_tissue(slide)


@pytest.mark.parametrize("colour", [painted.PINK, painted.PALE, painted.PURPLE])
def test_two_pieces_of_any_stain_are_found(tmp_path, colour):
    image = painted.glass()
    truth = painted.ellipse(image, (500, 600), (350, 450), colour)
    truth |= painted.ellipse(image, (1250, 1400), (250, 300), colour)
    tissue = detect(tmp_path, image)
    assert overlap(tissue, truth) > 0.93
    assert tissue.quality["pen_fraction"] == 0
    areas = [feature["properties"]["area_mm2"] for feature in tissue.polygons["features"]]
    assert len(areas) == 2
    assert areas == sorted(areas, reverse=True)
    assert sum(areas) == pytest.approx(tissue.quality["tissue_area_mm2"], rel=1e-4)
    assert sum(areas) == pytest.approx(truth.sum() * 0.25e-6, rel=0.05)


def test_pale_and_dark_pieces_are_found_together(tmp_path):
    image = painted.glass()
    truth = painted.ellipse(image, (500, 600), (350, 450), painted.PALE)
    truth |= painted.ellipse(image, (1250, 1400), (250, 300), painted.PURPLE)
    assert overlap(detect(tmp_path, image), truth) > 0.93


@pytest.mark.parametrize(
    "ink", [painted.BLUE_INK, painted.GREEN_INK, painted.RED_INK, painted.BLACK_INK]
)
def test_pen_is_not_tissue(tmp_path, ink):
    image = painted.glass()
    truth = painted.ellipse(image, (800, 1000), (500, 600), painted.PINK)
    painted.stripe(image, slice(100, 180), ink)
    painted.stripe(image, slice(900, 960), ink)
    # The ink's margin goes too: up to 64 px (32 um) on both sides.
    truth[900:960] = False
    tissue = detect(tmp_path, image)
    assert overlap(tissue, truth) > 0.87
    assert not tissue.mask[57:60].any()
    assert not tissue.mask[:13].any()
    assert 0.05 < tissue.quality["pen_fraction"] < 0.4


def test_black_padding_is_neither_tissue_nor_pen(tmp_path):
    image = painted.glass()
    truth = painted.ellipse(image, (800, 800), (500, 500), painted.PINK)
    image[:, 1600:] = 0
    tissue = detect(tmp_path, image)
    assert overlap(tissue, truth) > 0.93
    assert tissue.quality["pen_fraction"] < 0.01


@pytest.mark.parametrize("quality", [30, 95])
def test_an_empty_slide_has_no_tissue(tmp_path, quality):
    path = painted.slide_file(tmp_path, painted.glass(), quality=quality)
    with (
        open_slide(path) as slide,
        pytest.raises(SlideError, match=r"^no tissue found on slide.tiff$"),
    ):
        find_tissue(slide)


def shaded(image: np.ndarray) -> np.ndarray:
    """Darker by a tenth to the right, with a slight tint, as uneven lamps make it."""
    ramp = np.linspace(0, 1, image.shape[1])[None, :, None]
    return (image * (1 - ramp * np.array([0.10, 0.105, 0.115]))).astype(np.uint8)


def test_uneven_light_is_not_tissue(tmp_path):
    with pytest.raises(SlideError, match="no tissue"):
        detect(tmp_path, shaded(painted.glass()))
    image = painted.glass()
    truth = painted.ellipse(image, (800, 1000), (500, 600), painted.PINK)
    assert overlap(detect(tmp_path, shaded(image)), truth) > 0.93


def test_only_pen_is_said_so(tmp_path):
    image = painted.glass()
    painted.stripe(image, slice(600, 700), painted.BLUE_INK)
    with pytest.raises(SlideError, match="only pen marks"):
        detect(tmp_path, image)


def test_grey_dust_and_specks_are_dropped_and_large_holes_kept(tmp_path):
    image = painted.glass()
    truth = painted.ellipse(image, (800, 800), (600, 600), painted.PINK)
    hole = painted.ellipse(image, (800, 800), (250, 250), painted.GLASS)
    small_hole = painted.ellipse(image, (450, 800), (40, 40), painted.GLASS)
    painted.ellipse(image, (200, 1800), (60, 60), painted.PINK)
    painted.ellipse(image, (1400, 1800), (120, 120), (170, 170, 170))
    tissue = detect(tmp_path, image)
    assert overlap(tissue, (truth & ~hole) | small_hole) > 0.95
    assert len(tissue.polygons["features"]) == 1
    assert len(tissue.polygons["features"][0]["geometry"]["coordinates"]) == 2


def test_polygons_cover_the_mask_in_level_0_pixels(tmp_path):
    image = painted.glass()
    truth = painted.ellipse(image, (700, 900), (500, 700), painted.PINK)
    tissue = detect(tmp_path, image)
    features = json.loads(json.dumps(tissue.polygons))["features"]
    polygon = shape(features[0]["geometry"])
    assert polygon.is_valid
    assert polygon.area == pytest.approx(truth.sum(), rel=0.04)
    assert polygon.centroid.x == pytest.approx(900, abs=8)
    assert polygon.centroid.y == pytest.approx(700, abs=8)
    assert features[0]["properties"]["objectType"] == "annotation"
    assert features[0]["properties"]["classification"] == {"name": "Tissue"}


def test_blur_and_folds_are_measured(tmp_path):
    sharp = painted.glass()
    painted.ellipse(sharp, (800, 1000), (600, 800), painted.PINK)
    blurred = cv2.GaussianBlur(sharp, (0, 0), 8)
    folded = sharp.copy()
    painted.ellipse(folded, (800, 1000), (500, 60), painted.TWO_LAYERS_OF_PINK)
    plain, soft, doubled = (detect(tmp_path, image).quality for image in (sharp, blurred, folded))
    assert plain["blur_fraction"] < 0.1 < 0.9 < soft["blur_fraction"]
    assert plain["sharpness"] > 3 * soft["sharpness"]
    assert plain["fold_fraction"] == 0
    assert doubled["fold_fraction"] == pytest.approx(500 * 60 / (600 * 800), rel=0.25)


def test_real_slides(shared_data):
    for name, mpp, least, most in (
        ("CMU-1-Small-Region.svs", None, 0.3, 0.5),
        ("TCGA-CR-7395-01A-01-TS1.svs", 0.5, 0.55, 0.75),
    ):
        with open_slide(shared_data / "slides" / name, mpp) as slide:
            tissue = find_tissue(slide)
        assert least < tissue.quality["tissue_fraction"] < most
        assert tissue.quality["pen_fraction"] < 0.01
        assert tissue.quality["blur_fraction"] < 0.2


@pytest.mark.parametrize(
    "look", [{}, {"pen": "blue"}, {"pen": "black"}, {"folded": True}, {"blurred": True}]
)
def test_demo_slides_agree_with_their_truth(tmp_path, look):
    path = tmp_path / "demo.tiff"
    number = 1 + len(str(look)) % 5
    plan = SlidePlan("demo", patient=number, section=0, state="good", **look)
    truth = write_slide(path, plan, 0.5, number, 0, (1400, 1800))
    with open_slide(path) as slide:
        tissue = find_tissue(slide)
        area = np.zeros((slide.height, slide.width), np.uint8)
    for piece in truth.tissue.geoms:
        cv2.fillPoly(area, [np.array(piece.exterior.coords).round().astype(np.int32)], 1)
    assert overlap(tissue, area.astype(bool)) > 0.93


def test_a_real_tile_on_glass_is_found(shared_data, tmp_path):
    tile = cv2.imread(str(shared_data / "tiles" / "medium-nuclei-score-level0.png"))[..., ::-1]
    image = painted.glass(1600, 1600)
    image[400 : 400 + tile.shape[0], 300 : 300 + tile.shape[1]] = tile
    truth = np.zeros(image.shape[:2], bool)
    truth[400 : 400 + tile.shape[0], 300 : 300 + tile.shape[1]] = True
    assert overlap(detect(tmp_path, image), truth) > 0.9


@pytest.mark.parametrize("shape", [(6000, 500), (500, 6000), (2400, 2600)])
def test_outline_of_any_shape_and_of_many_pieces_fits_and_shows(tmp_path, shape):
    image = painted.glass(*shape)
    for row in range(230, shape[0] - 200, 450):
        for column in range(230, shape[1] - 200, 450):
            cv2.circle(image, (column, row), 170, painted.PINK, -1)
    tissue = detect(tmp_path, image)
    png = outline_png(tissue.thumbnail, tissue.mask)
    drawn = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert len(png) < 50_000
    assert max(drawn.shape) > 400
    outline = np.abs(drawn.astype(int) - (60, 140, 0)).max(axis=2) < 30
    outlined = cv2.connectedComponents(outline.astype(np.uint8))[0] - 1
    assert outlined == len(tissue.polygons["features"]) > 10


def test_outline_fits_its_limit(tmp_path):
    image = painted.glass()
    painted.ellipse(image, (700, 900), (500, 700), painted.PINK)
    tissue = detect(tmp_path, image)
    assert max(tissue.thumbnail.shape) == 500
    for limit in (45_000, 8_000):
        png = outline_png(tissue.thumbnail, tissue.mask, limit)
        assert len(png) <= limit
        drawn = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
        outline = np.abs(drawn.astype(int) - (60, 140, 0)).max(axis=2) < 30
        assert outline.sum() > sum(drawn.shape[:2])
