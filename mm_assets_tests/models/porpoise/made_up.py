"""Small cohorts of bags and omics for the networks."""

import numpy as np
import pandas as pd

from mm_assets.cohort.clinical import Endpoint
from mm_assets.models.porpoise.inputs import Inputs
from mm_assets.models.porpoise.model import Cohort
from mm_assets_tests.models.simulation import make_endpoint

WIDTH, GENES = 12, 8


def patient_ids(count: int) -> list[str]:
    """P000 and so on."""
    return [f"P{number:03d}" for number in range(count)]


def make_cohort(patients: int, seed: int = 0, tiles: int = 20) -> Cohort:
    """Noise: one to two slides a patient, and expression of a few genes."""
    rng = np.random.default_rng(seed)
    names = patient_ids(patients)
    bags = {
        name: [
            rng.normal(size=(rng.integers(1, tiles + 1), WIDTH)).astype(np.float16)
            for _ in range(1 + number % 2)
        ]
        for number, name in enumerate(names)
    }
    genes = [f"expression:G{gene}" for gene in range(GENES)]
    omics = pd.DataFrame(rng.normal(size=(patients, GENES)), names, genes, np.float32)
    return Cohort(bags, omics)


def make_inputs(cohort: Cohort) -> Inputs:
    """The cohort as networks read it, its noise standardized as it is."""
    assert cohort.omics is not None
    return Inputs(cohort.bags, cohort.omics)


def outcomes(kind: str, patients: int, seed: int = 0) -> Endpoint:
    """Random outcomes; every third patient is censored, classes alternate."""
    rng = np.random.default_rng(seed)
    index = pd.Index(patient_ids(patients), name="patient_id")
    if kind == "classification":
        return make_endpoint(kind, pd.DataFrame({"label": np.arange(patients) % 2}, index))
    event = (np.arange(patients) % 3 > 0).astype(int)
    return make_endpoint(
        kind, pd.DataFrame({"time": rng.uniform(1, 90, patients), "event": event}, index)
    )
