"""A tiny cohort from YAML to an evaluated, registered model, through the command line."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import dagster as dg
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pyarrow import feather

from mm_assets.explain.document import EvidenceDocument
from mm_assets.models.extremum import of_fold
from mm_assets_tests.cohorts import (
    Cohort,
    make_cohort,
    paint_slide,
    quarantine_list,
    slide_name,
    truncate,
)

PATIENTS, SLIDES = 32, 12
TRUNCATED, BLANK, TWO = "P003", "P007", "P001"  # TWO has two slides
GOOD = SLIDES - 2 + 1


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cohort]:
    folder = tmp_path_factory.mktemp("end_to_end")
    yaml = make_cohort(folder / "cohorts" / "tiny", PATIENTS, slides=SLIDES)
    slides = yaml.parent / "slides"
    truncate(slides / slide_name(TRUNCATED))
    _blank(slides / slide_name(BLANK))
    paint_slide(slides / f"{TWO}-S2.tiff", seed=99)
    home = folder / "mm"
    home.mkdir()
    made = Cohort(yaml, home)
    before = {key: os.environ.get(key) for key in ("MM_HOME", "MM_COHORTS", "DAGSTER_HOME")}
    os.environ.update({key: made.environment[key] for key in before})
    made.mm("materialize", "tiny")
    yield made
    for key, value in before.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value


def _blank(path: Path) -> None:
    from mm_assets.synthetic.tiff import write_pyramid

    write_pyramid(path, np.full((640, 640, 3), 243, np.uint8))


def test_every_good_slide_reaches_the_end(cohort: Cohort) -> None:
    states = {row["asset"]: row for row in json.loads(cohort.mm("status", "tiny", "--json"))}
    for task in ("subtype", "survival"):
        row = states[f"extremum_vectors_{task}"]
        assert (row["done"], row["failed"]) == (GOOD, 0)
        assert states[f"evaluation_{task}"]["done"] == 1
    assert states["cohort_report"]["done"] == 1


def test_bad_slides_are_quarantined_each_with_its_reason(cohort: Cohort) -> None:
    rows = json.loads(cohort.mm("slides", "tiny", "--failed", "--json"))
    reasons = {row["slide"]: row["reason"] for row in rows}
    assert set(reasons) == {f"{TRUNCATED}-S1", f"{BLANK}-S1"}
    assert "no tissue" in reasons[f"{BLANK}-S1"]
    assert "no tissue" not in reasons[f"{TRUNCATED}-S1"]
    assert all(row["state"] == "quarantined" for row in rows)


def test_nothing_asks_for_bad_slides_any_more(cohort: Cohort) -> None:
    """Also not the daemon that the web UI starts: they are no partitions, and listed."""
    from mm_assets.resources.home import dagster_instance

    bad = {f"{TRUNCATED}-S1", f"{BLANK}-S1"}
    with dagster_instance() as instance:
        present = instance.get_dynamic_partitions("tiny_slides")
        listed = quarantine_list(instance)
    assert len(present) == GOOD
    assert bad.isdisjoint(present)
    assert set(listed) == bad


def test_results_carry_interval_protocol_and_weights_stamp(cohort: Cohort) -> None:
    rows = json.loads(cohort.mm("results", "tiny", "--json"))
    found = {(row["task"], row["model"], row["metric"]) for row in rows}
    assert ("survival", "heec", "c_index") in found
    assert ("survival", "clinical_cox", "c_index") in found
    assert ("subtype", "heec", "auc") in found
    for row in rows:
        if row["metric"] in ("c_index", "auc"):
            assert row["low"] <= row["value"] <= row["high"]
            assert "out-of-fold" in row["protocol"]
            assert "random:0" in row["weights"]


def test_planted_gene_is_found(cohort: Cohort) -> None:
    rows = json.loads(cohort.mm("results", "tiny", "--task", "survival", "--json"))
    omics = next(r for r in rows if (r["model"], r["metric"]) == ("heec_omics", "c_index"))
    assert omics["value"] > 0.6


@pytest.mark.parametrize("task", ["subtype", "survival"])
def test_tile_scorers_are_stored_for_every_fold_and_for_the_final_model(
    cohort: Cohort, task: str
) -> None:
    from mm_assets.models.tile_scorers import load_tile_scorers

    scorers = load_tile_scorers(cohort.home / f"store/tiny/tile_scorer_{task}/cohort.npz")
    assert set(scorers) == {(0, 0), (0, 1), (-1, -1)}
    table = feather.read_table(cohort.home / "store/tiny/tile_embeddings/P000-S1.arrow")
    tiles = np.stack(table["embedding"].to_pandas().to_numpy())
    for scorer in scorers.values():
        assert scorer.method == "nnpu"
        assert 1 <= scorer.keep(tiles).sum() <= len(tiles)


def test_second_run_computes_nothing(cohort: Cohort) -> None:
    from mm_assets.resources.home import dagster_instance

    with dagster_instance() as instance:
        runs = instance.get_runs_count()
    before = {p: p.stat().st_mtime_ns for p in (cohort.home / "store").rglob("*") if p.is_file()}
    cohort.mm("materialize", "tiny")
    after = {p: p.stat().st_mtime_ns for p in (cohort.home / "store").rglob("*") if p.is_file()}
    assert after == before
    with dagster_instance() as instance:
        assert instance.get_runs_count() == runs


def test_registered_model_predicts_the_same_in_a_fresh_process(cohort: Cohort) -> None:
    script = """
import sys, json, mlflow, warnings
from mm_assets.resources.tracking import Tracking
tracking = Tracking()
model = tracking.load("tiny.survival.heec")
example = model.input_example
print(json.dumps(model.predict(example).to_numpy().tolist()))
"""
    outputs = [
        subprocess.run(
            [sys.executable, "-c", script],
            env=cohort.environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()[-1]
        for _ in range(2)
    ]
    first, second = (np.array(json.loads(text)) for text in outputs)
    assert first.shape[0] > 0
    np.testing.assert_allclose(first, second, rtol=0, atol=1e-6)


def test_lineage_reaches_slide_digests(cohort: Cohort) -> None:
    tree = cohort.mm("lineage", "tiny.survival.heec", "--full")
    record = json.loads((cohort.home / "store/tiny/slide/P000-S1.json").read_text())
    stored = cohort.mm("lineage", "tiny/slide/P000-S1", "--full")
    assert "P000-S1" in tree
    assert "extremum_vectors_survival" in tree
    assert "weights" in tree or "random:0" in tree
    assert len(record["sha256"]) == 64
    assert "P000-S1" in stored


def test_report_is_one_readable_file(cohort: Cohort) -> None:
    html = (cohort.home / "store/tiny/cohort_report/cohort.html").read_text()
    assert "heec" in html
    assert "champion" in html
    assert f"{TRUNCATED}-S1" in html
    assert 'src="http' not in html
    assert str(cohort.yaml.parent) not in html


def test_no_identifying_text_leaves_the_slide(cohort: Cohort) -> None:
    facts = json.loads((cohort.home / "store/tiny/slide/P000-S1.json").read_text())
    assert set(facts) >= {"vendor", "width", "height", "mpp", "sha256", "patient_id"}
    assert not any("path" in key or "comment" in key for key in facts)


def test_unknown_asset_is_named(cohort: Cohort) -> None:
    message = cohort.mm("materialize", "tiny", "--select", "nonsense", expect=1)
    assert "nonsense" in message
    assert "extremum_vectors_survival" in message


def folder_of(cohort: Cohort, asset: str) -> Path:
    return cohort.home / "store" / "tiny" / asset


def test_every_slide_has_evidence_that_names_its_model(cohort: Cohort) -> None:
    documents = {
        path.stem: EvidenceDocument.from_json(path.read_bytes())
        for path in folder_of(cohort, "evidence_subtype").glob("*.json")
    }
    assert len(documents) == GOOD
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
        top = max(document.prediction[f"probability_{name}"] for name in ("IDC", "ILC"))
        assert top == pytest.approx(odds / (1 + odds), abs=1e-6)


def test_places_are_those_of_the_stored_extrema(cohort: Cohort) -> None:
    found = json.loads(
        cohort.mm("evidence", "tiny", "--patient", TWO, "--task", "subtype", "--json")
    )[0]
    assert set(found["files"]) == {f"{TWO}-S1", f"{TWO}-S2"}
    imaging = [item for item in found["items"] if item["slide_id"]]
    slides = {item["slide_id"] for item in imaging}
    assert slides == set(found["files"])
    for slide in slides:
        table = pq.read_table(folder_of(cohort, "extremum_vectors_subtype") / f"{slide}.parquet")
        extrema = of_fold(table.to_pandas()).set_index(["level", "dimension"])
        for item in (item for item in imaging if item["slide_id"] == slide):
            side = item["extremum"]
            row = extrema.loc[(item["level"], item["dimension"])]
            assert (item["x"], item["y"]) == (row[f"{side}_x"], row[f"{side}_y"])
            assert item["value"] == pytest.approx(row[f"{side}imum"])


def test_crops_and_pictures_are_beside_the_document(cohort: Cohort) -> None:
    found = json.loads(
        cohort.mm("evidence", "tiny", "--patient", TWO, "--task", "subtype", "--json")
    )[0]
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


def test_the_ui_shows_places_and_a_small_picture(cohort: Cohort) -> None:
    from mm_assets.resources.home import dagster_instance

    records = dg.AssetRecordsFilter(
        dg.AssetKey(["tiny", "evidence_subtype"]), asset_partitions=[f"{TWO}-S1"]
    )
    with dagster_instance() as instance:
        event = instance.fetch_materializations(records, limit=1).records[0]
    assert event.asset_materialization is not None
    metadata = event.asset_materialization.metadata
    picture, places = metadata["picture"], metadata["places"]
    assert isinstance(picture, dg.MarkdownMetadataValue)
    assert "data:image/png;base64," in (picture.md_str or "")
    assert len(picture.md_str or "") < 50_000
    assert isinstance(places, dg.TableMetadataValue)
    assert {record.data["slide"] for record in places.records} == {f"{TWO}-S1"}


def test_the_table_for_people_and_patients_without_slides(cohort: Cohort) -> None:
    shown = " ".join(cohort.mm("evidence", "tiny", "--patient", TWO, "--top", "5").split())
    assert "tiny.subtype.heec version 1, seen in training" in shown
    assert "tiny.survival.heec version 1, seen in training" in shown
    assert f"evidence_survival/{TWO}-S1.json" in shown
    subtype = ("--task", "subtype")
    other = json.loads(cohort.mm("evidence", "tiny", "--patient", "P020", "--json", *subtype))[0]
    assert not other["instances"]
    assert not other["files"]
    kinds = {item["kind"] for item in other["items"] if item["value"] is not None}
    assert kinds <= {"omics", "clinical"}
    assert "omics" in kinds
    assert "no patient" in cohort.mm("evidence", "tiny", "--patient", "nobody", *subtype, expect=1)
    assert "no task" in cohort.mm("evidence", "tiny", "--patient", TWO, "--task", "other", expect=1)


def test_lineage_leads_from_evidence_to_model_and_slide(cohort: Cohort) -> None:
    tree = cohort.mm("lineage", f"tiny/evidence_subtype/{TWO}-S1", "--full")
    for asset in ("heec_subtype", "extremum_vectors_subtype", "slide", "omics"):
        assert asset in tree


def test_evidence_follows_the_extrema_of_the_patients_other_slides(cohort: Cohort) -> None:
    from mm_assets.assets.graph import cohort_stages
    from mm_assets.assets.partitions import SlideRun
    from mm_assets.cli import workspace

    space = workspace("tiny")
    stage = next(s for s in cohort_stages(space.config) if s.name == "evidence_subtype")
    slides = [slide_name("P000").removesuffix(".tiff"), f"{TWO}-S1", f"{TWO}-S2"]

    def pending() -> list[str]:
        return SlideRun(stage, space, stage.outputs, "").pending(slides)

    assert pending() == []
    known = space.receipts.read("tiny", "extremum_vectors_subtype", f"{TWO}-S2")
    assert known is not None
    space.receipts.write(replace(known, outputs={"parquet": "sha256:other"}))
    try:
        assert pending() == slides[1:]
    finally:
        space.receipts.write(known)
