"""`check_cohort`: everything that is wrong, found without starting anything."""

from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pandas as pd
import pytest

from mm_assets.cohort.check import check_cohort
from mm_assets.cohort.config import CohortConfig
from mm_assets.omics import readers
from mm_assets_tests.cohort.conftest import BUCKET
from mm_assets_tests.s3_proxy import forbidding_s3

SURVIVAL = {"name": "survival", "kind": "survival", "time": "months", "event": "event"}
SUBTYPE = {"name": "subtype", "kind": "classification", "column": "type", "classes": ["a", "b"]}


def write_cohort(folder: Path, patients: int = 40) -> dict[str, Any]:
    """A cohort without fault: tables on disk and the attributes that describe it."""
    rng = np.random.default_rng(0)
    ids = [f"P{i:02d}" for i in range(patients)]
    clinical = pd.DataFrame(
        {
            "patient_id": ids,
            "age": rng.integers(40, 80, patients),
            "site": [f"S{i % 7}" for i in range(patients)],
            "type": ["a", "b"] * (patients // 2),
            "months": rng.exponential(20, patients) + 1,
            "event": [1, 1, 0, 0] * (patients // 4),
        }
    )
    clinical.to_csv(folder / "clinical.csv", index=False)
    omics = pd.DataFrame({"case_id": ids, "A_rnaseq": rng.normal(size=patients)})
    omics.to_csv(folder / "omics.csv", index=False)
    (folder / "slides").mkdir()
    (folder / "slides" / "s.svs").write_bytes(b"x")
    (folder / "slides.csv").write_text("slide_id,patient_id,path\ns,P00,s.svs\n")
    return {
        "cohort": "x",
        "clinical": {"table": str(folder / "clinical.csv")},
        "omics": {"kind": "wide", "path": str(folder / "omics.csv")},
        "slides": {"root": str(folder / "slides"), "manifest": str(folder / "slides.csv")},
        "tasks": [SURVIVAL, SUBTYPE],
    }


def check(attributes: dict[str, Any]) -> list[str]:
    config = CohortConfig.model_validate(attributes)
    return [f"{problem.severity}: {problem}" for problem in check_cohort(config)]


def edit(path: Path, **columns: Any) -> None:
    pd.read_csv(path).assign(**columns).to_csv(path, index=False)


@pytest.fixture
def attributes(tmp_path: Path, home: Path) -> dict[str, Any]:
    """Attributes of a cohort without fault."""
    return write_cohort(tmp_path)


def test_a_good_cohort_has_no_problems(attributes: dict[str, Any]) -> None:
    assert check(attributes) == []
    del attributes["slides"], attributes["omics"]
    assert check(attributes) == []


def test_everything_is_reported_at_once(attributes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "slides.csv").write_text("slide_id,patient_id,path\ns,P00,s.svs\ns,P99,t.svs\n")
    (tmp_path / "omics.csv").write_text("case_id,A_rnaseq\nQ,1\nR,x\n")
    attributes["tasks"] = [{**SURVIVAL, "time": "days"}, {**SUBTYPE, "classes": ["a", "c"]}]
    attributes["clinical"]["covariates"] = ["age", "grade"]
    attributes["evaluation"] = {"attainable": str(tmp_path / "none.json")}
    attributes["imaging"] = {"weights": str(tmp_path / "none.pt")}
    found = "\n".join(check(attributes))
    for said in (
        "slides.csv, line 2: slide_id 's' is on lines 2, 3",
        "omics.csv, line 3, column A_rnaseq: 'x' is not a number",
        "omics.csv: no column differs between patients",
        "omics.csv: no patient of the clinical table is in it, but Q (the clinical table has P00",
        "task survival: the clinical table has no column 'days' (it has: site, age, type",
        "task subtype: no patient is of class c (the column holds: 'a', 'b')",
        "clinical.covariates: the clinical table has no column 'grade'",
        "evaluation.attainable: no such file",
        "imaging.weights: no such file",
    ):
        assert f"error: {tmp_path}/{said}" in found or f"error: {said}" in found, said


def test_weights_of_every_encoder_are_looked_for(
    attributes: dict[str, Any], tmp_path: Path
) -> None:
    """A folder as the makers of a model publish it is as good as a file."""
    folder = tmp_path / "uni"
    folder.mkdir()
    attributes["imaging"] = {
        "weights": str(folder),
        "encoder": "uni",
        "also": [{"name": "second", "encoder": "virchow", "weights": "hub"}],
    }
    attributes["hipt"] = {"tile_weights": str(tmp_path / "none.pth"), "region_weights": "random:0"}
    assert check(attributes) == [
        f"error: imaging.weights: no such file: {folder / 'pytorch_model.bin'} (check the path)",
        f"error: hipt.tile_weights: no such file: {tmp_path / 'none.pth'} (check the path)",
    ]
    (folder / "pytorch_model.bin").touch()
    (tmp_path / "none.pth").touch()
    assert check(attributes) == []


def test_weights_on_s3_are_looked_for(
    attributes: dict[str, Any], s3: "boto3.client", monkeypatch: pytest.MonkeyPatch
) -> None:
    attributes["imaging"] = {"weights": f"s3://{BUCKET}/weights/a.pth"}
    missing = f"error: imaging.weights: no such file: s3://{BUCKET}/weights/a.pth (check the path)"
    assert check(attributes) == [missing]
    s3.put_object(Bucket=BUCKET, Key="weights/a.pth", Body=b"")
    assert check(attributes) == []
    attributes["imaging"] = {"weights": f"s3://{BUCKET}/weights"}
    s3.put_object(Bucket=BUCKET, Key="weights/model.safetensors", Body=b"")
    assert check(attributes) == []
    with forbidding_s3() as address, monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", address)
        (unknown,) = check(attributes)
    assert unknown.startswith(f"error: imaging.weights: s3://{BUCKET}/weights cannot be looked up")


def test_slides_of_unknown_patients(attributes: dict[str, Any], tmp_path: Path) -> None:
    for name in "tu":
        (tmp_path / "slides" / f"{name}.svs").write_bytes(b"x")
    (tmp_path / "slides.csv").write_text(
        "slide_id,patient_id,path\ns,P00,s.svs\nt,P98,t.svs\nu,P99,u.svs\n"
    )
    assert [line.partition(" (")[0] for line in check(attributes)] == [
        f"error: {tmp_path}/slides.csv, slide {slide}: patient {who!r} is not in the clinical table"
        for slide, who in (("t", "P98"), ("u", "P99"))
    ]
    del attributes["slides"]["manifest"]
    assert {line.partition(":")[0] for line in check(attributes)} == {"warning"}


def test_patients_left_out_are_counted_with_reasons(
    attributes: dict[str, Any], tmp_path: Path
) -> None:
    table = pd.read_csv(tmp_path / "clinical.csv")
    table.loc[[3, 5], "months"] = [0, -1]
    table.loc[7, "type"] = "z"
    table.to_csv(tmp_path / "clinical.csv", index=False)
    found = check(attributes)
    assert (
        "warning: task survival: left out, months is not above 0: 2 of 40 patients, P03, P05"
        in (found)
    )
    assert any("class z is not one of the task's: 1 of 40 patients, P07" in line for line in found)
    assert all(line.startswith("warning") for line in found)


def test_endpoints_that_cannot_be_learnt(attributes: dict[str, Any], tmp_path: Path) -> None:
    edit(tmp_path / "clinical.csv", event=0)
    assert any("error: task survival: no patient has an event" in p for p in check(attributes))
    edit(tmp_path / "clinical.csv", months=None)
    assert any("task survival: no patient has an event" in line for line in check(attributes))


def test_a_covariate_that_gives_the_class_away(attributes: dict[str, Any], tmp_path: Path) -> None:
    edit(tmp_path / "clinical.csv", histology=["ductal", "lobular"] * 20)
    attributes["clinical"]["covariates"] = ["age", "histology"]
    found = check(attributes)
    assert len(found) == 1
    assert "warning: task subtype: covariate 'histology' determines the outcome" in found[0]


def test_folds_are_checked(attributes: dict[str, Any], tmp_path: Path) -> None:
    edit(tmp_path / "clinical.csv", site=["one", "two"] * 20)
    assert [line.partition("; ")[0] for line in check(attributes)] == 2 * [
        "warning: evaluation.preserve_sites: 2 sites cannot make 5 site-preserving folds"
        " (folds are drawn on patients"
    ]
    folder = tmp_path / "splits"
    attributes["evaluation"] = {"splits": str(folder)}
    assert any("error" in p and "no files splits_<k>.csv" in p for p in check(attributes))
    folder.mkdir()
    (folder / "splits_0.csv").write_text("train,val\nP00,P01\nP02,P00\n")
    assert any("in both train and val: P00" in line for line in check(attributes))


def test_omics_are_read_again_only_when_they_change(
    attributes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "omics.csv"
    path.write_text(path.read_text() + "P00,17\n")
    first = check(attributes)
    assert any("different omics: P00" in line for line in first)
    read = readers.read_omics
    calls = []
    monkeypatch.setattr(readers, "read_omics", lambda c: (calls.append(c), read(c))[1])
    assert check(attributes) == first
    assert calls == []
    path.write_text(path.read_text() + "Q,x\n")
    assert any("'x' is not a number" in line for line in check(attributes))
    assert len(calls) == 1


def test_a_read_only_home_is_no_problem(
    attributes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MM_HOME", str(tmp_path / "file"))
    assert check(attributes) == []


def test_patients_without_omics_and_cohorts_without_slides_yet(
    attributes: dict[str, Any], tmp_path: Path
) -> None:
    lines = (tmp_path / "omics.csv").read_text().splitlines(keepends=True)
    (tmp_path / "omics.csv").write_text("".join(lines[:-2]))
    (tmp_path / "slides.csv").write_text("slide_id,patient_id,path\n")
    found = check(attributes)
    assert found == [
        f"warning: {tmp_path}/slides.csv: no slides yet",
        f"warning: {tmp_path}/omics.csv: 2 of 40 patients have no omics: P38, P39",
    ]


def test_a_real_cohort(shared_data: Path, home: Path) -> None:
    tcga = shared_data / "tcga"
    table = str(tcga / "tcga_coadread_all_clean.csv.zip")
    attributes = {
        "cohort": "coadread",
        "clinical": {"table": table, "columns": {"patient_id": "case_id", "sex": "is_female"}},
        "omics": {"kind": "wide", "path": table},
        "tasks": [{**SURVIVAL, "time": "survival_months", "event": None, "censored": "censorship"}],
        "evaluation": {"splits": str(tcga / "splits" / "tcga_coadread")},
    }
    assert check(attributes) == []
