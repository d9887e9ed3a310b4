"""A fitted PORPOISE network as a predictor of patients.

A patient whom a network cannot read has no prediction: without slides that of slides, without
omics that of omics, with neither that of both.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from mm_assets.models.calibration import class_table
from mm_assets.models.losses import softmax
from mm_assets.models.porpoise.hazards import Intervals
from mm_assets.models.porpoise.inputs import Bags, Inputs, OmicsScaler, Tiles
from mm_assets.models.porpoise.networks import Kind, Porpoise
from mm_assets.models.porpoise.training import Trained, TrainingParameters

BAG = "bag"


@dataclass(frozen=True)
class Cohort:
    """Raw inputs of all patients.

    Attributes
    ----------
    bags
        As in `Inputs`; empty without slides.
    omics
        As from `read_omics`; None without omics.
    """

    bags: Bags = field(default_factory=dict)
    omics: pd.DataFrame | None = None

    def readable(self, kind: Kind, patients: Sequence[str]) -> list[str]:
        """Those of the patients whom a network of this kind can read, sorted."""
        slides = {patient for patient in patients if any(map(len, self.bags.get(patient, ())))}
        omics = set(patients).intersection(measured(self.omics).index)
        return sorted({"amil": slides, "snn": omics, "mmf": slides | omics}[kind])


@dataclass(frozen=True)
class PorpoiseModel:
    """A fitted network; picklable, without open handles.

    Attributes
    ----------
    classes
        Class names; empty for survival.
    intervals, horizons
        Of survival; None and empty for classes.
    scaler
        Of the omics; None for the slide network.
    embedding
        Width of a tile's embedding; 0 for the omics network.
    risk_cut, threshold
        Median risk of the training patients (survival); threshold of two classes, see
        `class_table`. The network has seen these patients, so neither is out of fold.
    """

    kind: Kind
    classes: tuple[str, ...]
    intervals: Intervals | None
    horizons: tuple[float, ...]
    scaler: OmicsScaler | None
    embedding: int
    network: Porpoise
    trained: Trained
    risk_cut: float = 0.0
    threshold: float = np.nan

    @property
    def feature_names(self) -> list[str]:
        """Columns that `predict` reads: `bag`, then omics features."""
        return [BAG] * (self.kind != "snn") + (self.scaler.names if self.scaler else [])

    def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Predict patients from one table, as a model registry calls it.

        Parameters
        ----------
        frame
            Omics features, NaN where missing, and `bag`: little-endian float16 embeddings of all
            tiles of a patient, row after row, as bytes (`pack_bag`); None without slides.

        Returns
        -------
        DataFrame
            Columns risk (0 to 1, higher = worse), risk_cut and survival_<h>, or those of
            `class_table`; index as `frame`; NaN for a patient whom the network cannot read.

        Raises
        ------
        ValueError
            If columns are absent, or a bag does not hold whole embeddings.
        """
        absent = [name for name in self.feature_names if name not in frame]
        if absent:
            raise ValueError(f"{len(absent)} columns are absent, e.g. {absent[0]}")
        names = [str(number) for number in range(len(frame))]
        table = frame.set_axis(names)
        bags = {}
        if self.kind != "snn":
            given = table[BAG].dropna()
            bags = {name: [_unpack_bag(given[name], self.embedding)] for name in given.index}
        omics = table[self.scaler.names].astype(np.float32) if self.scaler else None
        predicted = self.predict_patients(Cohort(bags, omics), names)
        return predicted.reindex(names).set_index(frame.index)

    def predict_patients(self, cohort: Cohort, patients: Sequence[str]) -> pd.DataFrame:
        """As `predict`, of patients by id; index those whom the network can read, sorted.

        Raises
        ------
        ValueError
            When embeddings have another width than those the network was fitted to.
        """
        readable = cohort.readable(self.kind, patients)
        inputs = scaled_inputs(self.kind, cohort, self.scaler, readable)
        logits = self._logits(inputs, readable)
        if self.intervals is None:
            table = class_table(softmax(logits), self.classes, self.threshold)
        else:
            table = self.intervals.predict(logits, self.horizons)
            table.insert(1, "risk_cut", self.risk_cut)
        return table.set_axis(pd.Index(readable, name="patient_id"))

    def attention(self, tiles: Tiles) -> NDArray[np.float32]:
        """Attention weight of each tile of one patient, float32, shape [n]; they sum to 1."""
        with torch.no_grad():
            bag = torch.from_numpy(tiles.astype(np.float32))
            return self.network.slide.attention(bag).numpy()

    def _logits(self, inputs: Inputs, patients: Sequence[str]) -> NDArray[np.float64]:
        most = TrainingParameters().most_tiles
        found = [np.empty((0, self.network.head.out_features))]
        with torch.no_grad():
            for group, batch in inputs.packs(patients, most, torch.device("cpu")):
                if self.embedding and batch.tiles.numel():
                    check_width(batch.tiles.shape[1], self.embedding, group)
                found.append(self.network(batch).double().numpy())
        return np.concatenate(found)


def pack_bag(slides: Sequence[Tiles]) -> bytes | None:
    """The `bag` of a patient for `PorpoiseModel.predict`; None without tiles."""
    kept = [slide for slide in slides if len(slide)]
    return np.concatenate(kept).astype("<f2").tobytes() if kept else None


def registry_frame(
    cohort: Cohort, model: PorpoiseModel, patients: Sequence[str], most_tiles: int | None = None
) -> pd.DataFrame:
    """The table that `PorpoiseModel.predict` reads, of some patients.

    Parameters
    ----------
    most_tiles
        Tiles of each slide, the first so many; None takes all.
    """
    frame = pd.DataFrame(index=list(patients))
    if model.kind != "snn":
        bags = [[slide[:most_tiles] for slide in cohort.bags.get(p, ())] for p in patients]
        frame[BAG] = pd.Series([pack_bag(bag) for bag in bags], list(patients), object)
    if model.scaler is not None and cohort.omics is not None:
        frame = frame.join(cohort.omics[model.scaler.names])
    return frame


def _unpack_bag(content: bytes, width: int) -> Tiles:
    if len(content) % (2 * width):
        raise ValueError(
            f"a bag of {len(content)} bytes does not hold whole float16 embeddings of {width} "
            "dimensions: was it made by the encoder that the model was fitted to?"
        )
    return np.frombuffer(content, "<f2").reshape(-1, width)


def measured(omics: pd.DataFrame | None) -> pd.DataFrame:
    """The patients of whom any feature was measured."""
    return pd.DataFrame() if omics is None else omics.dropna(how="all")


def scaled_inputs(
    kind: Kind, cohort: Cohort, scaler: OmicsScaler | None, patients: Sequence[str]
) -> Inputs:
    """What a network of this kind reads of the patients."""
    bags = {} if kind == "snn" else cohort.bags
    if scaler is None:
        return Inputs(bags, pd.DataFrame())
    rows = measured(cohort.omics).reindex(columns=scaler.names)
    rows = rows.loc[rows.index.intersection(list(patients))]
    return Inputs(bags, pd.DataFrame(scaler(rows), rows.index, scaler.names))


def check_width(found: int, wanted: int, patients: Sequence[str]) -> None:
    """Refuse embeddings of another width than the network's.

    Raises
    ------
    ValueError
        Naming the patient.
    """
    if found != wanted:
        raise ValueError(
            f"embeddings of patient {patients[0]} have {found} dimensions, not {wanted}: they "
            "come from another encoder; materialize their tile_embeddings anew"
        )
