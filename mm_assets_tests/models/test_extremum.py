"""Extremum encoding against numpy, and its algebra."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mm_assets.models import extremum
from mm_assets.models.extremum import (
    ExtremumFeature,
    combine,
    encode_extrema,
    locate,
    of_all,
    of_fold,
    of_selected,
    of_slide,
    parse_feature,
    patient_extrema,
    patient_matrix,
    places_of,
)

DIMENSIONS = 3
# Few distinct values, so that ties are the rule.
VALUES = st.sampled_from([-2.0, -0.5, 0.0, 0.5, 1.0, 60000.0])
COORDINATES = st.integers(0, 4).map(lambda step: step * 256)


@st.composite
def instances(draw: st.DrawFn, least: int = 1) -> pd.DataFrame:
    """Instances with distinct coordinates in grid order: columns x, y and one a dimension."""
    places = draw(st.lists(st.tuples(COORDINATES, COORDINATES), min_size=least, unique=True))
    rows = [
        (x, y, *draw(st.tuples(*[VALUES] * DIMENSIONS)))
        for y, x in sorted((y, x) for x, y in places)
    ]
    return pd.DataFrame(rows, columns=["x", "y", *range(DIMENSIONS)])


def table(rows: pd.DataFrame, size0: int = 512) -> pa.Table:
    values = rows[list(range(DIMENSIONS))].to_numpy(np.float16).ravel()
    return pa.table(
        {
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(values), DIMENSIONS),
            "x": pa.array(rows["x"], pa.int32()),
            "y": pa.array(rows["y"], pa.int32()),
            "size0": pa.array([size0] * len(rows), pa.int32()),
        }
    )


@settings(max_examples=50, deadline=None)
@given(instances())
def test_equals_numpy(rows: pd.DataFrame) -> None:
    found = encode_extrema([table(rows)], "tile")
    values = rows[list(range(DIMENSIONS))].to_numpy(np.float32)
    for side, value, at in (
        ("min", "minimum", values.argmin(0)),
        ("max", "maximum", values.argmax(0)),
    ):
        np.testing.assert_array_equal(found[value], values[at, range(DIMENSIONS)])
        np.testing.assert_array_equal(found[f"{side}_x"], rows["x"].to_numpy()[at])
        np.testing.assert_array_equal(found[f"{side}_y"], rows["y"].to_numpy()[at])
    assert found["minimum"].dtype == np.float32
    assert set(found["size0"]) == {512}
    assert found["min_x"].dtype == np.int32


@settings(max_examples=50, deadline=None)
@given(instances(), st.randoms(use_true_random=False), st.integers(1, 7))
def test_order_and_chunks_do_not_matter(rows: pd.DataFrame, random: object, size: int) -> None:
    shuffled = rows.sample(frac=1, random_state=random.randrange(2**32))  # type: ignore[attr-defined]
    whole = table(shuffled)
    chunks = [whole.slice(start, size) for start in range(0, len(rows), size)]
    expected = encode_extrema([table(rows)], "tile")
    pd.testing.assert_frame_equal(encode_extrema(chunks, "tile"), expected)
    batches = [batch for chunk in chunks for batch in chunk.to_batches()]
    pd.testing.assert_frame_equal(encode_extrema(batches, "tile"), expected)


def test_blocks_of_a_long_slide(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    rows = pd.DataFrame(generator.normal(size=(500, DIMENSIONS)).astype(np.float16))
    rows["x"], rows["y"] = np.arange(500) % 25 * 256, np.arange(500) // 25 * 256
    expected = encode_extrema([table(rows)], "tile")
    monkeypatch.setattr(extremum, "CHUNK_ROWS", 7)
    pd.testing.assert_frame_equal(encode_extrema([table(rows)], "tile"), expected)


@settings(max_examples=15, deadline=None)
@given(st.lists(instances(), min_size=3, max_size=3))
def test_combining_slides_is_associative_and_commutative(slides: list[pd.DataFrame]) -> None:
    a, b, c = (
        of_slide(encode_extrema([table(rows)], "tile"), name)
        for name, rows in zip("abc", slides, strict=True)
    )
    left = combine(combine(a, b), c)
    pd.testing.assert_frame_equal(left, combine(a, combine(b, c)))
    pd.testing.assert_frame_equal(left, combine(combine(c, a), b))
    values = pd.concat(slides)[list(range(DIMENSIONS))].to_numpy(np.float32)
    np.testing.assert_array_equal(left["maximum"], values.max(0))
    np.testing.assert_array_equal(left["minimum"], values.min(0))


def cohort() -> tuple[dict[str, pd.DataFrame], pd.DataFrame, dict[str, NDArray[np.float32]]]:
    """Slides s1 and s3 of patient p1, s2 of p2 (tiles only); s4 was never encoded."""
    generator = np.random.default_rng(1)
    by_slide, raw = {}, {}
    for slide in ("s1", "s2", "s3"):
        rows = pd.DataFrame(generator.normal(size=(6, DIMENSIONS)).astype(np.float16))
        rows["x"], rows["y"] = np.arange(6) * 256, 0
        raw[slide] = rows[list(range(DIMENSIONS))].to_numpy(np.float32)
        levels = [encode_extrema([table(rows)], "tile")]
        if slide != "s2":
            levels.append(encode_extrema([table(rows.head(1), 8192)], "region"))
        by_slide[slide] = pd.concat(levels, ignore_index=True)
    manifest = pd.DataFrame(
        {"slide_id": ["s1", "s2", "s3", "s4"], "patient_id": ["p1", "p2", "p1", "p3"]}
    )
    return by_slide, manifest, raw


def test_patient_matrix_is_the_extremum_over_slides() -> None:
    by_slide, manifest, raw = cohort()
    matrix = patient_matrix(by_slide, manifest)
    assert list(matrix.index) == ["p1", "p2"]
    assert set(matrix.dtypes) == {np.dtype(np.float32)}
    both = np.vstack([raw["s1"], raw["s3"]])
    for dimension in range(DIMENSIONS):
        assert matrix.loc["p1", f"tile:max:{dimension:04d}"] == both[:, dimension].max()
        assert matrix.loc["p1", f"tile:min:{dimension:04d}"] == both[:, dimension].min()
    regions = [name for name in matrix if name.startswith("region:")]
    assert len(regions) == 2 * DIMENSIONS
    assert matrix.loc["p2", regions].isna().all()
    assert matrix.loc["p1"].notna().all()


def test_every_feature_leads_back_to_its_instance() -> None:
    by_slide, manifest, raw = cohort()
    matrix = patient_matrix(by_slide, manifest)
    places = places_of(patient_extrema(by_slide, manifest)["p1"])
    for name in matrix.columns:
        feature = parse_feature(name)
        assert feature.name == name
        place = locate(places, name)
        assert place.value == matrix.loc["p1", name]
        assert place.value == raw[place.slide_id][place.x // 256, feature.dimension]
        assert place.size0 == (8192 if feature.level == "region" else 512)
    with pytest.raises(KeyError, match="tile:max:9999"):
        locate(places, "tile:max:9999")


@pytest.mark.parametrize("name", ["age", "expression:TP53", "tile:mean:0001", "tile:max:x"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        parse_feature(name)


def test_feature_name() -> None:
    assert parse_feature("region:min:1023") == ExtremumFeature("region", "min", 1023)


def test_a_slide_without_instances_has_no_rows() -> None:
    empty = encode_extrema([table(pd.DataFrame(columns=["x", "y", *range(DIMENSIONS)]))], "region")
    assert empty.empty
    assert empty["minimum"].dtype == np.float32
    assert list(empty.columns) == extremum.SLIDE_COLUMNS


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    rows = pd.DataFrame(np.zeros((5, DIMENSIONS)))
    rows["x"], rows["y"] = np.arange(5), 0
    rows.loc[3, 1] = bad
    with pytest.raises(ValueError, match="not finite"):
        encode_extrema([table(rows)], "tile")
    with pytest.raises(ValueError, match="not finite"):
        encode_extrema([table(rows.iloc[[0]]), table(rows.iloc[1:])], "tile")


def test_sizes_must_agree() -> None:
    rows = pd.DataFrame(np.zeros((1, DIMENSIONS))).assign(x=0, y=0)
    with pytest.raises(ValueError, match="size0"):
        encode_extrema([table(rows, 512), table(rows, 256)], "tile")


def test_a_fold_reads_its_selected_instances() -> None:
    def at(x: int, level: str = "tile") -> pd.DataFrame:
        rows = pd.DataFrame({"x": [x], "y": [0], **dict.fromkeys(range(DIMENSIONS), 1.0)})
        return encode_extrema([table(rows)], level)

    folds = [(-1, -1), (0, 0), (0, 1)]
    kept = [of_selected(at(256 * place), *fold) for place, fold in enumerate(folds, start=1)]
    extrema = pd.concat([of_all(at(0)), of_all(at(0, "region")), *kept], ignore_index=True)

    def places(*fold: int, **options: bool) -> dict[str, int]:
        return dict(of_fold(extrema, *fold, **options).groupby("level")["max_x"].first())

    assert places() == {"region": 0, "tile": 256}
    assert places(0, 1) == {"region": 0, "tile": 768}
    assert places(0, 1, selection=False) == {"region": 0, "tile": 0}
    assert places(3, 3) == {"region": 0, "tile": 0}
    pd.testing.assert_frame_equal(of_fold(of_all(at(0))), at(0))
