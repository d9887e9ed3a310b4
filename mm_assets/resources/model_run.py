"""What MLflow is told of a trained model: tags, files, metrics."""

import json
import math
import os
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from mm_assets.resources.digest import bytes_digest, canonical_json
from mm_assets.resources.store import JSON

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities import Metric, Param

FINGERPRINT_TAG, WEIGHTS_TAG = "mm.fingerprint", "mm.weights"
OUTCOME = "mm.promotion"  # what was decided of a version, in words
TRAINING_PATIENTS = "training_patients.csv"


class Predictor(Protocol):
    """What is registered: picklable, its class importable where the model is loaded."""

    @property
    def feature_names(self) -> Sequence[str]:
        """Columns that `predict` reads."""

    def predict(self, frame: "pd.DataFrame", /) -> "pd.DataFrame":
        """One row of output per row of input."""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What is known of a model before it is trained.

    Attributes
    ----------
    cohort, task, model
        Name of the registered model, joined by dots.
    dagster_run_id, asset_key, code_version
        Where it was made; `asset_key` is ``<cohort>/<asset>``.
    upstream
        Asset -> slide id or ``cohort`` -> data version.
    splits_digest
        Data version of the folds.
    parameters
        Hyper-parameters and settings, JSON values.
    weights
        Stamp of the encoder weights, e.g. ``resnet50 random:0``.
    lineage
        Tree down to slide digests (`mm_assets.resources.lineage.to_json`).
    """

    cohort: str
    task: str
    model: str
    dagster_run_id: str
    asset_key: str
    code_version: str
    upstream: dict[str, dict[str, str]]
    splits_digest: str
    parameters: dict[str, JSON]
    weights: str = ""
    lineage: dict[str, JSON] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """``<cohort>.<task>.<model>``."""
        return f"{self.cohort}.{self.task}.{self.model}"

    def fingerprint(self) -> str:
        """Digest of everything that determines the model; equal means: need not be made again."""
        made_from = [self.upstream, self.splits_digest, self.parameters, self.code_version]
        return bytes_digest(canonical_json([self.name, self.weights, *made_from]))

    def tags(self) -> dict[str, str]:
        """Tags of the run and of the registered version; links back to Dagster."""
        dagster = os.environ.get("MM_DAGSTER_URL", "http://127.0.0.1:3000").rstrip("/")
        return {
            FINGERPRINT_TAG: self.fingerprint(),
            "mm.cohort": self.cohort,
            "mm.task": self.task,
            "mm.model": self.model,
            "mm.code_version": self.code_version,
            "mm.splits": self.splits_digest,
            WEIGHTS_TAG: self.weights or "none",
            "dagster.run_id": self.dagster_run_id,
            "dagster.asset_key": self.asset_key,
            "dagster.run_url": f"{dagster}/runs/{self.dagster_run_id}",
            "dagster.asset_url": f"{dagster}/assets/{self.asset_key}",
            **{
                f"mm.upstream.{asset}": bytes_digest(canonical_json(versions))
                for asset, versions in self.upstream.items()
            },
        }

    def files(self) -> dict[str, bytes]:
        """Path in the run's artefacts -> content."""
        import pandas as pd

        inputs = pd.DataFrame(
            [
                (asset, name, digest)
                for asset, versions in sorted(self.upstream.items())
                for name, digest in sorted(versions.items())
            ],
            columns=["asset", "name", "data_version"],
        )
        return {
            "lineage/lineage.json": json.dumps(self.lineage).encode(),
            "lineage/inputs.csv": inputs.to_csv(index=False).encode(),
            "parameters.json": json.dumps(self.parameters, indent=2).encode(),
        }


@dataclass(frozen=True, kw_only=True)
class ModelRun(RunFacts):
    """One trained model and everything that must be known about it.

    Attributes
    ----------
    predictor, input_example
        The final model and a few rows it accepts.
    trained
        Patients that `predictor` was fitted to; empty: not known.
    trials
        What tuning tried, each row a run nested in this one: columns model, repeat, fold, trial,
        gain (score on inner folds), seconds, then settings. None or empty without tuning.
    live
        Id of the run that `Tracking.live_run` opened for the training; None opens one.
    """

    predictor: Predictor
    input_example: "pd.DataFrame"
    trained: Sequence[str] = ()
    trials: "pd.DataFrame | None" = None
    live: str | None = None

    def files(self) -> dict[str, bytes]:
        import pandas as pd

        tables = {} if self.trials is None or self.trials.empty else {"trials.csv": self.trials}
        if self.trained:
            tables[TRAINING_PATIENTS] = pd.DataFrame({"patient_id": list(self.trained)})
        return {
            **super().files(),
            "input_example.csv": self.input_example.to_csv(index=False).encode(),
            **{name: table.to_csv(index=False).encode() for name, table in tables.items()},
        }

    def nested(self) -> "Iterator[tuple[str, list[Param], list[Metric]]]":
        """Name, parameters and metrics of the run of every trial."""
        from mlflow.entities import Param

        for row in [] if self.trials is None else self.trials.to_dict("records"):
            where = {key: str(row.pop(key)) for key in ("model", "repeat", "fold", "trial")}
            metrics = [*_metric("gain", row.pop("gain")), *_metric("seconds", row.pop("seconds"))]
            # Searches of other variants may lack a setting.
            settings = {key: f"{value:g}" for key, value in row.items() if not math.isnan(value)}
            params = [Param(str(key), text) for key, text in (where | settings).items()]
            name = "{model} fold {repeat}.{fold} trial {trial}".format(**where)
            yield name, params, metrics


def overall_metrics(model: str, table: "pd.DataFrame") -> "list[Metric]":
    """MLflow metrics of rows (model, metric, value, low, high); ablations under their own name."""
    columns = {"value": "", "low": "_low", "high": "_high"}
    return [
        metric
        for row in table.to_dict("records")
        for column, suffix in columns.items()
        for metric in _metric(_key(model, row) + suffix, row[column])
    ]


def fold_metrics(model: str, table: "pd.DataFrame") -> "list[Metric]":
    """MLflow metrics of rows (model, repeat, fold, metric, value), one step a fold."""
    folds = int(table["fold"].max()) + 1 if len(table) else 0
    return [
        metric
        for row in table.to_dict("records")
        for metric in _metric(
            f"{_key(model, row)}_fold",
            row["value"],
            step=int(row["repeat"]) * folds + int(row["fold"]),
        )
    ]


def curve_metrics(table: "pd.DataFrame") -> "list[Metric]":
    """MLflow metrics of rows (curve, epoch, value), one step an epoch."""
    return [
        metric
        for row in table.to_dict("records")
        for metric in _metric(row["curve"], row["value"], step=int(row["epoch"]))
    ]


def _key(model: str, row: Mapping[Hashable, Any]) -> str:
    return f"{'' if row['model'] == model else row['model'] + '/'}{row['metric']}"


def _metric(key: str, value: float, step: int = 0) -> "list[Metric]":
    from mlflow.entities import Metric

    if not math.isfinite(value):
        return []  # MLflow draws NaN as a figure; the table beside it keeps it
    return [Metric(key, float(value), int(time.time() * 1000), step)]
