"""Options of HEEC: what each reads, and that each is fitted as its name says."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from lifelines.utils import concordance_index
from sklearn.metrics import roc_auc_score

from mm_assets.explain.contributions import explain_heec
from mm_assets.models.boosting import BoostingParameters
from mm_assets.models.clinical import ClinicalModel
from mm_assets.models.features import FeatureBlocks, Preprocessor, Variant
from mm_assets.models.heec import fit_heec
from mm_assets.models.heec_folds import fit_final, run_folds
from mm_assets.models.heec_parameters import HeecParameters
from mm_assets.models.losses import bind_losses
from mm_assets.models.offset import ClinicalOffset
from mm_assets.models.variants import GROUPS, compared_variants
from mm_assets.models.votes import CLINICAL
from mm_assets_tests.models.simulation import Simulated, simulate, split

KINDS = ["survival", "classification"]
FAST = HeecParameters(inner_folds=2, boosting=BoostingParameters(min_rounds=25, max_rounds=25))
EVERY = list(GROUPS)


@pytest.fixture(scope="module")
def cohort() -> Simulated:
    """With regions, tiles and nuclei; only the tiles carry signal."""
    made = simulate(120)
    tiles = made.blocks.imaging
    assert tiles is not None
    noise = np.random.default_rng(0).normal(size=tiles.shape).astype(np.float32)
    others = [
        pd.DataFrame(noise * sign, tiles.index, [n.replace("tile", level) for n in tiles.columns])
        for level, sign in (("region", 1), ("nucleus", -1))
    ]
    return replace(made, blocks=replace(made.blocks, imaging=pd.concat([tiles, *others], axis=1)))


def names(blocks: FeatureBlocks, kind: str = "survival", selects: bool = True) -> list[str]:
    return [variant.name for variant in compared_variants(EVERY, blocks, kind, selects)]


def test_only_what_differs_is_compared(cohort: Simulated) -> None:
    blocks = cohort.blocks
    assert names(blocks) == [
        "heec_imaging_region", "heec_imaging_tile", "heec_imaging_nucleus",
        "heec_imaging_unselected", "heec_clinical_feature", "heec_clinical_offset",
        "heec_filter_quarter", "heec_filter_none",
    ]  # fmt: skip
    assert "heec_imaging_unselected" not in names(blocks, selects=False)
    # For classes the offset is the default.
    assert "heec_clinical_feature" in names(blocks, "classification")
    assert "heec_clinical_offset" not in names(blocks, "classification")
    assert names(replace(blocks, imaging=None, clinical=None)) == [
        "heec_filter_quarter", "heec_filter_none",
    ]  # fmt: skip
    assert blocks.imaging is not None
    one_level = replace(blocks, imaging=blocks.imaging.filter(like="tile"))
    assert "heec_imaging_tile" not in names(one_level)
    assert compared_variants(["filters", "filters"], blocks, "survival", True) == list(
        GROUPS["filters"].variants
    )


def test_variants_do_what_their_names_say(cohort: Simulated) -> None:
    found = {
        variant.name: variant.select(cohort.blocks)
        for variant in compared_variants(EVERY, cohort.blocks, "survival", True)
    }
    for level in ("region", "tile", "nucleus"):
        chosen = found[f"heec_imaging_{level}"]
        assert chosen.levels == [level]
        assert chosen.omics is None
        assert chosen.clinical is None
    assert found["heec_filter_none"].levels == ["tile", "region", "nucleus"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_gives_complete_predictions(cohort: Simulated, kind: str) -> None:
    endpoint = cohort.endpoint(kind)
    variants = compared_variants(EVERY, cohort.blocks, kind, True)
    splits = split(endpoint.table.index, 2)
    found = run_folds(cohort.blocks, endpoint, splits, (), variants, FAST)
    found = found.set_index("model")
    assert found.notna().all(axis=None)
    score = {}
    for variant in variants:
        rows = found.loc[variant.name].set_index("patient_id")
        truth = endpoint.table.loc[rows.index]
        if kind == "survival":
            score[variant.name] = concordance_index(truth["time"], -rows["risk"], truth["event"])
        else:
            score[variant.name] = roc_auc_score(truth["label"], rows["probability_B"])
    noise = max(score["heec_imaging_region"], score["heec_imaging_nucleus"])
    assert score["heec_imaging_tile"] > max(noise, 0.6)
    assert min(score[name] for name in score if name.startswith("heec_clinical")) > 0.55


def test_a_smaller_filter_is_the_front_of_a_larger_one(cohort: Simulated) -> None:
    blocks, endpoint = cohort.blocks, cohort.survival
    train = list(endpoint.table.index[:90])
    frame = blocks.frame(train)
    large = Preprocessor.fit(blocks, endpoint, train, 50, 40)
    for sizes in ((8, 5), (50, 40), (1, 40), (500, 500)):
        fitted = [min(*pair) for pair in zip(sizes, (50, 40), strict=True)]
        small = Preprocessor.fit(blocks, endpoint, train, *fitted)
        kept = large.columns(*sizes)
        assert [large.names[place] for place in kept] == small.names
        np.testing.assert_array_equal(large.transform(frame)[:, kept], small.transform(frame))
    nothing = Preprocessor(None, None, None)
    assert nothing.columns(5, 5).tolist() == [0]


# Clinical offset, feature, vote.


@pytest.mark.parametrize("kind", KINDS)
def test_boosting_starts_from_the_clinical_model(cohort: Simulated, kind: str) -> None:
    endpoint, covariates = cohort.endpoint(kind), cohort.blocks.clinical
    assert covariates is not None
    patients = list(endpoint.table.index)
    losses = bind_losses(endpoint, patients, patients)
    offset = ClinicalOffset.fit(covariates, endpoint, losses)
    assert min(offset.slopes.values()) > 0.1
    if kind == "survival":
        # The Cox model's own scale is right for the Cox loss.
        assert offset.slopes["cox"] == pytest.approx(1, abs=0.1)
    bound = offset.bind(losses, covariates)
    for name, loss in losses.items():
        start = offset(name, covariates)
        zero = np.zeros_like(start)
        assert bound[name].outputs == loss.outputs
        assert bound[name].value(zero) == loss.value(start) < loss.value(zero)
        np.testing.assert_array_equal(bound[name].gradient(zero)[0], loss.gradient(start)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_an_offset_is_all_that_is_left_where_nothing_else_is_known(
    cohort: Simulated, kind: str
) -> None:
    """Constant features: no tree can grow, and the order is that of the clinical model."""
    endpoint, covariates = cohort.endpoint(kind), cohort.blocks.clinical
    assert covariates is not None
    assert cohort.blocks.omics is not None
    noise = cohort.blocks.omics.filter(like="copy_number").iloc[:, :2]
    dull = (noise > noise.quantile(0.98)).astype(np.float32)
    parameters = replace(FAST, clinical="offset")
    model = fit_final(FeatureBlocks(None, dull, covariates), endpoint, (), parameters)
    assert model.clinical is None
    assert model.offset is not None
    frame = FeatureBlocks(None, dull * 0, covariates).frame(dull.index)
    predicted = model.predict(frame).iloc[:, 0 if kind == "survival" else 1]
    alone = ClinicalModel.fit(covariates, endpoint).predict(covariates.loc[dull.index])
    alone = alone.iloc[:, 0 if kind == "survival" else 1]
    assert predicted.corr(alone, method="spearman") > 0.999
    assert {"age", "sex"} <= set(model.feature_names)
    with pytest.raises(ValueError, match="age"):
        model.predict(frame.drop(columns="age"))
    if kind == "survival":
        with pytest.raises(ValueError, match="offset"):
            explain_heec(model, frame)


def test_the_vote_on_classes_is_an_offset(cohort: Simulated) -> None:
    endpoint, train = cohort.classification, list(cohort.classification.table.index)
    vote, offset, feature = (
        fit_heec(cohort.blocks, endpoint, train, (), replace(FAST, clinical=use))
        for use in ("vote", "offset", "feature")
    )
    assert vote.boosters == offset.boosters != feature.boosters
    assert vote.offset is not None
    assert feature.offset is None
    assert vote.covariates is not None
    assert feature.covariates is not None
    assert vote.covariates.names() == feature.covariates.names()


def test_a_feature_has_no_vote(cohort: Simulated) -> None:
    endpoint, train = cohort.survival, list(cohort.survival.table.index)
    vote, feature = (
        fit_heec(cohort.blocks, endpoint, train, (), replace(FAST, clinical=use))
        for use in ("vote", "feature")
    )
    assert CLINICAL in vote.references
    assert CLINICAL not in feature.references
    assert feature.clinical is None
    assert feature.boosters == vote.boosters


# Missing modalities are missing values: nobody is dropped.


@pytest.mark.parametrize("use", ["vote", "feature", "offset"])
@pytest.mark.parametrize("kind", KINDS)
def test_patients_who_lack_a_modality_teach_and_are_predicted(
    cohort: Simulated, kind: str, use: str
) -> None:
    endpoint, blocks = cohort.endpoint(kind), cohort.blocks
    patients = list(endpoint.table.index)
    assert blocks.imaging is not None
    assert blocks.omics is not None
    assert blocks.clinical is not None
    imaging = blocks.imaging.astype(np.float32).copy()
    tile_only = imaging.index[:5]
    imaging.loc[tile_only, ~imaging.columns.str.startswith("tile")] = np.nan
    lacking = {
        "imaging": set(patients) - set(imaging.index),
        "omics": set(patients) - set(blocks.omics.index),
        "levels": set(tile_only),
        "clinical": set(patients[50:60]),
    }
    assert all(lacking.values())
    gaps = FeatureBlocks(imaging, blocks.omics, blocks.clinical.drop(index=patients[50:60]))
    parameters = replace(FAST, clinical=use)
    model = fit_heec(gaps, endpoint, patients, (), parameters)
    frame = gaps.frame(patients)
    assert frame.loc[list(lacking["omics"]), "expression:G0"].isna().all()
    predicted = model.predict(frame)
    assert predicted.notna().all(axis=None)
    for modality, some in lacking.items():
        assert predicted.loc[sorted(some)].iloc[:, 0].nunique() > 1, modality
        # Their outcomes are learnt from: turned round, they give another model.
        table = endpoint.table.copy()
        column = "event" if kind == "survival" else "label"
        table.loc[sorted(some), column] = 1 - table.loc[sorted(some), column]
        other = fit_heec(gaps, replace(endpoint, table=table), patients, (), parameters)
        assert other.boosters != model.boosters, modality


def test_a_modality_nobody_in_training_has_is_left_out(cohort: Simulated) -> None:
    endpoint, blocks = cohort.survival, cohort.blocks
    patients = list(endpoint.table.index)
    assert blocks.imaging is not None
    with_slides = set(blocks.imaging.index[:20])
    few = replace(blocks, imaging=blocks.imaging.loc[sorted(with_slides)])
    train = [patient for patient in patients if patient not in with_slides]
    model = fit_heec(few, endpoint, train, (), FAST)
    assert not [name for name in model.feature_names if name.startswith("tile")]
    assert model.predict(few.frame(sorted(with_slides))).notna().all(axis=None)
    # A variant on slides alone then knows nothing, and says so by one risk for all.
    alone = Variant("heec_imaging", omics=False, clinical=False).select(few)
    nothing = fit_heec(alone, endpoint, train, (), FAST)
    assert nothing.predict(alone.frame(sorted(with_slides)))["risk"].nunique() == 1
