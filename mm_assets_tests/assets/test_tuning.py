"""Tuning, compared options and the learning curve from the YAML to MLflow and the report."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from mm_assets.cohort.config import EvaluationConfig, TuningConfig
from mm_assets.resources.store import ArtefactRef, ArtefactStore
from mm_assets.resources.tracking import Tracking
from mm_assets_tests.cohorts import Cohort, patient_ids, write_tables, write_yaml

SURVIVAL = {
    "name": "survival", "kind": "survival", "time": "survival_months", "event": "event",
    "horizons": [12.0],
}  # fmt: skip


@pytest.mark.parametrize("settings", [{"trials": -1}, {"seconds": 0}, {"rounds": 3}])
def test_nonsense_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TuningConfig.model_validate(settings)
    with pytest.raises(ValidationError, match="compare"):
        EvaluationConfig.model_validate({"compare": ["stages"]})


def test_tuning_is_logged_and_options_are_reported(tmp_path: Path) -> None:
    folder = tmp_path / "cohorts" / "tiny"
    folder.mkdir(parents=True)
    write_tables(folder, patient_ids(36))
    yaml = write_yaml(
        folder,
        slides=None,
        tasks=[SURVIVAL],
        heec={"tuning": {"trials": 2, "seconds": None}},
        evaluation={
            "folds": 2,
            "bootstrap": 100,
            "compare": ["clinical"],
            "learning_curve": {"shares": [0.5], "draws": 1},
        },
    )
    cohort = Cohort(yaml, tmp_path / "mm")
    cohort.mm("materialize", "tiny")

    tracking = Tracking(tracking_uri=f"sqlite:///{tmp_path / 'mm' / 'mlflow' / 'mlflow.db'}")
    client = tracking._client()
    version = tracking.version("tiny.survival.heec")
    experiment = client.get_run(version.run_id).info.experiment_id
    nested = client.search_runs(
        [experiment], f"tags.`mlflow.parentRunId` = '{version.run_id}'", max_results=1000
    )
    searches = {(run.data.params["model"], run.data.params["fold"]) for run in nested}
    models = {"heec", "heec_omics", "heec_no_expression", "heec_omics_no_expression"}
    options = {"heec_clinical_feature", "heec_clinical_offset"}
    assert searches == {(m, f) for m in models | options for f in "01"} | {("heec", "-1")}
    assert len(nested) == 2 * len(searches)
    assert all("gain" in run.data.metrics for run in nested)
    store = ArtefactStore(uri=str(tmp_path / "mm" / "store"))
    html = store.read_bytes(ArtefactRef("tiny", "evaluation_survival", "cohort", "html")).decode()
    assert "How should covariates enter?" in html
    assert "How many features should pass the filters?" not in html
    curve = store.read_table(
        ArtefactRef("tiny", "evaluation_survival", "cohort.learning_curve", "parquet")
    )
    assert [(row.model, row.share) for row in curve.itertuples()] == [
        (model, share) for share in (0.5, 1.0) for model in ("heec", "clinical_cox")
    ]
    assert "Would more patients help?" in html
    trials = tracking.predictor("tiny.survival.heec").trials
    assert trials["trial"].tolist() == [0, 1]
