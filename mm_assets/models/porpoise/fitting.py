"""The fit of a PORPOISE network to training patients.

The slide network is fitted to patients with slides and the omics network to patients with omics,
as in the paper's data set; the fused network is fitted to patients with either, and a missing
modality is masked (`mm_assets.models.porpoise.networks.Fusion`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn import functional

from mm_assets.cohort.clinical import Endpoint
from mm_assets.cohort.splits import inner_split
from mm_assets.models.calibration import youden_threshold
from mm_assets.models.checkpoint import Checkpoint
from mm_assets.models.losses import Outcome
from mm_assets.models.porpoise.hazards import Intervals, hazard_nll
from mm_assets.models.porpoise.inputs import Inputs, OmicsScaler
from mm_assets.models.porpoise.model import (
    Cohort,
    PorpoiseModel,
    check_width,
    measured,
    scaled_inputs,
)
from mm_assets.models.porpoise.networks import Kind, Porpoise
from mm_assets.models.porpoise.training import (
    Criterion,
    OnEpoch,
    Training,
    TrainingParameters,
    training_key,
)

INNER_FOLDS = 5
MIN_PATIENTS = 2


@dataclass(frozen=True)
class PorpoiseParameters:
    """Settings of a fit.

    Attributes
    ----------
    early_stopping
        Whether a fifth of the training patients is set aside and says which epoch is best; else
        the last epoch counts, as published. Test patients never decide.
    """

    early_stopping: bool = False
    training: TrainingParameters = field(default_factory=TrainingParameters)


def fit_porpoise(
    kind: Kind,
    cohort: Cohort,
    endpoint: Endpoint,
    train: Sequence[str],
    horizons: Sequence[float] = (),
    parameters: PorpoiseParameters | None = None,
    sites: "pd.Series[str] | None" = None,
    checkpoint: Path | None = None,
    on_epoch: OnEpoch | None = None,
) -> PorpoiseModel:
    """Fit a network to the training patients whom it can read.

    Parameters
    ----------
    train
        Training patients, all of them in `endpoint.table`.
    sites
        Site by patient; the inner split of early stopping then keeps sites apart.
    checkpoint
        File that holds the state after each epoch, from which a killed fit goes on. Name it by
        the versions of the data.
    on_epoch
        As in `Training`.

    Raises
    ------
    ValueError
        When fewer than two training patients can be read, or a modality is missing in all.
    """
    parameters = parameters or PorpoiseParameters()
    known = cohort.readable(kind, train)
    if len(known) < MIN_PATIENTS:
        raise ValueError(
            f"porpoise_{kind}: {len(known)} training patients have what it reads; it needs "
            f"{MIN_PATIENTS}"
        )
    learn, stop = _inner(known, endpoint, parameters, sites)
    scaler = None
    if kind != "amil":
        scaler = OmicsScaler.fit(measured(cohort.omics), endpoint, learn)
    intervals = None
    if endpoint.kind == "survival":
        intervals = Intervals.fit(Outcome.of(endpoint.table.loc[learn]))
    inputs = scaled_inputs(kind, cohort, scaler, known)
    embedding = _embedding(inputs, known) if kind != "snn" else 0
    network = _network(kind, embedding, scaler, intervals, endpoint, parameters.training.seed)
    key = training_key(parameters.training, kind, learn, stop, _outcomes(endpoint, known))
    trained = Training(
        network,
        inputs,
        _criterion(endpoint, intervals),
        learn,
        stop,
        parameters.training,
        Checkpoint(checkpoint, key) if checkpoint else None,
        on_epoch,
    ).run()
    model = PorpoiseModel(
        kind, endpoint.classes, intervals, tuple(horizons), scaler, embedding, network, trained
    )
    seen = model.predict_patients(cohort, known)
    if intervals is not None:
        return replace(model, risk_cut=float(seen["risk"].median()))
    if len(endpoint.classes) > 2:
        return model
    label = endpoint.table.loc[seen.index, "label"].to_numpy(np.int64)
    threshold = youden_threshold(label, seen.iloc[:, 1].to_numpy(np.float64))
    return replace(model, threshold=threshold)


def _inner(
    known: list[str],
    endpoint: Endpoint,
    parameters: PorpoiseParameters,
    sites: "pd.Series[str] | None",
) -> tuple[list[str], list[str]]:
    """Patients to learn from and patients to stop by."""
    if not parameters.early_stopping or len(known) < 2 * INNER_FOLDS:
        return known, []
    seed = parameters.training.seed
    return next(inner_split(known, endpoint, INNER_FOLDS, seed, sites))


def _embedding(inputs: Inputs, patients: Sequence[str]) -> int:
    """Width of the embeddings, which must be the same on all slides.

    Raises
    ------
    ValueError
        When no patient has tiles, or widths differ.
    """
    width = 0
    for patient in patients:
        for slide in inputs.bags.get(patient, ()):
            width = width or slide.shape[1]
            check_width(slide.shape[1], width, [patient])
    if not width:
        raise ValueError("no training patient has tiles")
    return width


def _network(
    kind: Kind,
    embedding: int,
    scaler: OmicsScaler | None,
    intervals: Intervals | None,
    endpoint: Endpoint,
    seed: int,
) -> Porpoise:
    outputs = len(intervals) if intervals else len(endpoint.classes)
    genes = len(scaler.names) if scaler else 0
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return Porpoise(kind, embedding, genes, outputs)


def _outcomes(endpoint: Endpoint, patients: Sequence[str]) -> list[tuple[float, ...]]:
    return list(endpoint.table.loc[list(patients)].itertuples(index=False, name=None))


def _criterion(endpoint: Endpoint, intervals: Intervals | None) -> Criterion:
    """Loss of each patient."""
    table = endpoint.table
    if intervals is None:

        def classes(logits: torch.Tensor, patients: Sequence[str]) -> torch.Tensor:
            label = torch.tensor(table.loc[list(patients), "label"].to_numpy(np.int64))
            return functional.cross_entropy(logits, label.to(logits.device), reduction="none")

        return classes
    interval = pd.Series(intervals.of(table["time"].to_numpy(np.float64)), table.index)

    def hazards(logits: torch.Tensor, patients: Sequence[str]) -> torch.Tensor:
        chosen = list(patients)
        event = torch.tensor(table.loc[chosen, "event"].to_numpy(np.float32))
        reached = torch.tensor(interval[chosen].to_numpy(np.int64))
        return hazard_nll(logits, reached.to(logits.device), event.to(logits.device))

    return hazards
