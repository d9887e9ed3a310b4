"""Simulated cohorts in which imaging, omics and clinical latents drive hazard and class."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from mm_assets.cohort.clinical import Endpoint
from mm_assets.models.features import FeatureBlocks

CLASSES = ("A", "B")


@dataclass(frozen=True)
class Simulated:
    """Features and both endpoints of the same patients."""

    blocks: FeatureBlocks
    survival: Endpoint
    classification: Endpoint

    def endpoint(self, kind: str) -> Endpoint:
        """One of the endpoints."""
        return self.survival if kind == "survival" else self.classification


def simulate(patients: int = 160, seed: int = 0, effect: float = 1.0) -> Simulated:
    """A cohort; the last tenth of the patients lack omics, the first tenth imaging."""
    generator = np.random.default_rng(seed)
    index = pd.Index([f"P{i:04d}" for i in range(patients)], name="patient_id")
    latent = generator.normal(size=(patients, 3))
    imaging = generator.normal(size=(patients, 40))
    imaging[:, :12] += latent[:, :1]
    omics = generator.normal(size=(patients, 60))
    omics[:, :10] += latent[:, 1:2]
    sides = ("min", "max")
    imaging_names = [f"tile:{sides[i % 2]}:{i // 2:04d}" for i in range(40)]
    omics_names = [f"{'expression' if i < 40 else 'copy_number'}:G{i}" for i in range(60)]
    age = 60 + 10 * latent[:, 2] + generator.normal(size=patients)
    clinical = pd.DataFrame({"age": age, "sex": generator.choice(["F", "M"], patients)}, index)
    tenth = patients // 10
    blocks = FeatureBlocks(
        pd.DataFrame(imaging.astype(np.float32), index, imaging_names).iloc[tenth:],
        pd.DataFrame(omics.astype(np.float32), index, omics_names).iloc[: patients - tenth],
        clinical,
    )
    risk = effect * latent @ np.array([1.0, 1.0, 0.7])
    death = generator.exponential(40 * np.exp(-risk))
    censoring = generator.uniform(10, 150, patients)
    time = np.minimum(death, censoring) + 0.01
    survival = pd.DataFrame({"time": time, "event": (death <= censoring).astype(int)}, index)
    label = (risk + 0.5 * generator.logistic(size=patients) > 0).astype(int)
    return Simulated(
        blocks,
        make_endpoint("survival", survival),
        make_endpoint("classification", pd.DataFrame({"label": label}, index)),
    )


def make_endpoint(kind: str, table: pd.DataFrame) -> Endpoint:
    """An endpoint with nobody excluded."""
    classes = () if kind == "survival" else CLASSES
    excluded = pd.DataFrame(columns=["patient_id", "reason"])
    return Endpoint(
        "survival" if kind == "survival" else "classification", classes, table, excluded
    )


def shuffled(endpoint: Endpoint, seed: int) -> Endpoint:
    """The same outcomes, dealt to other patients."""
    order = np.random.default_rng(seed).permutation(len(endpoint.table))
    table = endpoint.table.iloc[order].set_axis(endpoint.table.index)
    return make_endpoint(endpoint.kind, table)


def split(patients: pd.Index, folds: int, seed: int = 0) -> pd.DataFrame:
    """Random folds as the models read them."""
    fold = np.random.default_rng(seed).permutation(len(patients)) % folds
    rows = [
        (0, number, patient, "test" if number == of else "train")
        for number in range(folds)
        for patient, of in zip(patients, fold, strict=True)
    ]
    return pd.DataFrame(rows, columns=["repeat", "fold", "patient_id", "role"])
