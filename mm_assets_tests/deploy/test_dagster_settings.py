"""Dagster's settings for shared deployments, on a real PostgreSQL server."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import boto3
import dagster as dg
import pytest
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.scheduler.instigation import TickStatus
from dagster_postgres import PostgresEventLogStorage

from mm_assets.assets.compute import GPU_POOL
from mm_assets.resources.home import dagster_instance
from mm_assets_tests.conftest import REPOSITORY
from mm_assets_tests.postgres import find_programs, running_postgres


@pytest.fixture
def instance(
    tmp_path: Path, s3_environment: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    """The instance that a machine of the deployment gets."""
    if find_programs() is None:
        pytest.skip("PostgreSQL is not installed")
    shutil.copy(REPOSITORY / "deploy" / "dagster.yaml", tmp_path)
    with running_postgres() as server:
        for name, value in {
            "DAGSTER_HOME": str(tmp_path),
            "DAGSTER_PG_HOST": "127.0.0.1",
            "DAGSTER_PG_PORT": str(server.port),
            "DAGSTER_PG_DATABASE": "dagster",
            "DAGSTER_PG_USERNAME": "dagster",
            "DAGSTER_PG_PASSWORD": "any",
            "MM_LOG_BUCKET": "artefacts",
        }.items():
            monkeypatch.setenv(name, value)
        with dagster_instance() as made:
            yield made


def test_machines_share_what_was_made(instance: dg.DagsterInstance) -> None:
    @dg.asset(pool=GPU_POOL)
    def made() -> dg.MaterializeResult[None]:
        return dg.MaterializeResult(metadata={"slides": 3})

    assert dg.materialize([made], instance=instance).success
    logs = boto3.client("s3").list_objects_v2(Bucket="artefacts", Prefix="compute_logs/")
    assert any(item["Key"].endswith(".err") for item in logs["Contents"])
    # Another machine has nothing but the settings.
    with dg.DagsterInstance.get() as other:
        assert isinstance(other.event_log_storage, PostgresEventLogStorage)
        event = other.get_latest_materialization_event(made.key)
        assert event is not None
        assert event.asset_materialization is not None
        assert event.asset_materialization.metadata["slides"].value == 3
        limits = other.event_log_storage.get_pool_limits()
        assert [(limit.name, limit.limit > 0) for limit in limits] == [(GPU_POOL, True)]


def test_what_breaks_down_is_tried_again_and_history_is_kept(instance: dg.DagsterInstance) -> None:
    assert instance.run_monitoring_enabled
    assert instance.run_retries_enabled
    assert instance.run_retries_max_retries == 3
    assert not instance.run_retries_retry_on_asset_or_op_failure
    kept = instance.get_tick_retention_settings(InstigatorType.SENSOR)
    assert kept[TickStatus.SUCCESS] == -1
    assert kept[TickStatus.SKIPPED] == 7
