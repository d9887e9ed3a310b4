"""A planted feature leads back to its slide and coordinate."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mm_assets.explain.backtrack import rank_features, rank_instances
from mm_assets.explain.contributions import explain_heec, feature_values
from mm_assets.models.boosting import BoostingParameters
from mm_assets.models.extremum import encode_extrema, patient_extrema, patient_matrix
from mm_assets.models.features import FeatureBlocks
from mm_assets.models.heec_folds import fit_final
from mm_assets.models.heec_parameters import HeecParameters
from mm_assets_tests.models.simulation import make_endpoint

FAST = HeecParameters(
    inner_folds=2,
    boosting=BoostingParameters(min_rounds=25, max_rounds=25, feature_fraction=1.0),
)
TILES, DIMENSIONS, SIGNAL = 30, 6, 3


def embeddings(rng: np.random.Generator, planted: tuple[int, float] | None) -> pa.Table:
    """A slide's tiles; `planted` is the row and value of the signal's maximum."""
    values = rng.uniform(-1, 1, (TILES, DIMENSIONS)).astype(np.float16)
    if planted:
        values[planted[0], SIGNAL] = planted[1]
    rows = np.arange(TILES, dtype=np.int32)
    flat = pa.array(values.reshape(-1), pa.float16())
    return pa.table(
        {
            "embedding": pa.FixedSizeListArray.from_arrays(flat, DIMENSIONS),
            "x": pa.array(256 * (rows % 6), pa.int32()),
            "y": pa.array(256 * (rows // 6), pa.int32()),
            "size0": pa.array(np.full(TILES, 256), pa.int32()),
        }
    )


@pytest.mark.parametrize("kind", ["survival", "classification"])
def test_planted_feature_leads_to_slide_and_coordinate(kind: str) -> None:
    rng = np.random.default_rng(3)
    patients = [f"P{i:02d}" for i in range(40)]
    burden = dict(zip(patients, rng.uniform(2, 10, len(patients)), strict=True))
    by_slide, planted, rows = {}, {}, []
    for patient in patients:
        for slide in (f"{patient}-A", f"{patient}-B"):
            rows.append({"slide_id": slide, "patient_id": patient})
            by_slide[slide] = encode_extrema([embeddings(rng, None)], "tile")
        # The signal lies on the patient's second slide for every other patient.
        chosen = f"{patient}-{'AB'[int(patient[1:]) % 2]}"
        row = int(rng.integers(TILES))
        by_slide[chosen] = encode_extrema([embeddings(rng, (row, burden[patient]))], "tile")
        planted[patient] = (chosen, 256 * (row % 6), 256 * (row // 6))
    manifest = pd.DataFrame(rows)
    matrix = patient_matrix(by_slide, manifest)
    risk = pd.Series(burden)
    table = pd.DataFrame({"time": 100 / risk, "event": 1}, index=risk.index)
    if kind == "classification":
        table = pd.DataFrame({"label": (risk > 6).astype(int)}, index=risk.index)
    model = fit_final(FeatureBlocks(imaging=matrix), make_endpoint(kind, table), (), FAST)

    contributions = explain_heec(model, matrix)
    values = feature_values(model, matrix)
    extrema = patient_extrema(by_slide, manifest)
    first = 0
    for patient in patients:
        items = rank_features(
            contributions.table.loc[patient], values.loc[patient], extrema[patient], []
        )
        top = items[0]
        if top.feature != f"tile:max:{SIGNAL:04d}":
            continue
        first += 1
        assert (top.slide_id, top.x, top.y, top.size0) == (*planted[patient], 256)
        assert (top.kind, top.level, top.dimension, top.extremum) == ("imaging", "tile", 3, "max")
        assert top.value == pytest.approx(burden[patient], rel=1e-3)
        instance = rank_instances(items)[0]
        assert (instance.slide_id, instance.x, instance.y) == planted[patient]
    # Near the middle of the scale the planted feature may say less than chance findings.
    assert first > 0.9 * len(patients)


def extrema_at(places: list[tuple[int, int]]) -> pd.DataFrame:
    """Extrema of one slide; minimum and maximum of dimension i lie at the i-th place."""
    columns = ["level", "dimension", "minimum", "min_x", "min_y", "maximum", "max_x", "max_y"]
    rows = [("tile", i, -1.0, x, y, 1.0, x, y) for i, (x, y) in enumerate(places)]
    return pd.DataFrame(rows, columns=columns).assign(size0=256)


def test_contributions_of_one_place_are_summed_and_missing_values_have_none() -> None:
    extrema = patient_extrema(
        {"S": extrema_at([(0, 0), (0, 0), (256, 0)])},
        pd.DataFrame({"slide_id": ["S"], "patient_id": ["P"]}),
    )["P"]
    contributions = pd.Series(
        {
            "tile:min:0000": 0.2,
            "tile:max:0001": 0.3,
            "tile:max:0002": -0.4,
            "region:max:0000": 0.1,
            "expression:TP53": 0.05,
            "sex=M": -0.01,
            "age": 0.0,
        }
    )
    values = pd.Series(1.0, contributions.index).mask(contributions.index == "region:max:0000")
    items = rank_features(contributions, values, extrema, ["sex=M", "age"])
    assert [item.feature for item in items][:2] == ["tile:max:0002", "tile:max:0001"]
    assert [item.rank for item in items] == [1, 2, 3, 4, 5, 6]
    kinds = {item.feature: item.kind for item in items}
    assert kinds["expression:TP53"] == "omics"
    assert kinds["sex=M"] == "clinical"
    missing = next(item for item in items if item.feature == "region:max:0000")
    assert (missing.kind, missing.value, missing.slide_id) == ("imaging", None, None)
    instances = rank_instances(items)
    assert [(i.x, i.features) for i in instances] == [(0, 2), (256, 1)]
    assert instances[0].score == pytest.approx(0.5)
