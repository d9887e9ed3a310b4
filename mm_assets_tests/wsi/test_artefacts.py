"""Tissue detection on what happens to glass, with known truth: painted as optical density."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from mm_assets.wsi.slide import SlideError, open_slide
from mm_assets.wsi.tissue import Tissue, find_tissue
from mm_assets_tests.wsi import painted

Density = NDArray[np.float32]
HEIGHT, WIDTH = 1200, 1600
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
INKS = {
    "black": (2.2, 2.2, 2.2),
    "blue": (1.6, 0.9, 0.25),
    "green": (1.7, 0.5, 1.1),
    "red": (0.06, 1.6, 1.45),
}
NEUTRAL = np.array((0.95, 1, 1.05), np.float32)


def density_of(colour: tuple[int, int, int]) -> Density:
    return -np.log(np.array(colour) / painted.GLASS).astype(np.float32)


@pytest.fixture
def real_stain(shared_data: Path) -> Density:
    """Optical density of a real tile, mirrored to fill the slide."""
    path = shared_data / "tiles" / "medium-nuclei-score-level0.png"
    tile = np.maximum(cv2.imread(str(path))[..., ::-1], 1).astype(np.float32)
    density = np.maximum(-np.log(tile / 243), 0)
    missing = ((0, HEIGHT - tile.shape[0]), (0, WIDTH - tile.shape[1]), (0, 0))
    return np.pad(density, missing, mode="symmetric").astype(np.float32)


def piece(centre: tuple[int, int] = (600, 800), axes: tuple[int, int] = (380, 560)) -> np.ndarray:
    radius = ((ROWS - centre[0]) / axes[0]) ** 2 + ((COLUMNS - centre[1]) / axes[1]) ** 2
    return radius <= 1


def stained(where: np.ndarray, colour: tuple[int, int, int] = painted.PINK) -> Density:
    """Tissue with a soft edge and some texture."""
    soft = cv2.GaussianBlur(where.astype(np.float32), (0, 0), 2)
    texture = 1 + 0.1 * np.random.default_rng(1).standard_normal((HEIGHT, WIDTH))
    return (soft * texture)[..., None].astype(np.float32) * density_of(colour)


def line(start: tuple[int, int], end: tuple[int, int], width: int) -> NDArray[np.float32]:
    """Coverage of a stroke, 0 to 1; ends as x, y."""
    stroke = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.line(stroke, start, end, 255, width)
    return cv2.GaussianBlur(stroke, (0, 0), 1.5).astype(np.float32) / 255


def picture(density: Density) -> painted.Image:
    noise = np.random.default_rng(0).normal(0, 1.5, density.shape)
    return np.clip(np.exp(-density) * painted.GLASS + noise, 0, 255).astype(np.uint8)


def detect(folder: Path, image: painted.Image) -> Tissue:
    with open_slide(painted.slide_file(folder, image)) as slide:
        return find_tissue(slide)


def enlarged(tissue: Tissue) -> np.ndarray:
    mask = tissue.mask.repeat(tissue.downsample, 0).repeat(tissue.downsample, 1)
    return mask[:HEIGHT, :WIDTH]


def overlap(tissue: Tissue, truth: np.ndarray, counted: np.ndarray | None = None) -> float:
    """Intersection over union at level 0."""
    found = enlarged(tissue)
    counted = np.ones_like(truth) if counted is None else counted
    return float((found & truth & counted).sum() / ((found | truth) & counted).sum())


def bubble(density: Density, centre: tuple[int, int], radius: float) -> Density:
    """Refraction at the rim, with fringes; less stain in focus inside."""
    distance = np.hypot(ROWS - centre[0], COLUMNS - centre[1])
    inside = density * np.where(distance < radius, 0.4, 1)[..., None]
    rims = [np.exp(-(((distance - radius - shift) / 22) ** 2)) for shift in (0, 3, 6)]
    return (inside + 0.9 * np.stack(rims, axis=2) * NEUTRAL).astype(np.float32)


def dusty(density: Density) -> Density:
    rng = np.random.default_rng(2)
    specks = density.copy()
    for _ in range(200):
        place = (int(rng.integers(WIDTH)), int(rng.integers(HEIGHT)))
        cv2.circle(specks, place, int(rng.integers(3, 14)), (1.1, 1.2, 1.15), -1)
    return specks


def coverslip(density: Density) -> Density:
    """The shadow of its edge, slightly yellow from the glue."""
    shadow = 0.5 * np.exp(-(((COLUMNS - 80) / 30) ** 2))
    return density + shadow[..., None] * np.array((0.95, 1, 1.08), np.float32)


def uneven(density: Density) -> Density:
    slope = (COLUMNS / WIDTH)[..., None] * np.array((0.10, 0.105, 0.115), np.float32)
    return density + slope + 0.2 * ((ROWS / HEIGHT - 0.5) ** 2)[..., None]


def mottled(density: Density) -> Density:
    coarse = np.random.default_rng(3).standard_normal((30, 40)).astype(np.float32)
    film = np.maximum(0.02 * cv2.resize(coarse, (WIDTH, HEIGHT)), 0)
    return density + film[..., None] * NEUTRAL


@pytest.mark.parametrize(
    "happen",
    [
        lambda density: bubble(density, (200, 200), 120),
        lambda density: bubble(density, (600, 800), 200),
        lambda density: bubble(density, (300, 450), 200),
        coverslip,
        uneven,
        mottled,
        dusty,
        lambda density: density * 3,
        lambda density: density * 0.15,
        lambda density: density + np.array((0, 0.03, 0.09), np.float32),
    ],
    ids=[
        "bubble on glass",
        "bubble on tissue",
        "bubble at the edge",
        "coverslip",
        "uneven light",
        "mottled glass",
        "dust",
        "dark stain",
        "pale stain",
        "yellow glass",
    ],
)
def test_tissue_is_found_all_the_same(tmp_path, happen: Callable[[Density], Density]):
    truth = piece()
    tissue = detect(tmp_path, picture(happen(stained(truth))))
    # A bubble's rim hides some tissue.
    assert overlap(tissue, truth) > 0.9
    assert tissue.quality["pen_fraction"] < 0.03
    assert tissue.quality["fold_fraction"] < 0.02


@pytest.mark.parametrize("happen", [coverslip, uneven, mottled, dusty])
def test_an_empty_slide_stays_empty(tmp_path, happen: Callable[[Density], Density]):
    with pytest.raises(SlideError, match="no tissue found"):
        detect(tmp_path, picture(happen(np.zeros((HEIGHT, WIDTH, 3), np.float32))))


@pytest.mark.parametrize("strength", [0.12, 0.3, 1, 2, 3])
def test_a_real_stain_of_any_strength(tmp_path, real_stain, strength):
    truth = piece()
    soft = cv2.GaussianBlur(truth.astype(np.float32), (0, 0), 2)[..., None]
    tissue = detect(tmp_path, picture(real_stain * soft * strength))
    assert overlap(tissue, truth) > 0.93
    assert tissue.quality["pen_fraction"] < 0.01


@pytest.mark.parametrize("ink", INKS)
@pytest.mark.parametrize("width", [12, 40, 200])
def test_pen_lines_of_any_width(tmp_path, ink, width):
    """A circle segment beside the tissue and a stroke across it."""
    truth = piece()
    beside, across = line((60, 60), (60, 1140), width), line((150, 100), (1500, 1100), width)
    colour = np.array(INKS[ink], np.float32)
    tissue = detect(
        tmp_path, picture(stained(truth) + np.maximum(beside, across)[..., None] * colour)
    )
    inked = np.maximum(beside, across) > 0.5
    # Ink's margin of 32 um goes, too; neither is right nor wrong there.
    near = cv2.dilate(inked.astype(np.uint8), np.ones((97, 97), np.uint8)).astype(bool)
    assert overlap(tissue, truth, ~near) > 0.93
    assert tissue.quality["pen_fraction"] > 0.005
    if width > 12:
        assert enlarged(tissue)[inked].mean() < 0.05


def test_a_fold_is_not_dense_cells(tmp_path):
    truth = piece()
    density = stained(truth)
    stroke = line((500, 500), (1100, 700), 60)[..., None]
    folded = detect(tmp_path, picture(density * (1 + stroke)))
    purple = stained(truth & piece((600, 800), (100, 150)), painted.PURPLE)
    cellular = detect(tmp_path, picture(np.maximum(density, purple)))
    share = float((stroke > 0.5).sum() / truth.sum())
    assert folded.quality["fold_fraction"] == pytest.approx(share, rel=0.35)
    assert cellular.quality["fold_fraction"] < 0.2 * share


@pytest.mark.parametrize("sigma", [4, 12])
def test_tissue_out_of_focus_is_found_and_said_to_be_blurred(tmp_path, real_stain, sigma):
    truth = piece()
    image = picture(real_stain * truth[..., None])
    tissue = detect(tmp_path, cv2.GaussianBlur(image, (0, 0), sigma))
    assert overlap(tissue, truth) > 0.92
    assert tissue.quality["blur_fraction"] > 0.9
    assert detect(tmp_path, image).quality["blur_fraction"] < 0.1


def test_small_biopsies_are_pieces_of_their_own(tmp_path):
    truth = np.zeros((HEIGHT, WIDTH), np.uint8)
    for top in (200, 600, 1000):
        wave = [(150 + 50 * i, top + int(60 * np.sin(i / 4))) for i in range(27)]
        cv2.polylines(truth, [np.array(wave)], False, 1, 160)
    tissue = detect(tmp_path, picture(stained(truth.astype(bool))))
    assert overlap(tissue, truth.astype(bool)) > 0.85
    assert len(tissue.polygons["features"]) == 3


@pytest.mark.parametrize("filling", [0, 255])
def test_what_the_scanner_filled_in_is_not_tissue(tmp_path, filling):
    truth = piece()
    image = picture(stained(truth))
    image[:, 1200:] = image[:250] = filling
    truth[:, 1200:] = truth[:250] = False
    tissue = detect(tmp_path, image)
    assert overlap(tissue, truth) > 0.93
    assert tissue.quality["pen_fraction"] < 0.01
