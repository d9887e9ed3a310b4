"""Where everything is stored on this machine, and the Dagster instance that lives there."""

import os
from importlib.resources import files
from pathlib import Path
from weakref import WeakSet

import dagster as dg

from mm_assets.cohort.folders import mm_home
from mm_assets.resources.store import ArtefactStore
from mm_assets.resources.tracking import Tracking

_keeping: WeakSet[dg.DagsterInstance] = WeakSet()


def default_resources() -> dict[str, dg.ConfigurableResource]:
    """The store and the tracker: under `MM_HOME`, or where `MM_STORE` and MLflow's variable say."""
    return {"store": default_store(), "tracking": Tracking()}


def default_store() -> ArtefactStore:
    """Artefact store at `MM_STORE` (folder or s3://), by default under `MM_HOME`."""
    return ArtefactStore(uri=os.environ.get("MM_STORE", str(mm_home() / "store")))


def dagster_home() -> Path:
    """Dagster's home, made ready: settings written on first use and then left to their owner."""
    home = Path(os.environ.get("DAGSTER_HOME", mm_home() / "dagster"))
    home.mkdir(parents=True, exist_ok=True)
    settings = home / "dagster.yaml"
    if not settings.exists():
        template = files("mm_assets.resources").joinpath("dagster.yaml").read_text()
        draft = settings.with_suffix(f".{os.getpid()}")
        draft.write_text(template)
        draft.replace(settings)
    os.environ["DAGSTER_HOME"] = str(home)
    # Measured to halve the cost of large backfills.
    os.environ.setdefault("DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS", "true")
    os.environ.setdefault("DAGSTER_EVENT_BATCH_SIZE", "100")
    return home


def dagster_instance() -> dg.DagsterInstance:
    """The instance that the web UI, the daemon and the command line share."""
    from mm_assets.assets.compute import GPU_POOL, gpu_count

    dagster_home()
    instance = dg.DagsterInstance.get()
    keep_connections(instance)
    # One run at a time where there is no device: two would only share the same cores.
    wanted = max(1, gpu_count())
    limits = {limit.name: limit.limit for limit in instance.event_log_storage.get_pool_limits()}
    if limits.get(GPU_POOL) != wanted:
        instance.event_log_storage.set_concurrency_slots(GPU_POOL, wanted)
    return instance


def keep_connections(instance: dg.DagsterInstance) -> None:
    """Let an instance keep its database connections, once.

    Dagster's storage on PostgreSQL else opens a new one for every statement: measured four for
    each event, which took most of the time of both sides.
    """
    if instance not in _keeping:
        instance.optimize_for_webserver(statement_timeout=0, pool_recycle=3600, max_overflow=20)
        _keeping.add(instance)
