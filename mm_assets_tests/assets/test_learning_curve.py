"""The learning curve as an asset: only where it is asked for, and a concern of the report alone."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from mm_assets.assets.graph import cohort_stages
from mm_assets.cohort.config import CohortConfig, EvaluationConfig, SurvivalTask


def config_of(folder: Path, **evaluation: object) -> CohortConfig:
    return CohortConfig.model_validate(
        {
            "cohort": "tiny",
            "clinical": {"table": str(folder / "clinical.csv")},
            "omics": {"kind": "wide", "path": str(folder / "omics.csv")},
            "slides": {"root": str(folder / "slides")},
            "tasks": [{"name": "survival", "kind": "survival", "time": "time", "event": "event"}],
            "evaluation": evaluation,
        }
    )


def test_it_is_made_only_when_asked_for_and_changes_no_other_stage_but_the_report(
    tmp_path: Path,
) -> None:
    plain = {stage.name: stage for stage in cohort_stages(config_of(tmp_path))}
    asked = {stage.name: stage for stage in cohort_stages(config_of(tmp_path, learning_curve={}))}
    assert set(asked) - set(plain) == {"learning_curve_survival"}
    for name, stage in plain.items():
        assert stage.parameters == asked[name].parameters, name
        added = set(asked[name].upstream) - set(stage.upstream)
        assert added == ({"learning_curve_survival"} if name == "evaluation_survival" else set())
    # Slides are read as they are before any selection has learned from outcomes.
    assert asked["learning_curve_survival"].upstream == (
        *("clinical", "splits_survival", "omics", "extremum_vectors_survival"),
    )


@pytest.mark.parametrize("settings", [{"shares": []}, {"shares": [1.0]}, {"draws": 0}])
def test_nonsense_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        EvaluationConfig.model_validate({"learning_curve": settings})


def test_survival_is_predicted_at_the_horizons_and_twenty_steps() -> None:
    named = {"name": "survival", "kind": "survival", "time": "time", "event": "event"}
    task = SurvivalTask.model_validate({**named, "horizons": [12.0, 50.0]})
    months = task.prediction_months
    assert len(months) == 21
    assert set(months) > {2.5, 12.0, 47.5, 50.0}
    assert months == tuple(sorted(months))
    for horizons in ([], [0.0], [-12.0]):
        with pytest.raises(ValidationError):
            SurvivalTask.model_validate({**named, "horizons": horizons})
