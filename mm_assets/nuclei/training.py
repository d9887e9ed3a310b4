"""Training of the graph network on patients' outcomes, fold by fold.

Every fit reads training patients only: node features are standardized on them, the loss's prior or
baseline hazard is theirs, and inner splits of them say when to stop. Losses are those of the
boosted models (`mm_assets.models.losses`): cross-entropy beside the class frequencies, or discrete
hazards, which unlike Cox's partial likelihood are a sum over patients and so allow small batches.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
import pandas as pd
import torch

from mm_assets.cohort.clinical import Endpoint
from mm_assets.cohort.problems import CohortError, Problem
from mm_assets.cohort.splits import inner_split
from mm_assets.models.folds import list_folds
from mm_assets.models.losses import HazardLoss, Labels, Loss, Outcome, SoftmaxLoss
from mm_assets.nuclei.features import Floats, NodeFeatures
from mm_assets.nuclei.gnn import GnnParameters, Member, NucleusGnn, build_network
from mm_assets.nuclei.importance import attention_weights
from mm_assets.nuclei.network import NucleusNetwork
from mm_assets.nuclei.sampling import (
    Graph,
    Windows,
    choose_windows,
    draw_windows,
    join_nuclei,
)
from mm_assets.omics.filters import ALL_PATIENTS

Progress = Callable[[int, int], None]
FIT_NUCLEI = 65_536  # nuclei that standardization and principal components are fitted on


def fit_gnn(
    graphs: Mapping[str, Graph],
    manifest: pd.DataFrame,
    endpoint: Endpoint,
    train: Sequence[str],
    parameters: GnnParameters | None = None,
    sites: "pd.Series[str] | None" = None,
) -> NucleusGnn:
    """Fit a network to the training patients.

    Parameters
    ----------
    graphs
        Node and edge table by slide id, as `nucleus_graph` stores them.
    manifest
        Columns slide_id and patient_id.
    train
        Training patients; those without a graph, a nucleus or the endpoint are ignored.
    sites
        Site by patient_id; when given, the inner split preserves sites.

    Raises
    ------
    CohortError
        When no training patient has a graph with nuclei.
    """
    parameters = parameters or GnnParameters()
    slides = manifest[manifest["patient_id"].isin(list(train))]
    windows = _draw(graphs, slides, endpoint, parameters)
    return _fit(windows, endpoint, train, parameters, sites)


def fit_folds(
    graphs: Mapping[str, Graph],
    manifest: pd.DataFrame,
    endpoint: Endpoint,
    splits: pd.DataFrame,
    parameters: GnnParameters | None = None,
    sites: "pd.Series[str] | None" = None,
    progress: Progress | None = None,
) -> dict[tuple[int, int], NucleusGnn]:
    """`fit_gnn` on the training patients of every fold, and (-1, -1) on all patients of the task.

    A fold whose training patients have no nuclei has no model.

    Parameters
    ----------
    splits
        Columns repeat, fold, patient_id, role.
    progress
        Called with fits done and fits in all.

    Raises
    ------
    CohortError
        When no patient of the task has a graph with nuclei.
    """
    parameters = parameters or GnnParameters()
    windows = _draw(graphs, manifest, endpoint, parameters)
    rounds = {(fold.repeat, fold.fold): fold.train for fold in list_folds(splits)}
    rounds[ALL_PATIENTS, ALL_PATIENTS] = list(endpoint.table.index)
    models = {}
    for done, (key, train) in enumerate(rounds.items(), start=1):
        if not windows.keys().isdisjoint(train):
            models[key] = _fit(windows, endpoint, train, parameters, sites)
        if progress:
            progress(done, len(rounds))
    return models


def _draw(
    graphs: Mapping[str, Graph],
    manifest: pd.DataFrame,
    endpoint: Endpoint,
    parameters: GnnParameters,
) -> dict[str, Windows]:
    slides = manifest[manifest["patient_id"].isin(endpoint.table.index)]
    drawn = draw_windows(graphs, slides, parameters.nuclei, parameters.window, parameters.seed)
    if not drawn:
        what = "no patient has the endpoint and a nucleus graph with nuclei"
        raise CohortError([Problem("nucleus_graph", what, "look at why detection finds none")])
    return drawn


def _fit(
    windows: Mapping[str, Windows],
    endpoint: Endpoint,
    train: Sequence[str],
    parameters: GnnParameters,
    sites: "pd.Series[str] | None",
) -> NucleusGnn:
    patients = sorted(set(train) & windows.keys() & set(endpoint.table.index))
    features = _fit_features([windows[patient] for patient in patients], parameters)
    graphs = {patient: _Graph(windows[patient], features) for patient in patients}
    members = []
    for number, (learn, stop) in enumerate(_inner(patients, endpoint, parameters, sites)):
        # What is drawn here must not depend on, or change, anybody else's random numbers.
        with torch.random.fork_rng():
            torch.manual_seed(parameters.seed + number)
            network = build_network(features, endpoint.classes, parameters).to(_device())
            rng = np.random.default_rng([parameters.seed, number])
            training = _Training(network, graphs, endpoint, patients, parameters, rng)
            curve, epoch = training.run(learn, stop)
        network = network.cpu().eval()
        reference = _reference(network, graphs, parameters.reference_share)
        members.append(Member(network, reference, curve, epoch))
    return NucleusGnn(parameters, endpoint.classes, features, tuple(members))


def _reference(network: NucleusNetwork, graphs: "Mapping[str, _Graph]", share: float) -> Floats:
    """Mean features of the nuclei of each patient that are attended to least, shape [F]."""
    means = []
    for graph in graphs.values():
        features = torch.from_numpy(graph.features)
        attention = attention_weights(network, features, torch.from_numpy(graph.windows.edges))
        least = np.argsort(attention, kind="stable")[: math.ceil(share * len(attention))]
        means.append(graph.features[least].mean(axis=0))
    return np.mean(means, axis=0, dtype=np.float32)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _fit_features(windows: Sequence[Windows], parameters: GnnParameters) -> NodeFeatures:
    """Features fitted on as many nuclei of every training patient."""
    each = max(1, FIT_NUCLEI // len(windows))
    rng = np.random.default_rng(parameters.seed)
    samples = []
    for of_patient in windows:
        rows = np.sort(rng.permutation(len(of_patient.nuclei))[:each])
        samples.append(of_patient.nuclei.rows(rows))
    return NodeFeatures.fit(join_nuclei(samples), windows[0].columns, parameters.components)


def _inner(
    patients: Sequence[str],
    endpoint: Endpoint,
    parameters: GnnParameters,
    sites: "pd.Series[str] | None",
) -> Iterator[tuple[list[str], list[str]]]:
    """For each network, patients to learn from and patients who say when to stop, perhaps none."""
    if len(patients) < parameters.inner_folds:
        return iter([(list(patients), [])] * parameters.members)
    folds = inner_split(patients, endpoint, parameters.inner_folds, parameters.seed, sites)
    return islice(folds, parameters.members)


class _Graph:
    """One patient's windows with standardized features."""

    def __init__(self, windows: Windows, features: NodeFeatures) -> None:
        self.windows = windows
        self.features = features.transform(windows.nuclei)


class _Training:
    """Epochs over patients in random order, in random windows of their slides."""

    def __init__(
        self,
        network: NucleusNetwork,
        graphs: Mapping[str, _Graph],
        endpoint: Endpoint,
        train: Sequence[str],
        parameters: GnnParameters,
        rng: np.random.Generator,
    ) -> None:
        self._network, self._graphs, self._parameters = network, graphs, parameters
        self._endpoint, self._train = endpoint, train
        self._rng = rng
        self._optimizer = torch.optim.AdamW(
            network.parameters(), lr=parameters.rate, weight_decay=parameters.decay
        )

    def run(self, learn: Sequence[str], stop: Sequence[str]) -> tuple[Floats, int]:
        """Train, leave the weights of the best epoch; its loss curve, and which epoch it is."""
        curve: list[tuple[float, float]] = []
        best, best_state, best_epoch = np.inf, self._network.state_dict(), 0
        for epoch in range(self._parameters.epochs):
            training = self._learn(learn)
            validation = self._validate(stop) if stop else np.nan
            curve.append((training, validation))
            if not validation >= best:
                best = validation if stop else np.inf
                best_epoch = epoch
                best_state = {k: v.clone() for k, v in self._network.state_dict().items()}
            elif epoch - best_epoch >= self._parameters.patience:
                break
        self._network.load_state_dict(best_state)
        return np.array(curve, np.float32).reshape(-1, 2), best_epoch

    def _learn(self, patients: Sequence[str]) -> float:
        """One epoch; the loss a patient."""
        self._network.train()
        order = self._rng.permutation(np.array(patients))
        total = 0.0
        for batch in _batches(order.tolist(), self._parameters.batch):
            scores = self._scores(batch, self._parameters.windows_seen)
            value, gradient = self._loss(batch, scores)
            self._optimizer.zero_grad()
            scores.backward(gradient / len(batch))
            self._optimizer.step()
            total += value
        return total / len(patients)

    def _validate(self, patients: Sequence[str]) -> float:
        self._network.eval()
        total = 0.0
        with torch.no_grad():
            for batch in _batches(patients, self._parameters.batch):
                total += self._loss(batch, self._scores(batch, 1.0))[0]
        return total / len(patients)

    def _scores(self, batch: Sequence[str], share: float) -> torch.Tensor:
        """Scores of some patients, [patients, outputs], from a share of their windows."""
        features, edges, start = [], [], 0
        for patient in batch:
            graph = self._graphs[patient]
            rows, ends = choose_windows(graph.windows, share, self._rng)
            features.append(graph.features[rows])
            edges.append(ends + start)
            start += len(rows)
        sizes = [len(part) for part in features]
        device = _device()
        return self._network(
            torch.from_numpy(np.concatenate(features)).to(device),
            torch.from_numpy(np.hstack(edges)).to(device),
            torch.from_numpy(np.repeat(np.arange(len(batch)), sizes)).to(device),
            len(batch),
        )

    def _loss(self, batch: Sequence[str], scores: torch.Tensor) -> tuple[float, torch.Tensor]:
        """Loss summed over the patients, and its gradient by the scores."""
        loss = _bind(self._endpoint, self._train, batch)
        values = scores.detach().cpu().numpy().astype(np.float64)
        values = values if loss.outputs > 1 else values[:, 0]
        gradient = loss.gradient(values)[0].reshape(len(batch), -1)
        return loss.value(values), torch.from_numpy(gradient).to(scores)


def _bind(endpoint: Endpoint, train: Sequence[str], batch: Sequence[str]) -> Loss:
    known, wanted = endpoint.table.loc[list(train)], endpoint.table.loc[list(batch)]
    if endpoint.kind == "survival":
        return HazardLoss(Outcome.of(known), Outcome.of(wanted))
    labels = [Labels(t["label"].to_numpy(np.int64), len(endpoint.classes)) for t in (known, wanted)]
    return SoftmaxLoss(*labels)


def _batches(patients: Sequence[str], size: int) -> list[Sequence[str]]:
    return [patients[start : start + size] for start in range(0, len(patients), size)]
