"""Steps as tasks of ECS: of their run's task definition, or of one with a GPU."""

from typing import Any

import dagster as dg
from dagster._core.definitions.executor_definition import multiple_process_executor_requirements
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.step_delegating import StepDelegatingExecutor
from dagster_aws.ecs import EcsRunLauncher
from dagster_aws.ecs.executor import EcsStepHandler


class StepTasks(EcsStepHandler):
    """Starts a step's task by the capacity provider that the step's tags name, if they do."""

    def _get_run_task_kwargs(self, *words: Any, **named: Any) -> dict[str, Any]:
        # Dagster adds what one step asks for to the settings of all, where the next would find it.
        self._run_task_kwargs.pop("overrides", None)
        return super()._get_run_task_kwargs(*words, **named)

    def _run_task(self, **request: Any) -> Any:
        # The run's own task has a launch type, which is handed on, and AWS takes one or the other.
        if "capacityProviderStrategy" in request:
            request.pop("launchType", None)
        return super()._run_task(**request)


@dg.executor(name="ecs", requirements=multiple_process_executor_requirements())
def ecs_step_executor(context: dg.InitExecutorContext) -> StepDelegatingExecutor:
    """Every step is a task as large as its asset's `Compute` says.

    Raises
    ------
    ValueError
        When runs are not tasks themselves: a step's network is its run's.
    """
    launcher = context.instance.run_launcher
    if not isinstance(launcher, EcsRunLauncher):
        raise ValueError("MM_ENGINE=ecs: append deploy/ecs/run_launcher.yaml to dagster.yaml")
    handler = StepTasks(
        launcher,
        run_task_kwargs=None,
        cpu=None,
        memory=None,
        ephemeral_storage=None,
        task_overrides=None,
    )
    return StepDelegatingExecutor(handler, retries=RetryMode.ENABLED, should_verify_step=True)
