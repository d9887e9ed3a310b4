"""A tiny cohort from YAML to an evaluated, registered model, through the command line."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pyarrow import feather

from mm_assets_tests.cohorts import Cohort, make_cohort, slide_name, truncate

PATIENTS, SLIDES = 32, 12
TRUNCATED, BLANK = "P003", "P007"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cohort]:
    folder = tmp_path_factory.mktemp("end_to_end")
    yaml = make_cohort(folder / "cohorts" / "tiny", PATIENTS, slides=SLIDES)
    slides = yaml.parent / "slides"
    truncate(slides / slide_name(TRUNCATED))
    _blank(slides / slide_name(BLANK))
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
        assert (row["done"], row["failed"]) == (SLIDES - 2, 0)
        assert states[f"evaluation_{task}"]["done"] == 1
    assert states["cohort_report"]["done"] == 1


def test_bad_slides_are_quarantined_each_with_its_reason(cohort: Cohort) -> None:
    rows = json.loads(cohort.mm("slides", "tiny", "--failed", "--json"))
    reasons = {row["slide"]: row["reason"] for row in rows}
    assert set(reasons) == {f"{TRUNCATED}-S1", f"{BLANK}-S1"}
    assert "no tissue" in reasons[f"{BLANK}-S1"]
    assert "no tissue" not in reasons[f"{TRUNCATED}-S1"]
    assert all(row["state"] == "quarantined" for row in rows)


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
