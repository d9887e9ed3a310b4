"""Which engine executes steps, and what it tries again."""

import dagster as dg
import pytest

from mm_assets.assets.compute import Compute
from mm_assets.cohort.problems import CohortError, Problem
from mm_assets.resources.engine import engine, final_failures, retry_policy, step_executor


@pytest.mark.parametrize(
    ("name", "executor"), [("local", "in_process"), ("ray", "ray"), ("k8s", "k8s"), ("ecs", "ecs")]
)
def test_engines_by_name(monkeypatch: pytest.MonkeyPatch, name: str, executor: str) -> None:
    monkeypatch.setenv("MM_ENGINE", name)
    assert engine() == name
    assert step_executor().name == executor
    # A cluster hands out its devices itself, and may lose a machine with a step.
    assert (Compute(gpu=1).pool is None) == (name != "local")
    assert (retry_policy() is None) == (name == "local")


def test_an_unknown_engine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MM_ENGINE", "slurm")
    with pytest.raises(ValueError, match="MM_ENGINE=slurm: there are local, ray, k8s and ecs"):
        engine()


def test_a_step_that_fails_by_itself_is_not_tried_again() -> None:
    tries = []

    @dg.asset(retry_policy=dg.RetryPolicy(max_retries=3))
    def broken() -> None:
        with final_failures():
            tries.append(1)
            raise OSError("the disk is full")

    result = dg.materialize([broken], instance=dg.DagsterInstance.ephemeral(), raise_on_error=False)
    (event,) = result.get_step_failure_events()
    data = event.step_failure_data.user_failure_data
    assert data is not None
    assert data.description == "OSError: the disk is full"
    assert len(tries) == 1


def test_problems_of_a_cohort_are_told_in_their_own_words() -> None:
    problem = CohortError([Problem("clinical.csv", "row 3", "no endpoint")])
    with pytest.raises(dg.Failure) as failure, final_failures():
        raise problem
    assert failure.value.description == str(problem)
    assert not failure.value.allow_retries
