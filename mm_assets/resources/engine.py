"""What executes the steps of runs: the run's own process, or a cluster that is there already."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from mm_assets.cohort.problems import CohortError

LOCAL, RAY, KUBERNETES, ECS = "local", "ray", "k8s", "ecs"


def engine() -> str:
    """The engine that `MM_ENGINE` names.

    Raises
    ------
    ValueError
        When there is none of that name.
    """
    name = os.environ.get("MM_ENGINE", LOCAL)
    if name not in (LOCAL, RAY, KUBERNETES, ECS):
        raise ValueError(f"MM_ENGINE={name}: there are {LOCAL}, {RAY}, {KUBERNETES} and {ECS}")
    return name


def step_executor() -> dg.ExecutorDefinition:
    """Executor of all runs."""
    match engine():
        case "ray":
            from dagster_ray import ray_executor

            return ray_executor
        case "k8s":
            from dagster_k8s import k8s_job_executor

            return k8s_job_executor
        case "ecs":
            from mm_assets.resources.ecs_steps import ecs_step_executor

            return ecs_step_executor
        case _:
            return dg.in_process_executor


def retry_policy() -> dg.RetryPolicy | None:
    """Steps of a cluster are tried again, because a worker may be lost with them."""
    return None if engine() == LOCAL else dg.RetryPolicy(max_retries=3, delay=5)


@contextmanager
def final_failures() -> Iterator[None]:
    """What a step raises itself would come again: the retry policy is not for that.

    Raises
    ------
    dagster.Failure
        In place of any exception, without retries.
    """
    try:
        yield
    except dg.Failure:
        raise
    except Exception as error:
        ours = isinstance(error, CohortError)
        reason = str(error) if ours else f"{type(error).__name__}: {error}"
        raise dg.Failure(reason, allow_retries=False) from error
