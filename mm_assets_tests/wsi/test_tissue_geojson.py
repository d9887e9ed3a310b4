"""Tissue polygons as GeoJSON readers take them, QuPath's importer above all."""

import json
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import Polygon, shape

from mm_assets.wsi.outline import tissue_polygons
from mm_assets.wsi.slide import open_slide
from mm_assets.wsi.tissue import find_tissue
from mm_assets_tests.wsi import painted

# What QuPath's importer knows: other types become annotations with a warning, other geometries
# are refused.
OBJECT_TYPES = {"annotation", "detection", "tile", "cell", "tmaCore", "root"}
GEOMETRIES = {"Polygon", "MultiPolygon"}
MPP, DOWNSAMPLE = 0.5, 16


def opened(collection: dict[str, Any]) -> list[Polygon]:
    """The polygons, after what RFC 7946 and QuPath's importer ask for is checked."""
    collection = json.loads(json.dumps(collection, allow_nan=False))
    assert set(collection) == {"type", "features"}
    assert collection["type"] == "FeatureCollection"
    polygons = []
    for feature in collection["features"]:
        assert feature["type"] == "Feature"
        assert feature["geometry"]["type"] in GEOMETRIES
        properties = feature["properties"]
        assert properties["objectType"] in OBJECT_TYPES
        assert isinstance(properties["classification"]["name"], str)
        assert isinstance(properties["tissue_id"], int)
        for ring in feature["geometry"]["coordinates"]:
            assert len(ring) >= 4
            assert ring[0] == ring[-1]
            assert all(len(point) == 2 for point in ring)
        polygon = shape(feature["geometry"])
        assert polygon.is_valid
        assert polygon.exterior.is_ccw
        assert not any(hole.is_ccw for hole in polygon.interiors)
        um2 = polygon.area * MPP**2
        assert properties["area_mm2"] == pytest.approx(um2 * 1e-6, abs=1e-6)
        polygons.append(polygon)
    assert [f["properties"]["tissue_id"] for f in collection["features"]] == [*range(len(polygons))]
    return polygons


def drawn(polygons: list[Polygon], shape_px: tuple[int, int]) -> np.ndarray:
    """Mask pixels whose centre lies in a polygon."""
    from shapely import contains_xy, union_all

    rows, columns = np.indices(shape_px)
    centres = ((columns + 0.5) * DOWNSAMPLE, (rows + 0.5) * DOWNSAMPLE)
    return contains_xy(union_all(polygons), *centres)


@given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(1, 24),
    width=st.integers(1, 24),
    share=st.floats(0.2, 0.8),
    smooth=st.sampled_from([0, 0.8, 2]),
)
def test_any_mask_gives_valid_polygons_of_exactly_its_pixels(seed, height, width, share, smooth):
    noise = np.random.default_rng(seed).random((height, width)).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), smooth) if smooth else noise
    mask = noise > np.quantile(noise, share)
    polygons = opened(tissue_polygons(mask, DOWNSAMPLE, MPP))
    np.testing.assert_array_equal(drawn(polygons, mask.shape), mask)


def test_pieces_with_holes_of_a_slide(tmp_path):
    image = painted.glass()
    painted.ellipse(image, (800, 700), (600, 600), painted.PINK)
    painted.ellipse(image, (800, 500), (200, 150), painted.GLASS)
    painted.ellipse(image, (800, 950), (200, 150), painted.GLASS)
    painted.ellipse(image, (800, 1650), (300, 200), painted.PURPLE)
    with open_slide(painted.slide_file(tmp_path, image)) as slide:
        tissue = find_tissue(slide)
    large, small = opened(tissue.polygons)
    assert (len(large.interiors), len(small.interiors)) == (2, 0)
    total = (large.area + small.area) * MPP**2 * 1e-6
    assert total == pytest.approx(tissue.quality["tissue_area_mm2"], rel=1e-4)
