"""Folds: balanced, apart, and truly different between repeats."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_assets.cohort.clinical import Endpoint, make_endpoint, read_clinical
from mm_assets.cohort.config import ClinicalConfig, EvaluationConfig, SurvivalTask
from mm_assets.cohort.problems import CohortError
from mm_assets.cohort.splits import check_splits, inner_split, make_splits, read_splits

NOBODY = pd.DataFrame(columns=["patient_id", "reason"])


def survival_endpoint(patients: int, seed: int = 0, rate: float = 0.3) -> Endpoint:
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "time": rng.exponential(30, patients) + 0.1,
            "event": (rng.random(patients) < rate).astype("int64"),
        },
        index=pd.Index([f"P{i:04d}" for i in range(patients)], name="patient_id"),
    )
    return Endpoint("survival", (), table, NOBODY)


def class_endpoint(labels: list[int]) -> Endpoint:
    index = pd.Index([f"P{i:04d}" for i in range(len(labels))], name="patient_id")
    table = pd.DataFrame({"label": np.array(labels, np.int64)}, index=index)
    return Endpoint("classification", ("a", "b"), table, NOBODY)


def with_sites(endpoint: Endpoint, sites: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"site": sites}, index=endpoint.table.index)


def held_out(splits: pd.DataFrame) -> pd.DataFrame:
    return splits[splits["role"] == "test"]


@given(
    labels=st.lists(st.integers(0, 1), min_size=12, max_size=80),
    folds=st.integers(2, 6),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_patient_folds_partition_and_stratify(labels: list[int], folds: int, seed: int) -> None:
    endpoint = class_endpoint(labels)
    evaluation = EvaluationConfig(folds=folds, seed=seed, repeats=2)
    splits, problems = make_splits(endpoint, endpoint.table[[]], evaluation)
    assert problems == []
    assert not splits.duplicated(["repeat", "fold", "patient_id"]).any()
    assert len(splits) == 2 * folds * len(labels)
    for _, rows in held_out(splits).groupby("repeat"):
        assert sorted(rows["patient_id"]) == endpoint.table.index.tolist()
        assert np.ptp(rows.groupby("fold").size()) <= 1
        per_class = rows.join(endpoint.table, on="patient_id").groupby(["label", "fold"]).size()
        per_class = per_class.unstack(fill_value=0).reindex(columns=range(folds), fill_value=0)
        assert np.ptp(per_class.to_numpy(), axis=1).max() <= 1


def test_survival_folds_stratify_event_by_tertile_of_time() -> None:
    endpoint = survival_endpoint(300)
    splits, _ = make_splits(endpoint, endpoint.table[[]], EvaluationConfig(seed=3))
    strata = endpoint.table.assign(tertile=pd.qcut(endpoint.table["time"], 3, labels=False))
    counts = held_out(splits).join(strata, on="patient_id")
    counts = counts.groupby(["event", "tertile", "fold"]).size().unstack(fill_value=0)
    assert counts.shape == (6, 5)
    assert np.ptp(counts.to_numpy(), axis=1).max() <= 1


@given(
    sizes=st.lists(st.integers(1, 30), min_size=5, max_size=25),
    folds=st.integers(2, 5),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None)
def test_no_site_is_on_both_sides(sizes: list[int], folds: int, seed: int) -> None:
    sites = [f"S{i}" for i, size in enumerate(sizes) for _ in range(size)]
    endpoint = survival_endpoint(len(sites), seed)
    clinical = with_sites(endpoint, sites)
    evaluation = EvaluationConfig(folds=folds, seed=seed)
    splits, problems = make_splits(endpoint, clinical, evaluation)
    assert problems == []
    assert sorted(held_out(splits)["patient_id"]) == endpoint.table.index.tolist()
    assert held_out(splits)["fold"].nunique() == folds
    assert not any("site in both" in p.what for p in check_splits(splits, clinical))


def test_a_huge_site_has_a_fold_of_its_own() -> None:
    endpoint = survival_endpoint(200)
    sites = ["huge"] * 150 + [f"S{i % 10}" for i in range(50)]
    clinical = with_sites(endpoint, sites)
    splits, _ = make_splits(endpoint, clinical, EvaluationConfig())
    folds = held_out(splits).join(clinical, on="patient_id").groupby("fold")["site"].unique()
    assert any(list(names) == ["huge"] for names in folds)
    sizes = sorted(held_out(splits).groupby("fold").size())
    assert sizes[0] >= 5
    assert sizes[:4] != [1, 1, 1, 47]
    assert any("test folds hold" in p.what for p in check_splits(splits, clinical))


def test_fewer_sites_than_folds_fall_back_to_patients_with_a_warning() -> None:
    endpoint = survival_endpoint(60)
    clinical = with_sites(endpoint, ["A", "B", "C"] * 20)
    splits, problems = make_splits(endpoint, clinical, EvaluationConfig())
    assert [p.severity for p in problems] == ["warning"]
    assert "3 sites cannot make 5" in problems[0].what
    assert np.ptp(held_out(splits).groupby("fold").size()) <= 1


def test_patients_of_unknown_site_stay_together() -> None:
    endpoint = survival_endpoint(60)
    clinical = with_sites(endpoint, [None if i % 10 == 0 else f"S{i % 10}" for i in range(60)])
    splits, problems = make_splits(endpoint, clinical, EvaluationConfig())
    assert "6 patients have no site" in problems[0].what
    unknown = clinical.index[clinical["site"].isna()]
    folds = held_out(splits).set_index("patient_id")["fold"]
    assert folds[unknown].nunique() == 1


def test_fewer_patients_than_folds_are_refused() -> None:
    endpoint = survival_endpoint(4)
    with pytest.raises(CohortError, match="4 patients cannot make 5 folds"):
        make_splits(endpoint, endpoint.table[[]], EvaluationConfig())


def test_the_seed_decides_and_repeats_differ() -> None:
    endpoint = survival_endpoint(400)
    rng = np.random.default_rng(3)
    clinical = with_sites(endpoint, [f"S{i}" for i in (36 * rng.random(400) ** 2).astype(int)])
    evaluation = EvaluationConfig(repeats=4, seed=5)
    splits, _ = make_splits(endpoint, clinical, evaluation)
    again, _ = make_splits(endpoint, clinical, evaluation)
    pd.testing.assert_frame_equal(splits, again)
    folds = held_out(splits).join(clinical, on="patient_id").drop_duplicates(["repeat", "site"])
    together = {
        repeat: (table.to_numpy()[:, None] == table.to_numpy()[None]).astype(float)
        for repeat, table in folds.set_index("site").sort_index().groupby("repeat")["fold"]
    }
    # Of pairs of sites in one fold, few may be together again: nearly all are, when seeds agree.
    for repeat in range(1, 4):
        first, other = (together[r] - np.eye(len(together[r])) for r in (0, repeat))
        assert (first * other).sum() / first.sum() < 0.5


def test_inner_folds_partition_training_patients_only() -> None:
    endpoint = survival_endpoint(100)
    train = endpoint.table.index[:70].tolist()
    sites = pd.Series([f"S{i % 9}" for i in range(100)], index=endpoint.table.index)
    for given_sites in (None, sites):
        pairs = list(inner_split(train, endpoint, 3, seed=1, sites=given_sites))
        assert sorted(p for _, valid in pairs for p in valid) == train
        for fitted, valid in pairs:
            assert sorted([*fitted, *valid]) == train
            if given_sites is not None:
                assert not set(sites[fitted]) & set(sites[valid])


def write_fold(folder: Path, number: int, train: list[str], val: list[str]) -> None:
    columns = {"train": pd.Series(train), "val": pd.Series(val)}
    pd.DataFrame(columns).to_csv(folder / f"splits_{number}.csv")


def test_given_folds_are_read_and_strangers_counted(tmp_path: Path) -> None:
    endpoint = survival_endpoint(4)
    write_fold(tmp_path, 0, ["P0000", "P0001", "X"], ["P0002"])
    write_fold(tmp_path, 1, ["P0002", "P0001"], ["P0000"])
    splits, problems = read_splits(tmp_path, endpoint)
    assert splits["repeat"].unique().tolist() == [0]
    rows = set(splits[["fold", "patient_id", "role"]].itertuples(index=False, name=None))
    assert rows == {
        (0, "P0000", "train"),
        (0, "P0001", "train"),
        (0, "P0002", "test"),
        (1, "P0001", "train"),
        (1, "P0002", "train"),
        (1, "P0000", "test"),
    }
    assert [p.what for p in problems] == [
        "1 patients of the folds have no usable endpoint and are left out: X",
        "2 patients have the endpoint but are in no test set: P0001, P0003",
    ]
    assert {p.severity for p in problems} == {"warning"}


def test_a_patient_in_train_and_val_is_an_error(tmp_path: Path) -> None:
    endpoint = survival_endpoint(3)
    write_fold(tmp_path, 0, ["P0000", "P0001"], ["P0001", "P0002"])
    splits, problems = read_splits(tmp_path, endpoint)
    errors = [p for p in problems if p.severity == "error"]
    assert "splits_0.csv" in errors[0].where
    assert "P0001" in errors[0].what
    assert any("in both train and test: P0001" in p.what for p in check_splits(splits, splits[[]]))


def test_overlapping_test_sets_are_repeats(tmp_path: Path) -> None:
    endpoint = survival_endpoint(3)
    write_fold(tmp_path, 0, ["P0000"], ["P0001", "P0002"])
    write_fold(tmp_path, 1, ["P0001"], ["P0000", "P0002"])
    splits, _ = read_splits(tmp_path, endpoint)
    assert splits["repeat"].unique().tolist() == [0, 1]
    assert splits["fold"].unique().tolist() == [0]


def test_a_folder_without_folds_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(CohortError, match=r"splits_<k>\.csv"):
            read_splits(folder, survival_endpoint(3))
    (tmp_path / "splits_0.csv").write_text("training,validation\nA,B\n")
    with pytest.raises(CohortError, match="no column train, val"):
        read_splits(tmp_path, survival_endpoint(3))


def test_sides_without_events_or_classes_are_reported() -> None:
    endpoint = survival_endpoint(4)
    endpoint.table["event"] = [1, 0, 0, 0]
    rows = [(0, 0, p, "test" if p == "P0003" else "train") for p in endpoint.table.index]
    splits = pd.DataFrame(rows, columns=["repeat", "fold", "patient_id", "role"])
    clinical = endpoint.table[[]]
    assert [p.what for p in check_splits(splits, clinical, endpoint)] == ["no events in test"]
    classes = class_endpoint([0, 1, 1, 1])
    found = [p.what for p in check_splits(splits, clinical, classes)]
    assert found == ["no patients of a in test"]


def test_tcga_folds(shared_data: Path) -> None:
    tcga = shared_data / "tcga"
    table = tcga / "tcga_brca_all_clean.csv.zip"
    clinical, _ = read_clinical(ClinicalConfig(table=str(table), columns={"patient_id": "case_id"}))
    task = SurvivalTask(name="s", kind="survival", time="survival_months", censored="censorship")
    endpoint = make_endpoint(clinical, task)
    official, problems = read_splits(tcga / "splits" / "tcga_brca", endpoint)
    assert problems == []
    assert held_out(official).groupby("fold").size().tolist() == [192, 191, 191, 191, 191]
    drawn, problems = make_splits(endpoint, clinical, EvaluationConfig())
    assert problems == []
    assert check_splits(drawn, clinical, endpoint) == []
    sizes = held_out(drawn).groupby("fold").size()
    assert sizes.between(170, 212).all()
    events = held_out(drawn).join(endpoint.table, on="patient_id").groupby("fold")["event"].sum()
    assert events.min() >= 12
