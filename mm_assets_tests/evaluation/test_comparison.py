"""`evaluate` end to end: values, fairness of comparisons, masks, refusals, the verdict."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from lifelines import KaplanMeierFitter

from mm_assets.evaluation.comparison import Evaluation, evaluate, paired_difference, verdict
from mm_assets_tests.evaluation.made_up import HORIZONS, Task, class_task, survival_task

SURVIVAL_METRICS = [
    *("c_index", "uno_c", "integrated_brier"),
    *(f"{m}_{h:g}" for h in HORIZONS for m in ("auc", "brier")),
]


@pytest.fixture(scope="module")
def survival() -> Task:
    return survival_task(240, {"full": 0.3, "image": 1.0, "omics": 3.0})


@pytest.fixture(scope="module")
def evaluation(survival: Task) -> Evaluation:
    return evaluate(*survival.arguments, horizons=HORIZONS, bootstrap=200)


def value(evaluation: Evaluation, model: str, metric: str) -> pd.Series:
    return evaluation.metrics.set_index(["model", "metric"]).loc[(model, metric)]


def test_value_is_the_mean_of_lifelines_over_folds(survival, evaluation):
    from lifelines.utils import concordance_index

    rows = survival.predictions[survival.predictions["model"] == "image"]
    folds = []
    for _, fold in rows.groupby("fold"):
        outcome = survival.endpoint.table.loc[fold["patient_id"]]
        folds.append(concordance_index(outcome["time"], -fold["risk"], outcome["event"]))
    row = value(evaluation, "image", "c_index")
    assert row["value"] == pytest.approx(np.mean(folds), abs=1e-12)
    assert row["fold_sd"] == pytest.approx(np.std(folds, ddof=1), abs=1e-12)
    assert row["patients"] == 240
    assert row["events"] == survival.endpoint.table["event"].sum()
    assert row["low"] < row["value"] < row["high"]
    per_fold = evaluation.per_fold
    own = per_fold[(per_fold["model"] == "image") & (per_fold["metric"] == "c_index")]
    assert own["value"].tolist() == pytest.approx(folds, abs=1e-12)
    assert own["patients"].sum() == 240


def test_every_metric_of_every_model_and_pair_is_there(evaluation):
    assert set(evaluation.metrics["metric"]) == set(SURVIVAL_METRICS)
    assert len(evaluation.metrics) == 3 * len(SURVIVAL_METRICS)
    assert len(evaluation.differences) == 3 * len(SURVIVAL_METRICS)
    assert not evaluation.metrics[["value", "low", "high"]].isna().any(axis=None)


def test_same_seed_same_tables_whatever_the_row_order(survival, evaluation):
    shuffled = survival.predictions.groupby("model", sort=False).sample(frac=1, random_state=0)
    arguments = replace(survival, predictions=shuffled).arguments
    again = evaluate(*arguments, horizons=HORIZONS, bootstrap=200)
    for name, table in evaluation.tables().items():
        pd.testing.assert_frame_equal(table, again.tables()[name], obj=name, rtol=1e-12)
    other = evaluate(*survival.arguments, horizons=HORIZONS, bootstrap=200, seed=1)
    assert not other.metrics["low"].equals(evaluation.metrics["low"])


def test_a_model_does_not_differ_from_itself(survival):
    rows = survival.predictions[survival.predictions["model"] == "image"]
    twins = pd.concat([rows, rows.assign(model="twin")], ignore_index=True)
    twin = evaluate(*replace(survival, predictions=twins).arguments, horizons=HORIZONS)
    assert (twin.differences[["difference", "low", "high"]] == 0).all(axis=None)
    assert (twin.differences["p"] == 1).all()


def test_differences_are_paired(survival, evaluation):
    gap = paired_difference(evaluation.differences, "full", "image", "c_index")
    full, image = (value(evaluation, model, "c_index") for model in ("full", "image"))
    assert gap["difference"] == pytest.approx(full["value"] - image["value"], abs=1e-12)
    unpaired = np.hypot(full["high"] - full["low"], image["high"] - image["low"])
    assert gap["high"] - gap["low"] < 0.9 * unpaired
    reverse = paired_difference(evaluation.differences, "image", "full", "c_index")
    assert reverse["difference"] == -gap["difference"]
    assert (reverse["low"], reverse["high"]) == (-gap["high"], -gap["low"])
    with pytest.raises(KeyError, match="not compared"):
        paired_difference(evaluation.differences, "full", "nobody", "c_index")


def test_holm_counts_all_pairs_of_one_metric(evaluation):
    for _, rows in evaluation.differences.groupby("metric"):
        lowest = rows.sort_values("p").iloc[0]
        assert lowest["p_adjusted"] == pytest.approx(min(1, 3 * lowest["p"]))


def test_repeats_of_the_same_folds_do_not_narrow_the_interval(survival, evaluation):
    twice = Task(
        *(
            pd.concat([table, table.assign(repeat=1)], ignore_index=True)
            if "repeat" in getattr(table, "columns", ())
            else table
            for table in survival.arguments
        )
    )
    repeated = evaluate(*twice.arguments, horizons=HORIZONS, bootstrap=200)
    columns = ["value", "low", "high", "patients", "events"]
    pd.testing.assert_frame_equal(repeated.metrics[columns], evaluation.metrics[columns])
    assert repeated.metrics["protocol"].iloc[0].startswith("out-of-fold, 5 folds, 2 repeats")
    assert repeated.calibration["patients"].sum() == evaluation.calibration["patients"].sum()


def test_models_are_compared_on_the_patients_of_both(survival):
    absent = [f"P{number:04d}" for number in range(0, 240, 4)]
    rows = survival.predictions
    few = rows[(rows["model"] != "image") | ~rows["patient_id"].isin(absent)]
    found = evaluate(*replace(survival, predictions=few).arguments, horizons=(), bootstrap=100)
    assert value(found, "image", "c_index")["patients"] == 180
    assert value(found, "full", "c_index")["patients"] == 240
    shared = rows[~rows["patient_id"].isin(absent)]
    alone = evaluate(*replace(survival, predictions=shared).arguments, horizons=(), bootstrap=100)
    gap = paired_difference(found.differences, "full", "image", "c_index")
    expected = paired_difference(alone.differences, "full", "image", "c_index")
    assert gap["difference"] == pytest.approx(expected["difference"], abs=1e-12)
    assert "no prediction for 60 of 240 patients" in found.notes["note"].iloc[0]


def test_small_groups_are_masked(evaluation):
    groups = evaluation.subgroups[evaluation.subgroups["model"] == "full"]
    groups = groups.set_index(["variable", "group"])
    for small in (("site", "tiny"), ("age", "unknown")):
        assert list(groups.loc[small, ["patients", "events"]]) == ["<5", "<5"]
        assert np.isnan(groups.loc[small, ["value", "low", "high"]].astype(float)).all()
    assert groups.loc[("sex", "female"), "patients"] == "160"
    # One masked site: its size would be 240 less the sum of the others.
    shown = groups.loc["site"].loc[["east", "west"], ["patients", "events"]]
    assert sorted((shown == "5 or more").all(axis=1)) == [False, True]
    assert 0.5 < groups.loc[("site", "east"), "value"] < 1
    assert 0.5 < groups.loc[("sex", "female"), "value"] < 1
    assert {"up to 60", "over 60"} <= set(groups.loc["age"].index)


def test_a_subgroup_of_everybody_has_the_pooled_c_index(survival):
    clinical = survival.clinical.assign(site="one")[["site"]]
    found = evaluate(*replace(survival, clinical=clinical).arguments, bootstrap=100)
    rows = survival.predictions[survival.predictions["model"] == "full"]
    concordant = comparable = 0.0
    for _, fold in rows.groupby("fold"):
        outcome = survival.endpoint.table.loc[fold["patient_id"]]
        risk, observed = fold["risk"].to_numpy(), outcome["event"].to_numpy() == 1
        later = outcome["time"].to_numpy()[:, None] < outcome["time"].to_numpy()
        pairs = later & observed[:, None]
        comparable += pairs.sum()
        concordant += (pairs & (risk[:, None] > risk)).sum()
    assert found.subgroups["value"].iloc[0] == pytest.approx(concordant / comparable, abs=1e-12)


def test_risk_groups_are_cut_at_the_training_median_of_each_fold(survival, evaluation):
    from lifelines.statistics import logrank_test

    rows = survival.predictions[survival.predictions["model"] == "full"].set_index("patient_id")
    high = rows["risk"] > rows["risk_cut"]
    table = survival.endpoint.table.loc[rows.index]
    expected = logrank_test(
        table["time"][high], table["time"][~high], table["event"][high], table["event"][~high]
    )
    curves = evaluation.risk_groups[evaluation.risk_groups["model"] == "full"]
    assert curves["log_rank_p"].unique() == pytest.approx([expected.p_value])
    sizes = curves.groupby("group")["patients"].first()
    assert dict(sizes) == {"high": high.sum(), "low": (~high).sum()}


def test_without_training_medians_risk_groups_are_skipped_and_said_so(survival):
    bare = survival.predictions.drop(columns="risk_cut")
    found = evaluate(*replace(survival, predictions=bare).arguments, bootstrap=100)
    assert found.risk_groups.empty
    assert found.notes["note"].str.contains("without its training median").sum() == 3


def test_a_fold_without_events_is_left_out_of_the_mean(survival):
    rows = survival.predictions
    first = rows.loc[rows["fold"] == 0, "patient_id"].unique()
    table = survival.endpoint.table.copy()
    table.loc[first, "event"] = 0
    quiet = replace(survival, endpoint=replace(survival.endpoint, table=table))
    found = evaluate(*quiet.arguments, horizons=HORIZONS, bootstrap=100)
    per_fold = found.per_fold[found.per_fold["metric"] == "c_index"].set_index(["model", "fold"])
    assert np.isnan(per_fold.loc[("full", 0), "value"])
    expected = per_fold.loc["full"]["value"].dropna().mean()
    assert value(found, "full", "c_index")["value"] == pytest.approx(expected)


def test_one_event_or_none_in_the_cohort_is_no_crash(survival):
    for events in (0, 1):
        table = survival.endpoint.table.assign(event=0)
        table.iloc[:events, table.columns.get_loc("event")] = 1
        quiet = replace(survival, endpoint=replace(survival.endpoint, table=table))
        found = evaluate(*quiet.arguments, horizons=HORIZONS, bootstrap=100)
        assert np.isnan(value(found, "full", "c_index")["value"]) == (events == 0)
        sentence = verdict(found, "c_index", "full", ["image"])
        assert sentence.startswith("No C-index") == (events == 0)


@pytest.mark.parametrize("classes", [2, 3])
def test_classes(classes):
    from sklearn.metrics import roc_auc_score

    task = class_task(200, {"full": 0.3, "noise": 5.0}, classes=classes)
    found = evaluate(*task.arguments, bootstrap=100)
    rows = task.predictions[task.predictions["model"] == "full"]
    folds = []
    for _, fold in rows.groupby("fold"):
        label = task.endpoint.table.loc[fold["patient_id"], "label"]
        share = fold[[f"probability_{name}" for name in task.endpoint.classes]].to_numpy()
        folds.append(
            roc_auc_score(label, share[:, 1])
            if classes == 2
            else roc_auc_score(label, share, multi_class="ovr")
        )
    assert value(found, "full", "auc")["value"] == pytest.approx(np.mean(folds), abs=1e-12)
    rarest = task.endpoint.table["label"].value_counts().min()
    assert value(found, "full", "auc")["events"] == rarest
    assert set(found.roc["target"]) == set(task.endpoint.classes[-1:] if classes == 2 else "ABC")
    ends = found.roc[found.roc["false_positive_rate"].isin([0, 1])]
    assert ends["true_positive_rate"].tolist() == pytest.approx(
        ends["false_positive_rate"].tolist()
    )
    assert set(found.calibration_fit["model"]) == {"full", "noise"}
    assert not found.calibration_fit["ece"].isna().any()
    assert found.risk_groups.empty


def test_site_preserving_is_said_only_when_it_is_true(survival):
    sites = survival.splits[survival.splits["role"] == "test"].set_index("patient_id")["fold"]
    clinical = survival.clinical.assign(site=sites.map("site {}".format))
    found = evaluate(*replace(survival, clinical=clinical).arguments, bootstrap=100)
    assert "5 site-preserving folds, 1 repeat;" in found.metrics["protocol"].iloc[0]
    mixed = evaluate(*survival.arguments, bootstrap=100)
    assert "site-preserving" not in mixed.metrics["protocol"].iloc[0]


def test_what_is_not_out_of_fold_is_refused(survival):
    def attempt(predictions):
        evaluate(*replace(survival, predictions=predictions).arguments, bootstrap=100)

    rows = survival.predictions
    trained_on = rows["patient_id"].iloc[[-1]].to_numpy()
    leaked = pd.concat([rows, rows.iloc[[0]].assign(patient_id=trained_on)])
    with pytest.raises(ValueError, match=f"not out-of-fold.*{trained_on[0]}"):
        attempt(leaked)
    with pytest.raises(ValueError, match=r"model full, repeat 0, fold 0.*more than once"):
        attempt(pd.concat([rows, rows.iloc[[0]]]))
    with pytest.raises(ValueError, match="1 predictions are not finite"):
        attempt(rows.assign(risk=rows["risk"].mask(rows.index == 3)))
    with pytest.raises(ValueError, match=r"image has no predictions for .*\(0, 2\)"):
        attempt(rows[(rows["model"] != "image") | (rows["fold"] != 2)])
    with pytest.raises(ValueError, match="lack the columns risk"):
        attempt(rows.drop(columns="risk"))


def test_verdicts_are_honest():
    def judged(noise, patients=400):
        task = survival_task(patients, noise)
        found = evaluate(*task.arguments, bootstrap=300)
        return verdict(found, "c_index", "full", ["image", "omics", "absent"], {"image": "Image"})

    better = judged({"full": 0.1, "image": 2.0, "omics": 5.0})
    assert "beats the best single-modality model, Image (" in better
    assert "95 % interval 0." in better
    assert "after Holm's correction" in better
    assert "is worse than" in judged({"full": 5.0, "image": 0.1, "omics": 5.0})
    assert "cannot be told apart" in judged({"full": 1.0, "image": 1.0, "omics": 5.0}, 100)
    assert "no single-modality model" in judged({"full": 1.0, "other": 1.0}, 100)


def test_a_full_model_of_one_modality_has_other_models_not_single_ones():
    task = survival_task(100, {"full": 0.1, "image": 5.0})
    found = evaluate(*task.arguments, bootstrap=100)
    assert "beats the best other model, image (" in verdict(
        found, "c_index", "full", ["full", "image"]
    )
    assert "has no other model" in verdict(found, "c_index", "full", ["full"])


def test_tables_travel_as_parquet(evaluation, tmp_path):
    for name, table in evaluation.tables().items():
        table.to_parquet(tmp_path / f"{name}.parquet")
    back = Evaluation(
        **{name: pd.read_parquet(tmp_path / f"{name}.parquet") for name in evaluation.tables()}
    )
    pd.testing.assert_frame_equal(back.subgroups, evaluation.subgroups)
    assert verdict(back, "c_index", "full", ["image"]) == verdict(
        evaluation, "c_index", "full", ["image"]
    )


def test_progress_rises_to_the_total(survival):
    seen = []
    evaluate(
        *survival.arguments, bootstrap=100, progress=lambda done, total: seen.append((done, total))
    )
    assert [done for done, _ in seen] == list(range(1, 8))
    assert {total for _, total in seen} == {7}


def test_what_tells_nobody_apart_is_kaplan_meier_or_the_share_of_the_class(survival):
    found = evaluate(*survival.arguments, horizons=HORIZONS, bootstrap=100)
    errors = found.uninformed.set_index("metric")["value"]
    assert set(errors.index) == {"integrated_brier", *(f"brier_{h:g}" for h in HORIZONS)}
    predicted = []
    for (_, fold), rows in survival.splits.groupby(["repeat", "fold"]):
        train = survival.endpoint.table.loc[rows.loc[rows["role"] == "train", "patient_id"]]
        curve = KaplanMeierFitter().fit(train["time"], train["event"])
        own = survival.predictions[survival.predictions["fold"] == fold]
        own = own[own["model"] == "full"]
        predicted.append(
            own.assign(**{f"survival_{h:g}": curve.predict(h) for h in HORIZONS}, model="average")
        )
    arguments = replace(survival, predictions=pd.concat(predicted)).arguments
    average = evaluate(*arguments, horizons=HORIZONS, bootstrap=100)
    for metric, error in errors.items():
        assert value(average, "average", metric)["value"] == pytest.approx(error, abs=1e-12)
        assert value(found, "full", metric)["value"] < error
    task = class_task(200, {"full": 0.3}, classes=3)
    errors = evaluate(*task.arguments, bootstrap=100).uninformed.set_index("metric")["value"]
    assert list(errors.index) == ["brier", "log_loss"]
    assert errors["log_loss"] == pytest.approx(np.log(3), abs=0.1)
