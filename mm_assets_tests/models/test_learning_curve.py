"""Learning curves: whom a part holds, and that nothing else of a fold changes."""

from dataclasses import astuple

import numpy as np
import pandas as pd
import pytest

from mm_assets.cohort.clinical import Endpoint
from mm_assets.models.boosting import BoostingParameters
from mm_assets.models.features import FeatureBlocks
from mm_assets.models.heec_parameters import HeecParameters
from mm_assets.models.learning_curve import Part, draw_part, list_parts, run_learning_curve
from mm_assets_tests.models.simulation import make_endpoint, shuffled, simulate, split

FAST = HeecParameters(inner_folds=2, boosting=BoostingParameters(min_rounds=5, max_rounds=10))


def test_parts_are_nested_stratified_and_leave_test_folds_alone() -> None:
    cohort = simulate(120, seed=1)
    endpoint = cohort.survival
    splits = split(endpoint.table.index, 3).sample(frac=1, random_state=0)
    parts = [draw_part(splits, endpoint, Part(share, 0), 7) for share in (0.25, 0.5, 1.0)]
    events = endpoint.table["event"]
    kept: list[set[tuple[int, str]]] = []
    for share, chosen in zip((0.25, 0.5, 1.0), parts, strict=True):
        for role, rows in chosen.groupby("role"):
            whole = splits[splits["role"] == role]
            if role == "test":
                assert len(rows.merge(whole)) == len(whole) == len(rows)
                continue
            for (_, died), members in rows.groupby(["fold", rows["patient_id"].map(events)]):
                fold = whole[whole["fold"] == members["fold"].iloc[0]]
                full = int((fold["patient_id"].map(events) == died).sum())
                assert len(members) == np.ceil(share * full)
            kept.append(set(zip(rows["fold"], rows["patient_id"], strict=True)))
    assert kept[0] < kept[1] < kept[2]
    again = draw_part(splits.sort_values("patient_id"), endpoint, Part(0.25, 0), 7)
    assert len(again.merge(parts[0])) == len(parts[0]) == len(again)
    other = draw_part(splits, endpoint, Part(0.25, 1), 7)
    assert len(other.merge(parts[0])) < len(other)


def test_every_class_has_a_patient_in_the_smallest_part() -> None:
    cohort = simulate(30, seed=2)
    table = cohort.classification.table.assign(label=(np.arange(30) == 3).astype(int))
    endpoint = make_endpoint("classification", table)
    splits = split(table.index, 2)
    chosen = draw_part(splits, endpoint, Part(0.1, 0), 0)
    holds = splits[(splits["patient_id"] == table.index[3]) & (splits["role"] == "train")]
    assert len(chosen.merge(holds)) == 1


def test_parts_rise_to_everybody_once() -> None:
    assert list_parts([0.5, 0.25, 0.5], 2) == [
        *(Part(0.25, 0), Part(0.25, 1), Part(0.5, 0), Part(0.5, 1)),
        Part(1.0, 0),
    ]


@pytest.mark.parametrize("kind", ["survival", "classification"])
def test_patients_left_out_do_not_reach_the_models(kind: str) -> None:
    cohort = simulate(40, seed=3)
    endpoint = cohort.endpoint(kind)
    splits = split(endpoint.table.index, 2)
    parts = [Part(0.4, 0), Part(1.0, 0)]

    def run(blocks: FeatureBlocks, outcomes: Endpoint) -> pd.DataFrame:
        return run_learning_curve(blocks, outcomes, splits, parts, parameters=FAST)

    found = run(cohort.blocks, endpoint)
    baseline = "clinical_cox" if kind == "survival" else "clinical_logistic"
    sizes = found.groupby(["model", "share"])["trained_on"].agg(["min", "max"])
    assert set(sizes.index) == {(m, s) for m in ("heec", baseline) for s in (0.4, 1.0)}
    assert sizes.loc[("heec", 1.0)].tolist() == [20, 20]
    assert sizes.loc[("heec", 0.4)].between(8, 9).all()
    # Features of whoever is left out and outcomes of the test fold change nothing in the small
    # part. (Outcomes of training patients decide who is drawn.)
    fold = draw_part(splits, endpoint, parts[0], 0).query("fold == 0")
    trained, tested = (
        pd.Index(fold.loc[fold["role"] == role, "patient_id"]) for role in ("train", "test")
    )
    table = endpoint.table.copy()
    table.loc[tested] = shuffled(endpoint, 1).table.loc[tested]
    left_out = table.index.difference(trained).difference(tested)
    blocks = FeatureBlocks(*(spoilt(block, left_out) for block in astuple(cohort.blocks)))
    again = run(blocks, make_endpoint(kind, table))
    small = (found["share"] == 0.4) & (found["fold"] == 0)
    pd.testing.assert_frame_equal(found[small], again[small])
    assert not found[~small].equals(again[~small])


def spoilt(block: pd.DataFrame, patients: pd.Index) -> pd.DataFrame:
    """The block with the rows of some patients turned round."""
    chosen = block.index.intersection(patients)
    changed = block.copy()
    changed.loc[chosen] = block.loc[chosen[::-1]].to_numpy()
    return changed
