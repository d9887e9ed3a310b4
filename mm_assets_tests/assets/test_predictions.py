"""The champion predicts for everybody, in a process of its own; who is champion is settled."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from deploy.local.sagemaker.server import SageMaker
from mm_assets.cli import app
from mm_assets.resources.model_run import OUTCOME
from mm_assets.resources.receipts import Receipts
from mm_assets.resources.store import ArtefactRef, ArtefactStore
from mm_assets.resources.tracking import MIRROR, Tracking
from mm_assets_tests.cohorts import (
    make_cohort,
    paint_slide,
    patient_ids,
    slide_name,
    write_tables,
    write_yaml,
)

TASK = {"name": "subtype", "kind": "classification", "column": "subtype", "classes": ["IDC", "ILC"]}
MODEL, CLINICAL = "tiny.subtype.heec", "tiny.subtype.clinical_logistic"
NEW = ["P900", "P901"]


def mm(*arguments: str, expect: int = 0) -> str:
    done = CliRunner().invoke(app, list(arguments))
    if done.exception and not isinstance(done.exception, SystemExit) and not expect:
        raise done.exception
    assert bool(done.exit_code) == bool(expect), done.output
    return str(done.exception or done.output)


def materialize(*assets: str) -> None:
    mm("materialize", "tiny", *(part for asset in assets for part in ("--select", asset)))


def predictions(home: Path) -> pd.DataFrame:
    ref = ArtefactRef("tiny", "predictions_subtype", "cohort", "parquet")
    return ArtefactStore(uri=str(home / "store")).read_table(ref).set_index("patient_id")


def store_receipts(home: Path) -> Receipts:
    return Receipts(ArtefactStore(uri=str(home / "store")))


def of_model(table: pd.DataFrame, model: str = MODEL) -> pd.DataFrame:
    return table[table["model"] == model]


def packages(service: SageMaker) -> list[tuple[str, str, str]]:
    """Version, approval status and its reason, of the packages of `MODEL`."""
    found = [(p, p["CustomerMetadataProperties"]) for p in service.registry.packages.values()]
    return [
        (made["mlflow_version"], package["ModelApprovalStatus"], package["ApprovalDescription"])
        for package, made in found
        if made["mlflow_model"] == MODEL
    ]


def explained_by() -> int:
    """Version that explains a patient who has arrived."""
    found = json.loads(mm("evidence", "tiny", "--patient", NEW[0], "--json"))[0]
    assert not found["seen_in_training"]
    return int(found["model"]["version"])


def change(path: Path, section: str, **settings: object) -> None:
    content = yaml.safe_load(path.read_text())
    content["attributes"].setdefault(section, {}).update(settings)
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def arrive(folder: Path) -> None:
    """Two patients without an endpoint, the second known by omics alone."""
    for name, column in (("clinical.csv", "patient_id"), ("omics.csv", "case_id")):
        table = pd.read_csv(folder / name)
        # Values of their own: two patients of one expression are refused as one person.
        rows = table.select_dtypes("number").head(2) + 1
        rows = table.head(2).assign(**rows, **{column: NEW})
        if name == "clinical.csv":
            rows = rows.assign(subtype=None).head(1)
        pd.concat([table, rows]).to_csv(folder / name, index=False)


def test_new_patients_are_predicted_by_a_champion_that_a_person_can_change(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sagemaker_settings: SageMaker
) -> None:
    monkeypatch.setenv(MIRROR, "1")
    folder = tmp_path / "cohorts" / "tiny"
    folder.mkdir(parents=True)
    write_tables(folder, patient_ids(40))
    path = write_yaml(folder, slides=None, imaging=None, tasks=[TASK])
    monkeypatch.setenv("MM_COHORTS", str(folder.parent))
    mm("materialize", "tiny")
    tracking = Tracking()
    first = tracking.version(MODEL)
    everyone = predictions(home)
    assert everyone.groupby("model").size().to_dict() == {CLINICAL: 40, MODEL: 40}
    assert everyone["in_training"].all()
    assert everyone[["probability_ILC", "threshold"]].notna().all(axis=None)
    before = of_model(everyone)
    assert (before["refused"] == "").all()
    assert "first version" in tracking.notes(first)[OUTCOME]
    card = tracking.read_file(first.run_id, "model_card.md")
    assert card is not None
    assert b"# tiny.subtype.heec version 1" in card

    arrive(folder)
    shown = mm("predict", "tiny")
    assert f"{MODEL} version 1: 42 scored, 0 refused, 0 without" in shown
    assert f"{CLINICAL} version 1: 41 scored, 0 refused, 1 without" in shown
    assert str(home / "store" / "tiny" / "predictions_subtype" / "cohort.parquet") in shown
    everyone = predictions(home)
    clinical = of_model(everyone, CLINICAL).loc[NEW]
    assert clinical["lacks"].tolist() == ["", "clinical"]
    assert clinical["probability_ILC"].notna().tolist() == [True, False]
    assert clinical["omics"].isna().all()
    after = of_model(everyone)
    assert set(after.index) - set(before.index) == set(NEW)
    assert not after.loc[NEW, ["in_training", "has_endpoint"]].any(axis=None)
    assert after.loc[NEW, "probability_ILC"].between(0, 1).all()
    assert after.loc[NEW, "clinical"].notna().tolist() == [True, False]
    # Those who were there get what they had: the model is the same.
    columns = ["probability_IDC", "probability_ILC", "version"]
    pd.testing.assert_frame_equal(after.loc[before.index, columns], before[columns])
    with pytest.raises(LookupError):
        tracking.version(MODEL, 2)

    # A weaker model on the same folds: it reads one feature of pure noise.
    change(path, "evaluation", omics_features=1, promotion_margin=0.0)
    table = pd.read_csv(folder / "omics.csv")
    table["G0_rnaseq"] = table["G0_rnaseq"].sample(frac=1, random_state=0).to_numpy()
    table.to_csv(folder / "omics.csv", index=False)
    materialize("omics", "filtered_omics_subtype", "heec_subtype", "evaluation_subtype")
    second = tracking.version(MODEL, 2)
    outcome = tracking.notes(second)[OUTCOME]
    assert outcome.startswith("not promoted over version 1: ROC AUC -")
    assert tracking.version(MODEL).version == explained_by() == 1
    approved, pending = packages(sagemaker_settings)
    assert approved == ("1", "Approved", tracking.notes(first)[OUTCOME])
    assert pending[:2] == ("2", "PendingManualApproval")
    assert outcome in pending[2]
    report = home / "store" / "tiny" / "evaluation_subtype" / "cohort.html"
    assert "not promoted over version 1" in report.read_text()

    assert "no version" in mm("promote", f"{MODEL}:7", "--reason", "x", expect=1)
    assert "say why" in mm("promote", f"{MODEL}:2", "--reason", " ", expect=1)
    mm("promote", f"{MODEL}:2", "--reason", "a trial", "--by", "Ana")
    assert tracking.version(MODEL).version == explained_by() == 2
    promoted = tracking.notes(second)[OUTCOME]
    assert "promoted by Ana" in promoted
    pending, approved = packages(sagemaker_settings)
    assert pending[:2] == ("1", "PendingManualApproval")
    assert f"version 2 is champion: {promoted}" in pending[2]
    assert approved == ("2", "Approved", promoted)
    materialize("predictions_subtype")
    versions = predictions(home).groupby("model")["version"].unique()
    assert versions.map(list).to_dict() == {CLINICAL: [1], MODEL: [2]}

    # What a person decided stands when the versions he knew are compared again.
    mm("promote", f"{MODEL}:1", "--reason", "the first was right", "--by", "Ben")
    change(path, "evaluation", promotion_margin=1.0)
    materialize("evaluation_subtype")
    assert tracking.version(MODEL).version == 1
    outcome = tracking.notes(second)[OUTCOME]
    assert outcome.startswith("not promoted over version 1, promoted by Ben, ")
    assert outcome.endswith(": the first was right")
    assert outcome in report.read_text()


@pytest.mark.stress
def test_slides_embedded_otherwise_are_refused_and_new_ones_explained(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_cohort(tmp_path / "cohorts" / "tiny", 24, slides=8, tasks=[TASK])
    folder = path.parent
    monkeypatch.setenv("MM_COHORTS", str(folder.parent))
    mm("materialize", "tiny")
    made = store_receipts(home).read("tiny", "heec_subtype", "cohort")
    assert made is not None

    arrive(folder)
    paint_slide(folder / "slides" / slide_name(NEW[0]), seed=90)
    shown = mm("predict", "tiny")
    assert f"{MODEL} version 1: 26 scored, 0 refused" in shown
    after = of_model(predictions(home))
    assert (after["refused"] == "").all()
    assert after.loc[NEW, "slides"].tolist() == [1, 0]
    assert (home / "store" / "tiny" / "evidence_subtype" / f"{NEW[0]}-S1.json").exists()
    with pytest.raises(LookupError):
        Tracking().version(MODEL, 2)

    change(path, "imaging", weights="random:1")
    # What was refused is no failure of the run: it is settled until something changes.
    assert f"{MODEL} version 1: 17 scored, 9 refused" in mm("predict", "tiny")
    evidence = store_receipts(home).read_all("tiny", "evidence_subtype")
    assert {receipt.state for receipt in evidence.values()} == {"failed"}
    assert all("random:1" in receipt.reason for receipt in evidence.values())
    refused = of_model(predictions(home))
    with_slides = refused["slides"] > 0
    assert with_slides.sum() == 9
    reasons = refused.loc[with_slides, "refused"]
    assert reasons.str.contains("weights random:1, the model's with random:0").all()
    assert refused.loc[with_slides, "probability_ILC"].isna().all()
    assert (refused.loc[~with_slides, "refused"] == "").all()
    assert refused.loc[~with_slides, "probability_ILC"].notna().all()
