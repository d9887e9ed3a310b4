"""MLflow: one run and one registered version per trained model, tied to what made it.

A model is registered as ``<cohort>.<task>.<model>``. Its run holds the metrics per fold and
overall, the data version of every upstream artefact, the lineage tree and the report; tags lead
back to the Dagster run and asset. Logging the same model twice gives the same version.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import dagster as dg
from pydantic import Field

from mm_assets.cohort.folders import mm_home
from mm_assets.resources.mlflow_log import log_files, log_metrics, log_params, log_trials
from mm_assets.resources.mlflow_quiet import TRACKING_URI, hushed, quiet_mlflow
from mm_assets.resources.model_run import (
    FINGERPRINT_TAG,
    ModelRun,
    RunFacts,
    curve_metrics,
    fold_metrics,
    overall_metrics,
)
from mm_assets.resources.served_model import log_served

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.pyfunc import PyFuncModel

CHAMPION, CHALLENGER = "champion", "challenger"
MIRROR = "MM_SAGEMAKER_REGISTRY"


@dataclass(frozen=True)
class RegisteredModel:
    """A version in the registry, with its page in the MLflow UI."""

    name: str
    version: int
    run_id: str
    url: str
    aliases: tuple[str, ...]


class Tracking(dg.ConfigurableResource):
    """MLflow tracking server, or by default an SQLite database under ``MM_HOME``."""

    tracking_uri: str = Field(
        default="",
        description="MLflow tracking URI; empty: MLFLOW_TRACKING_URI, else mlflow/mlflow.db under "
        "MM_HOME.",
    )
    artifact_root: str = Field(
        default="",
        description="Folder or s3:// prefix of MLflow's files; empty: beside the SQLite database, "
        "or what the tracking server says.",
    )

    @property
    def uri(self) -> str:
        """Tracking URI in force."""
        default = f"sqlite:///{mm_home() / 'mlflow' / 'mlflow.db'}"
        return self.tracking_uri or os.environ.get(TRACKING_URI) or default

    @property
    def files(self) -> str:
        """Where MLflow's files lie; empty where the tracking server decides."""
        database = self._database()
        return self.artifact_root or (str(database.parent / "artifacts") if database else "")

    def log_model(self, run: ModelRun) -> RegisteredModel:
        """Log a run and register its model, unless a version with its fingerprint exists.

        The first version becomes ``champion``, later ones ``challenger``.
        """
        client = self._client()
        with self._exclusive():
            version = self._version_with(client, run.name, run.fingerprint())
            if version is None:
                version = self._register(client, run)
            self._set_alias(client, version)
        self.mirror(version.name)
        return _registered(client.get_model_version(version.name, version.version))

    def register_weights(
        self, facts: RunFacts, run_id: str, file: str, weights: bytes
    ) -> RegisteredModel:
        """Register a state dict as a file of the run that trained it; as `log_model` otherwise."""
        client = self._client()
        with self._exclusive():
            version = self._version_with(client, facts.name, facts.fingerprint())
            if version is None:
                log_params(client, run_id, facts)
                log_files(client, run_id, {file: weights, **facts.files()})
                _ensure_registered_model(client, facts.name)
                source = f"{client.get_run(run_id).info.artifact_uri}/{file}"
                version = client.create_model_version(
                    facts.name, source=source, run_id=run_id, tags=facts.tags()
                )
            self._set_alias(client, version)
        self.mirror(version.name)
        return _registered(client.get_model_version(version.name, version.version))

    @contextlib.contextmanager
    def live_run(self, facts: RunFacts) -> Iterator[str]:
        """Id of a run that is open while its model is trained; `log_model` can complete it.

        Runs that a killed attempt at the same model left open are closed first.
        """
        client = self._client()
        with self._exclusive():
            run_id = self._open(client, facts)
        status = "FAILED"
        try:
            yield run_id
            status = "FINISHED"
        finally:
            with self._exclusive():
                client.set_terminated(run_id, status)

    def log_curves(self, run_id: str, curves: pd.DataFrame) -> None:
        """Add points to the learning curves of a run: columns curve, epoch, value."""
        client = self._client()
        with self._exclusive():
            log_metrics(client, run_id, curve_metrics(curves))

    def attach(
        self,
        run_id: str,
        model: str,
        metrics: pd.DataFrame,
        per_fold: pd.DataFrame,
        files: Mapping[str, bytes],
    ) -> None:
        """Add the evaluation to the run of a model.

        Parameters
        ----------
        model
            Metrics of this model get plain keys, those of its ablations ``<ablation>/<metric>``.
        metrics
            Columns model, metric, value, low, high.
        per_fold
            Columns model, repeat, fold, metric, value; logged as ``<metric>_fold``, a step a fold.
        files
            Path in the run's artefacts -> content.
        """
        client = self._client()
        tables = {"metrics.csv": metrics, "folds.csv": per_fold}
        texts = {path: table.to_csv(index=False).encode() for path, table in tables.items()}
        with self._exclusive():
            log_metrics(client, run_id, overall_metrics(model, metrics))
            log_metrics(client, run_id, fold_metrics(model, per_fold))
            log_files(client, run_id, {**texts, **files})

    def link(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags on a run."""
        client = self._client()
        with self._exclusive():
            for key, value in tags.items():
                client.set_tag(run_id, key, value)

    def note(self, model: RegisteredModel, facts: Mapping[str, str]) -> None:
        """Set tags on a registered version."""
        client = self._client()
        with self._exclusive():
            _set_tags(client, model, facts)
        self.mirror(model.name)

    def describe(self, model: RegisteredModel, text: str) -> None:
        """Set the description of a registered version, Markdown, as its page shows it."""
        client = self._client()
        with self._exclusive():
            client.update_model_version(model.name, str(model.version), description=text)

    def notes(self, model: RegisteredModel) -> dict[str, str]:
        """Tags of a registered version."""
        return dict(self._client().get_model_version(model.name, str(model.version)).tags)

    def promote(self, model: RegisteredModel, facts: Mapping[str, str]) -> RegisteredModel:
        """Make a version the champion; `facts` are tags that say why, set before."""
        client = self._client()
        with self._exclusive():
            _set_tags(client, model, facts)
            aliases = client.get_registered_model(model.name).aliases
            client.set_registered_model_alias(model.name, CHAMPION, str(model.version))
            if str(aliases.get(CHALLENGER)) == str(model.version):
                client.delete_registered_model_alias(model.name, CHALLENGER)
        self.mirror(model.name)
        return self.version(model.name, model.version)

    def read_file(self, run_id: str, path: str) -> bytes | None:
        """A file of a run, None where it has none of that name."""
        from mlflow.exceptions import MlflowException

        artifacts = quiet_mlflow(self.uri).artifacts
        with tempfile.TemporaryDirectory() as folder, hushed():
            try:
                found = artifacts.download_artifacts(
                    run_id=run_id, artifact_path=path, dst_path=folder, tracking_uri=self.uri
                )
            except (MlflowException, OSError):
                return None
            return Path(found).read_bytes()

    def version(self, name: str, version_or_alias: int | str = CHAMPION) -> RegisteredModel:
        """Version of a registered model by number or alias.

        Raises
        ------
        LookupError
            When there is no such model, version or alias.
        """
        from mlflow.exceptions import MlflowException

        client = self._client()
        try:
            if str(version_or_alias).isdigit():
                return _registered(client.get_model_version(name, str(version_or_alias)))
            return _registered(client.get_model_version_by_alias(name, str(version_or_alias)))
        except MlflowException as error:
            known = ", ".join(sorted(m.name for m in client.search_registered_models())) or "none"
            raise LookupError(
                f"model {name!r} has no version or alias {version_or_alias!r} in {self.uri}; "
                f"registered models: {known}"
            ) from error

    def newest(self, name: str) -> int:
        """Number of the latest version of a registered model."""
        (latest,) = self._client().search_model_versions(
            f"name = '{name}'", max_results=1, order_by=["version_number DESC"]
        )
        return int(latest.version)

    def load(self, name: str, version_or_alias: int | str = CHAMPION) -> PyFuncModel:
        """Registered model, ready to `predict` a DataFrame."""
        found = self.version(name, version_or_alias)
        with hushed():
            return quiet_mlflow(self.uri).pyfunc.load_model(f"models:/{found.name}/{found.version}")

    def predictor(self, name: str, version_or_alias: int | str = CHAMPION) -> Any:
        """The predictor that was registered, as it was pickled."""
        return self.load(name, version_or_alias).unwrap_python_model().predictor

    def lineage(self, model: RegisteredModel) -> dict[str, Any]:
        """Lineage as logged with a version."""
        artifacts = quiet_mlflow(self.uri).artifacts
        return artifacts.load_dict(f"runs:/{model.run_id}/lineage/lineage.json")

    def mirror(self, model: str) -> None:
        """Have SageMaker's model packages follow a registered model, where the environment says so.

        All that registers or decides here does it; it is for models that a job has registered.
        """
        if not os.environ.get(MIRROR):
            return
        try:
            from mm_assets.resources.model_packages import sync

            sync(self._client(), model)
        except Exception as error:  # what took hours to train is registered, and must stay so
            dg.get_dagster_logger().warning(
                f"{model}: its SageMaker model packages do not follow MLflow: "
                f"{type(error).__name__}: {error}. The model is registered and nothing is lost; "
                "once the cause is removed, its next registration or promotion repairs them."
            )

    def _client(self) -> MlflowClient:
        if (database := self._database()) is not None:
            database.parent.mkdir(parents=True, exist_ok=True)
        # The first client creates or migrates the tables, which two processes cannot do at once.
        with self._exclusive():
            return quiet_mlflow(self.uri).MlflowClient()

    def _database(self) -> Path | None:
        if not self.uri.startswith("sqlite:///"):
            return None
        return Path(self.uri.removeprefix("sqlite:///").split("?")[0])

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One writer at a time on SQLite; the kernel frees the lock when a process dies."""
        database = self._database()
        if database is None:
            yield
            return
        with open(f"{database}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _experiment(self, client: MlflowClient, name: str) -> str:
        from mlflow.exceptions import MlflowException

        for _ in range(2):
            experiment = client.get_experiment_by_name(name)
            if experiment is not None:
                if experiment.lifecycle_stage == "deleted":  # somebody deleted it in the UI
                    client.restore_experiment(experiment.experiment_id)
                return str(experiment.experiment_id)
            with contextlib.suppress(MlflowException):  # another process was faster: look again
                return str(client.create_experiment(name, self._artifact_location(name)))
        raise RuntimeError(f"MLflow experiment {name!r} cannot be created in {self.uri}")

    def _artifact_location(self, experiment: str) -> str | None:
        return f"{self.files.rstrip('/')}/{experiment}" if self.files else None

    def _version_with(
        self, client: MlflowClient, name: str, fingerprint: str
    ) -> ModelVersion | None:
        found = client.search_model_versions(
            f"name = '{name}' and tags.`{FINGERPRINT_TAG}` = '{fingerprint}'"
        )
        return found[0] if found else None

    def _register(self, client: MlflowClient, run: ModelRun) -> ModelVersion:
        run_id = run.live or self._open(client, run)
        mlflow = quiet_mlflow(self.uri)
        with mlflow.start_run(run_id=run_id):
            log_params(client, run_id, run)
            log_files(client, run_id, run.files())
            model_uri, model_id = log_served(mlflow, run)
            log_trials(client, client.get_run(run_id).info.experiment_id, run_id, run)
        _ensure_registered_model(client, run.name)
        return client.create_model_version(
            run.name, source=model_uri, run_id=run_id, tags=run.tags(), model_id=model_id
        )

    def _open(self, client: MlflowClient, facts: RunFacts) -> str:
        experiment = self._experiment(client, f"{facts.cohort}.{facts.task}")
        self._end_abandoned(client, experiment, facts.fingerprint())
        run = client.create_run(experiment, run_name=facts.model, tags=facts.tags())
        return str(run.info.run_id)

    def _end_abandoned(self, client: MlflowClient, experiment: str, fingerprint: str) -> None:
        """Close the runs that a killed attempt at the same model left open."""
        left = client.search_runs(
            [experiment],
            f"tags.`{FINGERPRINT_TAG}` = '{fingerprint}' and attributes.status = 'RUNNING'",
        )
        for run in left:
            client.set_terminated(run.info.run_id, "KILLED")

    def _set_alias(self, client: MlflowClient, version: ModelVersion) -> None:
        aliases = client.get_registered_model(version.name).aliases
        if CHAMPION not in aliases:
            client.set_registered_model_alias(version.name, CHAMPION, version.version)
        elif int(version.version) > int(aliases.get(CHALLENGER, aliases[CHAMPION])):
            client.set_registered_model_alias(version.name, CHALLENGER, version.version)


def _set_tags(client: MlflowClient, model: RegisteredModel, tags: Mapping[str, str]) -> None:
    for key, value in tags.items():
        client.set_model_version_tag(model.name, str(model.version), key, value)


def _ensure_registered_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _registered(version: ModelVersion) -> RegisteredModel:
    base = os.environ.get("MM_MLFLOW_URL", "http://127.0.0.1:5000").rstrip("/")
    url = f"{base}/#/models/{quote(version.name)}/versions/{version.version}"
    return RegisteredModel(
        version.name, int(version.version), str(version.run_id), url, tuple(version.aliases)
    )
