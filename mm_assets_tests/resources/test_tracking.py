import json
import os
import subprocess
import sys
from multiprocessing.context import ForkServerContext
from pathlib import Path

import boto3
import numpy as np
import pandas as pd
import pytest

from mm_assets.resources.model_run import FINGERPRINT_TAG
from mm_assets.resources.tracking import Tracking
from mm_assets_tests.resources.models import example, model_run, register_versions

REPOSITORY = Path(__file__).resolve().parents[2]
METRICS = pd.DataFrame(
    {
        "model": "heec",
        "metric": ["c_index", "uno"],
        "value": [0.66, 0.6],
        "low": [0.6, np.nan],
        "high": [0.7, 0.65],
    }
)
PER_FOLD = pd.DataFrame(
    {
        "model": ["heec", "heec_omics"] * 4,
        "repeat": [0, 0, 0, 0, 1, 1, 1, 1],
        "fold": [0, 0, 1, 1] * 2,
        "metric": "c_index",
        "value": [0.1, 0.5, 0.2, 0.6, 0.3, 0.7, 0.4, np.nan],
    }
)

FRESH_PROCESS = """
import json, sys
import mlflow, pandas
model = mlflow.pyfunc.load_model("models:/demo.survival.fresh@champion")
frame = pandas.read_json(sys.argv[1], dtype="float32")
risk = model.predict(frame)["risk"]
inputs = model.metadata.signature.inputs.input_names()
print(json.dumps({"risk": list(risk), "inputs": inputs, "dagster": "dagster" in sys.modules}))
"""


def test_loads_in_a_fresh_process_and_predicts_the_same(tracking: Tracking, tmp_path: Path):
    run = model_run("fresh")
    tracking.log_model(run)
    (tmp_path / "frame.json").write_text(example().to_json(double_precision=15))
    done = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS, str(tmp_path / "frame.json")],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "MLFLOW_TRACKING_URI": tracking.uri, "MLFLOW_DISABLE_TELEMETRY": "true"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert np.allclose(found["risk"], run.predictor.predict(example())["risk"], rtol=0, atol=1e-6)
    assert found["inputs"] == list(example().columns)
    assert found["dagster"] is False


def test_everything_is_logged(tracking: Tracking):
    run = model_run("heec", lineage={"root": "x"})
    registered = tracking.log_model(run)
    tracking.attach(registered.run_id, "heec", METRICS, PER_FOLD, {"report.html": b"<p>r</p>"})
    client = tracking._client()
    logged = client.get_run(registered.run_id)
    assert logged.info.status == "FINISHED"
    assert logged.data.params == {
        "learning_rate": "0.1",
        "objective": "cox",
        "levels": '["tile", "region"]',
    }
    metrics = {k: v for k, v in logged.data.metrics.items() if "fold" not in k}
    assert metrics == {
        "c_index": 0.66,
        "c_index_low": 0.6,
        "c_index_high": 0.7,
        "uno": 0.6,
        "uno_high": 0.65,
    }
    folds = {
        name: [(m.step, m.value) for m in client.get_metric_history(registered.run_id, name)]
        for name in ("c_index_fold", "heec_omics/c_index_fold")
    }
    assert folds == {
        "c_index_fold": [(0, 0.1), (1, 0.2), (2, 0.3), (3, 0.4)],
        "heec_omics/c_index_fold": [(0, 0.5), (1, 0.6), (2, 0.7)],
    }
    tags = {k: v for k, v in logged.data.tags.items() if not k.startswith("mlflow.")}
    version = client.get_model_version(run.name, str(registered.version))
    assert tags == version.tags
    assert tags["dagster.run_id"] == "1f0a"
    assert tags["dagster.asset_url"].endswith(":3000/assets/demo/heec_survival")
    assert tags["mm.weights"] == "resnet50 random:0"
    assert tags["mm.splits"] == "sha256:4"
    assert {"mm.upstream.slide", "mm.upstream.omics"} <= tags.keys()
    assert tracking.lineage(registered) == {"root": "x"}
    inputs = client.download_artifacts(registered.run_id, "lineage/inputs.csv")
    assert pd.read_csv(inputs).to_numpy().tolist() == [
        ["omics", "cohort", "sha256:3"],
        ["slide", "S1", "sha256:1"],
        ["slide", "S2", "sha256:2"],
    ]
    table = pd.read_csv(client.download_artifacts(registered.run_id, "folds.csv"))
    pd.testing.assert_frame_equal(table, PER_FOLD)
    assert registered.url == f"http://127.0.0.1:5000/#/models/{run.name}/versions/1"


def test_trials_of_tuning_are_nested_runs(tracking: Tracking):
    where = {"repeat": [0, 0, -1], "fold": [0, 0, -1], "trial": [0, 1, 0]}
    trials = pd.DataFrame(
        {"model": ["heec", "heec", "heec"], **where}
        | {"gain": [0.1, 0.25, 0.2], "seconds": [1.0, 2.0, 3.0]}
        | {"num_leaves": [4, 7, 4], "omics_features": [600, np.nan, np.nan]}
    )
    run = model_run("tuned", trials=trials)
    client = tracking._client()
    parent = client.get_run(tracking.log_model(run).run_id)

    def nested() -> dict:
        found = client.search_runs(
            [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
        )
        return {child.info.run_name: child for child in found}

    children = nested()
    assert set(children) == {
        "heec fold 0.0 trial 0", "heec fold 0.0 trial 1", "heec fold -1.-1 trial 0"
    }  # fmt: skip
    second = children["heec fold 0.0 trial 1"]
    assert second.info.status == "FINISHED"
    assert second.data.metrics == {"gain": 0.25, "seconds": 2.0}
    assert second.data.params == {
        "model": "heec", "repeat": "0", "fold": "0", "trial": "1", "num_leaves": "7"
    }  # fmt: skip
    table = pd.read_csv(client.download_artifacts(parent.info.run_id, "trials.csv"))
    pd.testing.assert_frame_equal(table, trials)
    # The same model is not logged twice, and neither are its trials.
    tracking.log_model(run)
    assert nested().keys() == children.keys()
    assert len(nested()) == 3


def test_same_model_is_registered_once(tracking: Tracking):
    first = tracking.log_model(model_run("once"))
    assert tracking.log_model(model_run("once")) == first
    others = [
        model_run("once", code_version="2"),
        model_run("once", parameters={"learning_rate": 0.2}),
        model_run("once", upstream={"slide": {"S1": "sha256:other"}}),
        model_run("once", splits_digest="sha256:other"),
    ]
    assert [tracking.log_model(run).version for run in others] == [2, 3, 4, 5]
    assert tracking.version("demo.survival.once") == first
    assert tracking.version("demo.survival.once", "challenger").version == 5
    named = {v: tracking.version("demo.survival.once", v).aliases for v in (1, 3, 5)}
    assert named == {1: ("champion",), 3: (), 5: ("challenger",)}
    assert tracking.log_model(model_run("once", code_version="2")).version == 2
    assert tracking.version("demo.survival.once", "challenger").version == 5


def test_killed_attempt_is_closed(tracking: Tracking):
    client = tracking._client()
    run = model_run("killed")
    experiment = tracking._experiment(client, "demo.survival")
    left = client.create_run(experiment, tags={FINGERPRINT_TAG: run.fingerprint()}).info.run_id
    other = client.create_run(experiment, tags={FINGERPRINT_TAG: "another"}).info.run_id
    registered = tracking.log_model(run)
    states = [client.get_run(r).info.status for r in (left, other, registered.run_id)]
    assert states == ["KILLED", "RUNNING", "FINISHED"]


def test_evaluation_is_attached_later(tracking: Tracking):
    registered = tracking.log_model(model_run("attached"))
    report = {"report/report.html": b"<p>report</p>"}
    tracking.attach(registered.run_id, "heec", METRICS, PER_FOLD, report)
    tracking.link(registered.run_id, {"mm.evaluation": "sha256:9"})
    client = tracking._client()
    logged = client.get_run(registered.run_id)
    assert logged.data.metrics["c_index_low"] == 0.6
    assert logged.data.tags["mm.evaluation"] == "sha256:9"
    found = client.download_artifacts(registered.run_id, "report/report.html")
    assert Path(found).read_bytes() == b"<p>report</p>"


def test_a_model_of_thousands_of_columns_predicts_as_before_it_was_logged(tracking: Tracking):
    registered = tracking.log_model(model_run("wide", columns=5000))
    model = tracking.load(registered.name, registered.version)
    expected = model_run("wide", columns=5000).predictor.predict(example(5000))
    pd.testing.assert_frame_equal(model.predict(example(5000)), expected)


def test_says_nothing(tracking: Tracking, capfd: pytest.CaptureFixture[str]):
    registered = tracking.log_model(model_run("silent"))
    tracking.load(registered.name).predict(example())
    assert capfd.readouterr() == ("", "")


def test_unknown_model_names_the_known(tracking: Tracking):
    tracking.log_model(model_run("known"))
    with pytest.raises(LookupError, match=r"'demo.survival.unknown'.*demo\.survival\.known"):
        tracking.load("demo.survival.unknown")
    with pytest.raises(LookupError, match="'challenger'"):
        tracking.version("demo.survival.known", "challenger")
    with pytest.raises(LookupError, match="77"):
        tracking.version("demo.survival.known", 77)


def test_experiment_deleted_in_the_ui_comes_back(tracking: Tracking):
    client = tracking._client()
    experiment = tracking._experiment(client, "demo.deleted")
    client.delete_experiment(experiment)
    registered = tracking.log_model(model_run("heec", task="deleted"))
    assert client.get_run(registered.run_id).info.experiment_id == experiment


def test_files_on_s3(tracking: Tracking, s3_environment: str):
    elsewhere = Tracking(tracking_uri=tracking.uri, artifact_root="s3://artefacts/mlflow/")
    run = model_run("heec", task="s3", lineage={"root": "x"})
    registered = elsewhere.log_model(run)
    files = boto3.client("s3").list_objects_v2(Bucket="artefacts", Prefix="mlflow/demo.s3/")
    assert any(file["Key"].endswith("/lineage/lineage.json") for file in files["Contents"])
    assert elsewhere.lineage(registered) == {"root": "x"}
    predicted = elsewhere.load(registered.name).predict(example())
    pd.testing.assert_frame_equal(predicted, run.predictor.predict(example()))


def test_place_of_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MM_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert Tracking().uri == f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert Tracking().uri == "http://mlflow:5000"
    assert Tracking(tracking_uri="sqlite:////x.db").uri == "sqlite:////x.db"


def test_two_processes_at_once(processes: ForkServerContext, tracking: Tracking):
    versions = ["a", "b", "c"]
    children = [
        processes.Process(target=register_versions, args=(tracking.uri, order))
        for order in (versions, versions[::-1])
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0, 0]
    client = tracking._client()
    found = client.search_model_versions("name = 'demo.survival.concurrent'")
    assert sorted(v.tags["mm.code_version"] for v in found) == versions
    runs = [client.get_run(v.run_id) for v in found]
    logged = {"c": 0.6, "c_low": 0.5, "c_high": 0.7, "c_fold": 0.6}
    assert [(r.info.status, r.data.metrics) for r in runs] == [("FINISHED", logged)] * 3


def test_a_promoted_version_is_champion_and_says_why(tracking: Tracking) -> None:
    first, second = (tracking.log_model(model_run("promoted", version)) for version in "12")
    assert second.aliases == ("challenger",)
    assert tracking.newest(first.name) == second.version == first.version + 1
    found = tracking.promote(second, {"mm.promotion_reason": "seen on new slides"})
    assert found.aliases == ("champion",)
    assert tracking.version("demo.survival.promoted").version == second.version
    assert tracking.notes(second)["mm.promotion_reason"] == "seen on new slides"
    assert tracking.version(first.name, first.version).aliases == ()


def test_files_of_a_run_are_read_back_and_absent_ones_are_none(tracking: Tracking) -> None:
    made = tracking.log_model(model_run("files"))
    assert json.loads(tracking.read_file(made.run_id, "parameters.json") or b"")
    assert tracking.read_file(made.run_id, "absent.parquet") is None
