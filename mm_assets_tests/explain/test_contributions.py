"""Contributions sum to what the model says, and combine as the model combines its members."""

import numpy as np
import pandas as pd
import pytest

from mm_assets.explain.contributions import explain_heec, feature_values
from mm_assets.models.boosting import BoostingParameters
from mm_assets.models.features import FeatureBlocks
from mm_assets.models.heec import HeecModel
from mm_assets.models.heec_folds import fit_final
from mm_assets.models.heec_parameters import HeecParameters
from mm_assets_tests.models.simulation import Simulated, simulate

FAST = HeecParameters(inner_folds=2, boosting=BoostingParameters(min_rounds=25, max_rounds=25))
KINDS = ["survival", "classification"]


@pytest.fixture(scope="module")
def cohort() -> Simulated:
    return simulate(80)


@pytest.fixture(scope="module")
def models(cohort: Simulated) -> dict[str, HeecModel]:
    return {kind: fit_final(cohort.blocks, cohort.endpoint(kind), (12.0,), FAST) for kind in KINDS}


def test_shares_and_base_sum_to_the_risk(cohort: Simulated, models: dict[str, HeecModel]) -> None:
    model, frame = models["survival"], cohort.blocks.frame(cohort.survival.table.index)
    found = explain_heec(model, frame)
    # The first tenth of the patients lack imaging, the last tenth omics.
    np.testing.assert_allclose(found.score, model.predict(frame)["risk"], atol=1e-9)
    assert found.table.notna().all(axis=None)
    assert set(found.towards) == {"risk"}
    assert found.table.loc[:, "age"].abs().sum() > 0


def test_log_odds_of_the_predicted_class(cohort: Simulated, models: dict[str, HeecModel]) -> None:
    model, frame = models["classification"], cohort.blocks.frame(cohort.survival.table.index)
    found = explain_heec(model, frame)
    predicted = model.predict(frame).filter(like="probability")
    top = predicted.max(axis=1).to_numpy()
    np.testing.assert_allclose(found.score, np.log(top / (1 - top)), atol=1e-6)
    assert ("probability_" + found.towards == predicted.idxmax(axis=1)).all()


def test_members_without_a_vote_contribute_nothing(
    cohort: Simulated, models: dict[str, HeecModel]
) -> None:
    frame = cohort.blocks.frame(cohort.survival.table.index)
    model = models["survival"]
    only = HeecModel(**{**vars(model), "votes": {"clinical": 1.0}})
    found = explain_heec(only, frame)
    np.testing.assert_allclose(found.score, only.predict(frame)["risk"], atol=1e-9)
    covariates = model.preprocessor.covariates
    assert covariates is not None
    used = found.table.columns[(found.table != 0).any()]
    assert set(used) <= set(covariates.names())


@pytest.mark.parametrize("kind", KINDS)
def test_too_few_patients_to_learn_from(cohort: Simulated, kind: str) -> None:
    few = cohort.survival.table.index[30:36]
    endpoint = cohort.endpoint(kind)
    endpoint = type(endpoint)(
        endpoint.kind, endpoint.classes, endpoint.table.loc[few], endpoint.excluded
    )
    model = fit_final(cohort.blocks, endpoint, (12.0,), FAST)
    frame = cohort.blocks.frame(few)
    found = explain_heec(model, frame)
    assert not model.boosters
    if kind == "survival":
        np.testing.assert_allclose(found.score, model.predict(frame)["risk"], atol=1e-9)
    assert (found.table.to_numpy() == 0).all()


def test_values_are_those_measured(cohort: Simulated, models: dict[str, HeecModel]) -> None:
    frame = cohort.blocks.frame(cohort.survival.table.index)
    values = feature_values(models["survival"], frame)
    assert set(explain_heec(models["survival"], frame).table.columns) == set(values.columns)
    feature = next(name for name in values if name.startswith("tile:"))
    pd.testing.assert_series_equal(values[feature], frame[feature])


def test_without_covariates_or_omics(cohort: Simulated) -> None:
    blocks = FeatureBlocks(imaging=cohort.blocks.imaging)
    model = fit_final(blocks, cohort.survival, (12.0,), FAST)
    frame = blocks.frame(cohort.survival.table.index)
    found = explain_heec(model, frame)
    np.testing.assert_allclose(found.score, model.predict(frame)["risk"], atol=1e-9)
