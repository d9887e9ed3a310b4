import cv2
import numpy as np
import pytest
from PIL import Image

from mm_assets.nuclei.detection import haematoxylin_threshold, segment_nuclei
from mm_assets.nuclei.morphology import measure_nuclei
from mm_assets.nuclei.stain import stain_densities

MPP = 0.5
PINK, VIOLET, BLACK = (228, 170, 200), (88, 60, 140), (25, 22, 30)
# Micrometres a pixel of the tiles, judged by the size of their nuclei: the files do not say.
TILES = {
    "high-nuclei-score-level0": 0.25,
    "medium-nuclei-score-level0": 0.25,
    "low-nuclei-score-level0": 0.25,
    "high-nuclei-score-red-pen-level1": 0.75,
    "no-tissue": 0.25,
}


def segment(rgb, threshold=None):
    densities = stain_densities(rgb)
    if threshold is None:
        threshold = haematoxylin_threshold([rgb], MPP)
    return segment_nuclei(rgb, densities, MPP, threshold)[0], densities


def painted(ellipses, colour=VIOLET, size=200):
    image = np.full((size, size, 3), PINK, np.uint8)
    for (x, y), axes, angle in ellipses:
        cv2.ellipse(image, (x, y), axes, angle, 0, 360, colour, -1, cv2.LINE_AA)
    return image


def test_stains_are_told_apart():
    from skimage.color import hed_from_rgb, rgb_from_hed

    amounts = np.array([[[0.5, 0.2, 0.0], [0.1, 0.6, 0.0], [0.0, 0.0, 0.0]]])
    rgb = np.rint(256 * 10 ** -(amounts @ rgb_from_hed) - 1).astype(np.uint8)
    assert np.allclose(rgb_from_hed @ hed_from_rgb, np.eye(3))
    assert np.allclose(stain_densities(rgb), amounts, atol=0.01)


def test_size_and_shape_in_micrometres():
    labels, densities = segment(painted([((60, 60), (12, 12), 0), ((140, 130), (11, 6), 30)]))
    table = measure_nuclei(labels, densities, MPP).sort_values("column")
    assert len(table) == 2
    disc, spindle = table.iloc[0], table.iloc[1]
    assert (disc["column"], disc["row"]) == pytest.approx((60, 60), abs=0.5)
    assert disc["area_um2"] == pytest.approx(np.pi * 6**2, rel=0.12)
    assert spindle["major_um"] == pytest.approx(11, abs=0.6)
    assert spindle["minor_um"] == pytest.approx(6, abs=0.6)
    assert disc["eccentricity"] < 0.3 < 0.7 < spindle["eccentricity"]
    assert disc["hematoxylin_mean"] > 3 * disc["eosin_mean"]


def test_touching_nuclei_are_parted():
    labels, _ = segment(painted([((80, 100), (10, 10), 0), ((98, 100), (10, 10), 0)]))
    assert labels[100, 78] != labels[100, 100]
    assert min(labels[100, 78], labels[100, 100]) > 0


def test_neither_ink_nor_dust_nor_glass_is_a_nucleus():
    assert segment(painted([((100, 100), (14, 14), 0)], BLACK))[0].max() == 0
    assert segment(painted([((100, 100), (1, 1), 0)]))[0].max() == 0
    assert segment(np.full((200, 200, 3), 244, np.uint8))[0].max() == 0
    assert segment(painted([]))[0].max() == 0


def test_a_nucleus_is_the_same_wherever_the_picture_is_cut():
    random = np.random.default_rng(0)
    places = [
        ((x, y), (9, 7), 40 * (x + y)) for x in range(20, 380, 36) for y in range(20, 380, 34)
    ]
    image = painted(places, size=400)
    image = np.clip(image + random.normal(0, 6, image.shape), 0, 255).astype(np.uint8)
    whole, _ = segment(image, 0.25)
    part, _ = segment(np.ascontiguousarray(image[60:340, 50:330]), 0.25)
    reach = 50
    inner = (slice(reach, -reach),) * 2
    assert ((part > 0)[inner] == (whole[60:340, 50:330] > 0)[inner]).all()


def real_tile(folder, name):
    """A tile as `MPP` shows it."""
    image = np.asarray(Image.open(folder / "tiles" / f"{name}.png").convert("RGB"))
    scale = TILES[name] / MPP
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=way)


def test_real_tiles_are_ordered_as_their_names_say(shared_data):
    counts, per_mm2 = [], []
    for name in TILES:
        labels, _ = segment(real_tile(shared_data, name))
        counts.append(len(np.unique(labels)) - 1)
        per_mm2.append(counts[-1] / (labels.size * (MPP / 1000) ** 2))
    high, medium, low, pen, none = counts
    assert high > 4 * medium > 4 * low > 0
    assert none == 0
    high, medium, low, pen, none = per_mm2
    assert high > 4 * medium
    assert 0.5 * medium < low < 3 * medium  # per area they are alike: fat cells against a scar
    assert pen > 4 * medium  # it shows a dense tumour beside the pen


def test_a_real_stroke_of_dark_ink_holds_no_nuclei(shared_data):
    labels, _ = segment(real_tile(shared_data, "high-nuclei-score-red-pen-level1"))
    # Where the stroke runs in this tile, without its ragged border.
    stroke = cv2.line(np.zeros(labels.shape, np.uint8), (0, 376), (400, 440), 1, 24) > 0
    assert (labels[stroke] > 0).mean() < 0.1 * (labels[~stroke] > 0).mean()
