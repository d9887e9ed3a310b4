"""When there are tile scorers, and what their checks catch."""

from pathlib import Path

import pandas as pd
import pytest
from pydantic import ValidationError

from mm_assets.assets.checks import selection_checks
from mm_assets.assets.graph import cohort_stages
from mm_assets.cohort.config import CohortConfig, SelectionConfig
from mm_assets.cohort.loading import load_config
from mm_assets_tests.cohorts import make_cohort

GOOD = {"repeat": 0, "fold": 0, "train": 0.2, "test": 0.25, "classes": "A, B"}


def stage_names(config: CohortConfig) -> set[str]:
    return {stage.name for stage in cohort_stages(config)}


def test_scorers_come_with_slides_and_can_be_turned_off(tmp_path: Path) -> None:
    config = load_config(make_cohort(tmp_path / "tiny", patients=4, slides=1))
    scorers = {"tile_scorer_subtype", "tile_scorer_survival"}
    assert scorers <= stage_names(config)
    off = config.model_copy(update={"selection": SelectionConfig(method="none")})
    assert not scorers & stage_names(off)
    assert not scorers & stage_names(config.model_copy(update={"slides": None}))


@pytest.mark.parametrize("settings", [{"share": 0}, {"share": 1.1}, {"method": "bagging"}])
def test_nonsense_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SelectionConfig.model_validate(settings)


@pytest.mark.parametrize(
    ("row", "failing"),
    [
        ({}, set()),
        ({"classes": "", "train": 1.0, "test": 1.0}, {"contrast", "share_kept"}),
        ({"train": 0.0, "test": 0.0}, {"share_kept"}),
        ({"train": 0.9, "test": 0.3}, {"train_and_test_alike"}),
        ({"test": float("nan")}, set()),
    ],
)
def test_checks(row: dict[str, object], failing: set[str]) -> None:
    checks = selection_checks(pd.DataFrame([GOOD, GOOD | row]))
    assert {check.name for check in checks if not check.passed} == failing
