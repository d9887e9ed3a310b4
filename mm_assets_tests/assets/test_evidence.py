"""Evidence of a tiny cohort, through Dagster and the command line."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mm_assets.explain.document import EvidenceDocument
from mm_assets_tests.cohorts import Cohort, make_cohort, paint_slide

PATIENTS, SLIDES, TWO = 24, 6, "P001"
TASK = {
    "name": "subtype",
    "kind": "classification",
    "column": "subtype",
    "classes": ["IDC", "ILC"],
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = tmp_path_factory.mktemp("evidence")
    yaml = make_cohort(folder / "cohorts" / "tiny", PATIENTS, slides=SLIDES, tasks=[TASK])
    paint_slide(yaml.parent / "slides" / f"{TWO}-S2.tiff", 99)
    (folder / "mm").mkdir()
    made = Cohort(yaml, folder / "mm")
    made.mm("materialize", "tiny")
    return made


def folder_of(cohort: Cohort, asset: str) -> Path:
    return cohort.home / "store" / "tiny" / asset


def test_every_slide_has_evidence_that_names_its_model(cohort: Cohort) -> None:
    documents = {
        path.stem: EvidenceDocument.from_json(path.read_bytes())
        for path in folder_of(cohort, "evidence_subtype").glob("*.json")
    }
    assert len(documents) == SLIDES + 1
    for slide, document in documents.items():
        assert document.slide is not None
        assert (document.slide.slide_id, document.slide.width) == (slide, 640)
        assert document.model.name == "tiny.subtype.heec"
        assert document.weights == "resnet50 random:0"
        assert document.seen_in_training
        listed = sum(item.contribution for item in document.items)
        assert document.base is not None
        assert document.base + listed + document.remainder == pytest.approx(document.score)
        odds = np.exp(document.score or 0.0)
        top = max(document.prediction.values())
        assert top == pytest.approx(odds / (1 + odds), abs=1e-6)


def test_places_are_those_of_the_stored_extrema(cohort: Cohort) -> None:
    found = json.loads(cohort.mm("evidence", "tiny", "--patient", TWO, "--json"))[0]
    assert set(found["files"]) == {f"{TWO}-S1", f"{TWO}-S2"}
    imaging = [item for item in found["items"] if item["slide_id"]]
    slides = {item["slide_id"] for item in imaging}
    assert slides == set(found["files"])
    for slide in slides:
        table = pq.read_table(folder_of(cohort, "extremum_vectors_subtype") / f"{slide}.parquet")
        extrema = table.to_pandas().set_index(["level", "dimension"])
        for item in (item for item in imaging if item["slide_id"] == slide):
            side = item["extremum"]
            row = extrema.loc[(item["level"], item["dimension"])]
            assert (item["x"], item["y"]) == (row[f"{side}_x"], row[f"{side}_y"])
            assert item["value"] == pytest.approx(row[f"{side}imum"])


def test_crops_and_pictures_are_beside_the_document(cohort: Cohort) -> None:
    found = json.loads(cohort.mm("evidence", "tiny", "--patient", TWO, "--json"))[0]
    crops = [instance["crop"] for instance in found["instances"] if instance["crop"]]
    folder = folder_of(cohort, "evidence_subtype")
    assert {name.partition(".")[0] for name in crops} == set(found["files"])
    for instance in found["instances"]:
        if instance["crop"]:
            edge = min(instance["size0"], 1024)
            assert Image.open(folder / instance["crop"]).size == (edge, edge)
    for slide in found["files"]:
        shapes = json.loads((folder / f"{slide}.geojson").read_text())["features"]
        here = [i for i in found["instances"] if i["slide_id"] == slide]
        assert len(shapes) == len(here)
        assert Image.open(folder / f"{slide}.png").size == (640, 640)


def test_the_table_for_people_and_patients_without_slides(cohort: Cohort) -> None:
    shown = cohort.mm("evidence", "tiny", "--patient", TWO, "--top", "5")
    assert "tiny.subtype.heec" in shown
    assert "seen in training" in shown
    assert f"{TWO}-S1.json" in shown
    other = json.loads(cohort.mm("evidence", "tiny", "--patient", "P020", "--json"))[0]
    assert not other["instances"]
    assert not other["files"]
    kinds = {item["kind"] for item in other["items"] if item["value"] is not None}
    assert kinds <= {"omics", "clinical"}
    assert "omics" in kinds
    assert "no patient" in cohort.mm("evidence", "tiny", "--patient", "nobody", expect=1)
    assert "no task" in cohort.mm("evidence", "tiny", "--patient", TWO, "--task", "other", expect=1)


def test_lineage_leads_from_evidence_to_model_and_slide(cohort: Cohort) -> None:
    tree = cohort.mm("lineage", f"tiny/evidence_subtype/{TWO}-S1", "--full")
    for asset in ("heec_subtype", "extremum_vectors_subtype", "slide", "omics"):
        assert asset in tree
    again = cohort.mm("materialize", "tiny", "--select", "evidence_subtype")
    assert "made" not in again
