import pandas as pd
import pytest
from lifelines.utils import concordance_index
from sklearn.metrics import roc_auc_score

from mm_assets.synthetic.latents import SITES, draw_patients
from mm_assets.synthetic.phenotype import phenotype

LATENTS = ["image", "genomic", "clinical"]


@pytest.fixture(scope="module")
def patients() -> pd.DataFrame:
    return draw_patients(3000, seed=11)


def test_small_cohort_is_the_beginning_of_a_large_one(patients: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(draw_patients(20, seed=11), patients.head(20))
    assert not draw_patients(20, seed=12)["image"].equals(patients["image"].head(20))


def test_all_latents_together_beat_each_alone(patients: pd.DataFrame) -> None:
    is_ilc = patients["subtype"] == "ILC"

    def c_index(risk: pd.Series) -> float:
        return concordance_index(patients["survival_months"], -risk, patients["event"])

    best = c_index(patients["risk"])
    best_auc = roc_auc_score(is_ilc, patients["subtype_logit"])
    assert best == pytest.approx(0.80, abs=0.02)
    assert best_auc == pytest.approx(0.93, abs=0.02)
    for latent in LATENTS:
        assert 0.58 < c_index(patients[latent]) < best - 0.07
        assert 0.58 < roc_auc_score(is_ilc, patients[latent]) < best_auc - 0.1


def test_latents_are_independent_of_each_other_and_of_the_site(patients: pd.DataFrame) -> None:
    correlation = patients[LATENTS].corr()
    assert (correlation.to_numpy()[[0, 0, 1], [1, 2, 2]] < 0.06).all()
    assert patients.groupby("site")["risk"].mean().abs().max() < 0.25
    assert patients["site"].value_counts().tolist() == [500] * len(SITES)


def test_endpoints_are_plausible(patients: pd.DataFrame) -> None:
    assert 0.55 < patients["event"].mean() < 0.65
    assert 0.3 < (patients["subtype"] == "ILC").mean() < 0.45
    assert (patients["survival_months"] > 0).all()
    assert patients["age"].between(26, 90).all()


def test_phenotype_grows_with_the_latent() -> None:
    low, middle, high = (phenotype(latent) for latent in (-4, 0, 4))
    assert 3 < low.nuclear_radius < middle.nuclear_radius < high.nuclear_radius < 14
    assert 0.7 < low.nuclear_darkness < middle.nuclear_darkness < high.nuclear_darkness
    assert low.spacing > middle.spacing > high.spacing > 10
    assert 0 < low.discohesion < middle.discohesion < high.discohesion < 1
    assert 0 < low.basophilia < middle.basophilia < high.basophilia
    assert 0.1 < low.extent < middle.extent < high.extent < 0.7
