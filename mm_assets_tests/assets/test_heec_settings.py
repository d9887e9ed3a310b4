"""Settings of HEEC found by tuning jobs of the local SageMaker server."""

import json
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest
from typer.testing import CliRunner

from deploy.local.sagemaker.server import SageMaker
from mm_assets.assets.stage import Workspace
from mm_assets.resources.receipts import Receipt
from mm_assets.resources.store import ArtefactRef
from mm_assets_tests.cohorts import Cohort, make_cohort
from mm_assets_tests.sagemaker import SURVIVAL, keys, tables_only

UPSTREAM = ["clinical", "omics", "splits_survival", "filtered_omics_survival"]
STAGE = "heec_settings_survival"
HEEC = {"tuning": {"trials": 6, "parallel": 2, "backend": "sagemaker"}}


@pytest.fixture
def yaml(tmp_path: Path) -> Path:
    """A cohort of few folds and variants, with searches of six trials."""
    return tables_only(
        tmp_path / "tiny",
        clinical={"table": "clinical.csv", "covariates": []},
        evaluation={"folds": 2, "bootstrap": 100},
        heec=HEEC,
        compute={STAGE: {"hours": 0.5}},
        prices={"ml.m5.large": 2.0},
    )


def planned(yaml: Path) -> dict[str, object]:
    """What `mm materialize --plan` says of the stage."""
    from mm_assets.cli import app

    command = ["materialize", str(yaml), "--plan", "--json", "--select", STAGE]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.output)
    assert row.pop("stage") == STAGE
    return dict(row)


def test_the_plan_says_what_searches_take(home: Path, yaml: Path) -> None:
    from mm_assets.assets.heec_inputs import heec_inputs
    from mm_assets.cli import walk, workspace
    from mm_assets.models.heec_folds import searches

    row = {"slides": None, "trials": None, "where": "ml.m5.large", "hours": None, "cost": None}
    assert planned(yaml) == row
    space = workspace(str(yaml))
    assert walk(space, UPSTREAM) == {}
    job = job_of(space)
    read = heec_inputs(job, space.config.tasks[0])
    trials = 6 * len(searches(read.blocks, read.splits, read.variants, read.parameters))
    assert planned(yaml) == row | {"trials": trials, "hours": trials / 2, "cost": float(trials)}

    known = {"trials": 8, "failed_trials": 2}
    outdated = replace(job.provenance[STAGE], code_version="0")
    space.receipts.write(
        Receipt("tiny", STAGE, "cohort", "done", outdated, metadata=known, seconds=3600.0)
    )
    hours = trials / 10
    assert planned(yaml) == row | {"trials": trials, "hours": hours, "cost": round(2 * hours, 2)}


def test_trials_are_counted_before_slides_are_done(home: Path, tmp_path: Path) -> None:
    from mm_assets.cli import walk, workspace

    cohort = {"clinical": {"table": "clinical.csv", "covariates": []}, "nuclei": {}, "heec": HEEC}
    yaml = make_cohort(tmp_path / "tiny", 36, slides=1, tasks=[SURVIVAL], **cohort)
    assert walk(workspace(str(yaml)), UPSTREAM) == {}
    # The model, its imaging selected or not, its omics, and both without expression.
    assert planned(yaml)["trials"] == 6 * (2 * 6 + 1)


def test_the_service_cannot_be_left_out(home: Path, yaml: Path) -> None:
    from mm_assets.cli import workspace
    from mm_assets.component import CohortComponent

    yaml.write_text(yaml.read_text().replace("hours: 0.5", "launcher: local"))
    with pytest.raises(
        ValueError, match=rf"compute\.{STAGE}\.launcher: its trials are tuning jobs"
    ):
        CohortComponent(workspace(str(yaml)).config).definitions()


@pytest.mark.stress
@pytest.mark.timeout(1800)
def test_searches_are_found_and_adopted_after_a_kill(
    home: Path, yaml: Path, remote_store: str, sagemaker_settings: SageMaker
) -> None:
    from mm_assets.assets.heec_inputs import heec_inputs
    from mm_assets.assets.heec_settings import best_settings
    from mm_assets.cli import walk, workspace
    from mm_assets.models.heec_folds import judge_search, searches

    space = workspace(str(yaml))
    assert walk(space, UPSTREAM) == {}
    Cohort(yaml, home).killed_materialize(STAGE, when=lambda: sagemaker_settings.training)
    assert walk(space, [STAGE]) == {}
    job = job_of(space)
    read = heec_inputs(job, space.config.tasks[0])
    wanted = searches(read.blocks, read.splits, read.variants, read.parameters)
    assert len(sagemaker_settings.tuning) == len(wanted)
    assert len(sagemaker_settings.training) == 6 * len(wanted)
    assert {job.status for job in sagemaker_settings.training.values()} == {"Completed"}
    assert keys(f"{remote_store}/tiny/_jobs") == []

    table = space.store.read_table(ArtefactRef("tiny", STAGE, "cohort", "parquet"))
    told = metadata()
    assert told["instance"] == "ml.m5.large"
    assert told["seconds"] == pytest.approx(table["seconds"].sum(), abs=0.01)
    assert told["cost"] == pytest.approx(2 / 3600 * table["seconds"].sum(), abs=1e-5)
    assert table.groupby(["model", "repeat", "fold"]).size().eq(6).all()
    best = best_settings(table)
    assert set(best) == set(wanted)
    for search, settings in best.items():
        rows = table.query("model == @search.model and fold == @search.fold")
        assert rows.loc[rows["best"], "gain"].item() == rows["gain"].max()
        gain = judge_search(
            search, settings, read.blocks, read.endpoint, read.splits, read.variants,
            read.parameters, read.sites,
        )  # fmt: skip
        assert gain == pytest.approx(rows["gain"].max(), rel=1e-6)

    assert walk(space, ["heec_survival"]) == {}
    predictor = space.tracking.predictor("tiny.survival.heec")
    assert predictor.trials["trial"].tolist() == [0, 1]
    assert predictor.trials["gain"].iloc[1] == pytest.approx(
        table.query("model == 'heec' and fold == -1")["gain"].max(), rel=1e-6
    )


@pytest.mark.stress
@pytest.mark.timeout(1800)
def test_searches_of_other_inputs_are_stopped(
    home: Path, yaml: Path, remote_store: str, sagemaker_settings: SageMaker
) -> None:
    from mm_assets.cli import walk, workspace

    assert walk(workspace(str(yaml)), UPSTREAM) == {}
    Cohort(yaml, home).killed_materialize(STAGE, when=lambda: sagemaker_settings.training)
    left = list(sagemaker_settings.tuning.values())
    yaml.write_text(yaml.read_text().replace("folds: 2", "folds: 3"))
    assert walk(workspace(str(yaml)), [*UPSTREAM, STAGE]) == {}
    assert {job.status for job in left} == {"Stopped"}
    assert len(sagemaker_settings.tuning) > len(left)
    assert keys(f"{remote_store}/tiny/_jobs") == []


def test_searches_without_a_single_trial_stop_all(
    home: Path,
    yaml: Path,
    remote_store: str,
    sagemaker_settings: SageMaker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mm_assets.cli import walk, workspace

    yaml.write_text(yaml.read_text().replace("trials: 6", "trials: 2"))
    space = workspace(str(yaml))
    assert walk(space, UPSTREAM) == {}
    (table,) = space.store.list("tiny", "omics")
    monkeypatch.setattr("mm_assets.assets.heec_settings.heec_inputs", losing(space, table))
    sagemaker_settings.faults["CreateHyperParameterTuningJob"] += ["ThrottlingException"]
    failures = walk(space, [STAGE])
    assert "No training job succeeded" in failures[STAGE]
    jobs = sagemaker_settings.tuning.values()
    assert {job.status for job in jobs} <= {"Failed", "Stopped"}
    assert keys(f"{remote_store}/tiny/_jobs") == []


def losing(space: Workspace, ref: ArtefactRef):  # type: ignore[no-untyped-def]
    """Inputs of the searches, whose artefact is gone when trials look for it."""
    from mm_assets.assets.heec_inputs import heec_inputs

    def read(job, task):  # type: ignore[no-untyped-def]
        found = heec_inputs(job, task)
        space.store.delete(ref)
        return found

    return read


def test_a_store_that_trials_cannot_reach_is_refused(
    home: Path, yaml: Path, sagemaker_settings: SageMaker
) -> None:
    from mm_assets.cli import walk, workspace

    space = workspace(str(yaml))
    assert walk(space, UPSTREAM) == {}
    assert "MM_STORE" in walk(space, [STAGE])[STAGE]
    assert not sagemaker_settings.tuning


def metadata() -> dict[str, object]:
    """What Dagster knows of the stage's last materialization."""
    from mm_assets.resources.home import dagster_instance

    with dagster_instance() as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey(["tiny", STAGE]))
    assert event is not None
    assert event.asset_materialization is not None
    return {key: value.value for key, value in event.asset_materialization.metadata.items()}


def job_of(space: Workspace):  # type: ignore[no-untyped-def]
    from mm_assets.assets.cohort_level import cohort_provenance, upstream_receipts
    from mm_assets.assets.graph import cohort_stages
    from mm_assets.assets.stage import Job

    (stage,) = (s for s in cohort_stages(space.config) if s.name == STAGE)
    upstream = upstream_receipts(stage, space)  # type: ignore[arg-type]
    provenance = cohort_provenance(stage, space, upstream)  # type: ignore[arg-type]
    return Job(space, "cohort", {STAGE: provenance}, upstream, "")
