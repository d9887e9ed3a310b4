"""Fitted graph networks of nuclei: importance and choice of nuclei, and their file."""

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from mm_assets.nuclei.features import Floats, NodeFeatures, read_nuclei
from mm_assets.nuclei.importance import (
    attention_weights,
    contrast_of,
    integrated_gradients,
    neighbourhood_mean,
    top_nuclei,
)
from mm_assets.nuclei.network import NucleusNetwork
from mm_assets.nuclei.sampling import both_directions


@dataclass(frozen=True)
class GnnParameters:
    """Settings of a fit.

    Attributes
    ----------
    components
        Principal components of the embedding that a nucleus keeps.
    hidden, layers, dropout
        Of the network.
    nuclei, window, windows_seen
        Nuclei drawn a patient, nuclei a window, and share of a patient's windows in each epoch.
    batch
        Patients a step.
    rate, decay
        Learning rate and weight decay of AdamW.
    epochs, patience
        Epochs at most, and without improvement on the inner validation patients.
    inner_folds, members
        Inner folds of the training patients, and networks: each is stopped on another fold.
    reference_share
        Nuclei of each training patient, those of least attention, whose mean is the reference.
    steps, rounds
        Points of the integral of integrated gradients, and rounds of averaging over neighbours.
    keep_share, keep_least
        Nuclei kept: a share of the slide's, and not fewer than so many.
    """

    components: int = 32
    hidden: int = 32
    layers: int = 2
    dropout: float = 0.2
    nuclei: int = 1024
    window: int = 128
    windows_seen: float = 0.5
    batch: int = 16
    rate: float = 1e-3
    decay: float = 1e-3
    epochs: int = 60
    patience: int = 12
    inner_folds: int = 5
    members: int = 3
    reference_share: float = 0.25
    steps: int = 16
    rounds: int = 2
    keep_share: float = 0.2
    keep_least: int = 50
    seed: int = 0


@dataclass(frozen=True)
class Member:
    """One of the networks.

    Attributes
    ----------
    reference
        Features of a nucleus without evidence: the mean of those that the network attends to
        least on the slides of the training patients, float32, shape [F].
    curve
        Loss a patient after every epoch: columns training and validation (NaN where there were
        no inner validation patients), float32, shape [epochs, 2].
    epoch
        The epoch whose weights these are, counted from 0.
    """

    network: NucleusNetwork
    reference: Floats
    curve: Floats
    epoch: int


@dataclass(frozen=True)
class NucleusGnn:
    """Networks fitted to the same patients, whose results are averaged.

    Attributes
    ----------
    classes
        Class names; empty for survival.
    """

    parameters: GnnParameters
    classes: tuple[str, ...]
    features: NodeFeatures
    members: tuple[Member, ...]

    def scores(self, nodes: pa.Table, edges: pa.Table) -> Floats:
        """Scores of one slide: a log odds a class beside its frequency, or one log hazard."""
        return self._scores(*self._inputs(nodes, edges)).cpu().numpy()

    def attribution(self, nodes: pa.Table, edges: pa.Table) -> Floats:
        """What each nucleus adds to the risk, or to the class predicted from the slide.

        Returns
        -------
        ndarray
            float32, shape [n], in units of the score; negative where it speaks against.
        """
        return np.mean(self._attributions(nodes, edges), axis=0, dtype=np.float32)

    def importance(self, nodes: pa.Table, edges: pa.Table) -> Floats:
        """How much each nucleus and its neighbours move the score, whichever way.

        The size of the integrated gradients as a share of the slide's, averaged over the networks
        and then over neighbours: evidence against a class or a risk is evidence too.

        Parameters
        ----------
        nodes
            Columns as the networks were fitted on: morphology and embedding.
        edges
            Columns source and target (int32 row numbers), each edge once.

        Returns
        -------
        ndarray
            float32, shape [n], not negative.
        """
        size = np.abs(self._attributions(nodes, edges))
        # As shares, so that a network that was stopped late does not outshout the others.
        share = size / np.maximum(size.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
        return neighbourhood_mean(
            share.mean(axis=0), both_directions(edges), self.parameters.rounds
        )

    def attention(self, nodes: pa.Table, edges: pa.Table) -> Floats:
        """Mean attention of each nucleus of a slide, float32, shape [n], summing to 1."""
        if not nodes.num_rows:
            return np.empty(0, np.float32)
        inputs = self._inputs(nodes, edges)
        weights = [attention_weights(member.network, *inputs) for member in self.members]
        return np.mean(weights, axis=0, dtype=np.float32)

    def keep(self, nodes: pa.Table, edges: pa.Table) -> NDArray[np.bool_]:
        """Which nuclei of a slide are kept, bool, shape [n]; never none of some."""
        parameters = self.parameters
        importance = self.importance(nodes, edges)
        return top_nuclei(importance, parameters.keep_share, parameters.keep_least)

    def state(self) -> dict[str, Any]:
        """Tensors and plain values that `of_state` restores."""
        fitted = asdict(self.features)
        return {
            "parameters": asdict(self.parameters),
            "classes": list(self.classes),
            "columns": list(fitted.pop("columns")),
            "features": {name: torch.from_numpy(array) for name, array in fitted.items()},
            "members": [
                {
                    "network": {k: v.cpu() for k, v in member.network.state_dict().items()},
                    "reference": torch.from_numpy(member.reference),
                    "curve": torch.from_numpy(member.curve),
                    "epoch": member.epoch,
                }
                for member in self.members
            ],
        }

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> "NucleusGnn":
        """Restore `state`."""
        arrays = {name: tensor.numpy() for name, tensor in state["features"].items()}
        parameters = GnnParameters(**state["parameters"])
        features = NodeFeatures(columns=tuple(state["columns"]), **arrays)
        classes = tuple(state["classes"])
        members = []
        for saved in state["members"]:
            network = build_network(features, classes, parameters)
            network.load_state_dict(saved["network"])
            reference, curve = saved["reference"].numpy(), saved["curve"].numpy()
            members.append(Member(network.eval(), reference, curve, saved["epoch"]))
        return cls(parameters, classes, features, tuple(members))

    def _attributions(self, nodes: pa.Table, edges: pa.Table) -> Floats:
        """Of every network, shape [members, n]."""
        if not nodes.num_rows:
            return np.empty((len(self.members), 0), np.float32)
        features, ends = self._inputs(nodes, edges)
        contrast = contrast_of(self._scores(features, ends))
        return np.stack(
            [
                integrated_gradients(
                    member.network,
                    features,
                    ends,
                    contrast,
                    torch.from_numpy(member.reference).to(features.device),
                    self.parameters.steps,
                )
                for member in self.members
            ]
        )

    def _scores(self, features: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        patient = torch.zeros(len(features), dtype=torch.int64, device=features.device)
        with torch.no_grad():
            scores = [m.network(features, ends, patient, 1)[0] for m in self.members]
        return torch.stack(scores).mean(dim=0)

    def _inputs(self, nodes: pa.Table, edges: pa.Table) -> tuple[torch.Tensor, torch.Tensor]:
        nuclei = read_nuclei(nodes, self.features.columns, np.arange(nodes.num_rows))
        features = torch.from_numpy(self.features.transform(nuclei))
        ends = torch.from_numpy(both_directions(edges))
        device = self.members[0].network.head.weight.device
        return features.to(device), ends.to(device)


def build_network(
    features: NodeFeatures, classes: tuple[str, ...], parameters: GnnParameters
) -> NucleusNetwork:
    """The network for these features and classes, freshly drawn."""
    return NucleusNetwork(
        features.width,
        parameters.hidden,
        parameters.layers,
        max(1, len(classes)),
        parameters.dropout,
    )


def save_gnns(models: Mapping[tuple[int, int], NucleusGnn]) -> bytes:
    """One file with the model of every (repeat, fold); (-1, -1) is that of all patients."""
    buffer = io.BytesIO()
    torch.save({f"{r} {f}": model.state() for (r, f), model in sorted(models.items())}, buffer)
    return buffer.getvalue()


def load_gnns(source: Path | bytes) -> dict[tuple[int, int], NucleusGnn]:
    """The model of every (repeat, fold) of `save_gnns`' file, or of its bytes.

    Only tensors and plain values are read, no code.
    """
    content = source if isinstance(source, bytes) else source.read_bytes()
    saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    models = {}
    for key, state in saved.items():
        repeat, fold = (int(number) for number in key.split())
        models[repeat, fold] = NucleusGnn.of_state(state)
    return models
