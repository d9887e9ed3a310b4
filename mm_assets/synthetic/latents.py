"""Patients of the demo cohort: planted latent variables and the endpoints they cause."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

SITES = ("AA", "BB", "CC", "DD", "EE", "FF")
CLASSES = ("IDC", "ILC")

MEAN_AGE, SD_AGE = 58.0, 12.0
WEIBULL_SHAPE, WEIBULL_SCALE_MONTHS = 1.4, 70.0
CENSORING_MONTHS = (12.0, 160.0)


@dataclass(frozen=True)
class Effects:
    """Log hazard ratio or log odds ratio of one standard deviation of every latent."""

    image: float
    genomic: float
    clinical: float
    intercept: float = 0.0

    def of(self, image: float, genomic: float, clinical: float) -> float:
        """Linear predictor of one patient."""
        return (
            self.intercept + self.image * image + self.genomic * genomic + self.clinical * clinical
        )


# Chosen so that the best attainable C-index is about .81 and AUC about .94, while the strongest
# single latent reaches about .70 and .81.
HAZARD = Effects(image=1.15, genomic=1.05, clinical=0.55)
SUBTYPE = Effects(image=2.7, genomic=2.4, clinical=1.0, intercept=-1.3)


def draw_patients(patients: int, seed: int) -> pd.DataFrame:
    """Draw latents, covariates and endpoints.

    Every patient has a random stream of their own, so a small cohort is the beginning of a large
    one of the same seed. Survival is Weibull under proportional hazards with independent uniform
    censoring; the subtype is Bernoulli in the logit.

    Returns
    -------
    DataFrame
        Indexed by ``patient_id``: ``image``, ``genomic``, ``clinical`` (standard normal latents),
        ``risk`` (log hazard), ``subtype_logit`` (log odds of ILC), ``age`` (years), ``sex``,
        ``site``, ``subtype``, ``survival_months``, ``event`` (1: death observed).
    """
    rows = [_draw_patient(number, seed) for number in range(patients)]
    return pd.DataFrame(rows).set_index("patient_id")


def _draw_patient(number: int, seed: int) -> dict[str, object]:
    rng = np.random.default_rng([seed, number])
    image, genomic, clinical = rng.standard_normal(3)
    age = float(np.clip(round(MEAN_AGE + SD_AGE * clinical), 26, 90))
    clinical = (age - MEAN_AGE) / SD_AGE
    risk = HAZARD.of(image, genomic, clinical)
    logit = SUBTYPE.of(image, genomic, clinical)
    unit_exponential = rng.exponential()
    death = WEIBULL_SCALE_MONTHS * (unit_exponential / np.exp(risk)) ** (1 / WEIBULL_SHAPE)
    censoring = rng.uniform(*CENSORING_MONTHS)
    return {
        "patient_id": f"DEMO-{number:04d}",
        "image": image,
        "genomic": genomic,
        "clinical": clinical,
        "risk": risk,
        "subtype_logit": logit,
        "age": age,
        "sex": "female" if rng.random() < 0.85 else "male",
        "site": SITES[_site_order(number, seed)],
        "subtype": CLASSES[int(rng.random() < 1 / (1 + np.exp(-logit)))],
        "survival_months": max(round(min(death, censoring), 1), 0.1),
        "event": int(death <= censoring),
    }


def _site_order(number: int, seed: int) -> int:
    """Site of a patient: every block of as many patients as sites has each site once."""
    block, place = divmod(number, len(SITES))
    return int(np.random.default_rng([seed, block, len(SITES)]).permutation(len(SITES))[place])
