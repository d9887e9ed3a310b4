"""Stage `heec_settings_T`: settings of HEEC that a tuning service finds, search by search.

Every variant in every fold has a search of its own, and so has the final model: a trial is judged
on inner folds of the training patients of that fold alone, as by the search beside Dagster.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mm_assets.assets.compute import Compute
from mm_assets.assets.extremum import extremum_name
from mm_assets.assets.heec_inputs import (
    HeecInputs,
    count_searches,
    heec_compute,
    heec_inputs,
    heec_parameters,
)
from mm_assets.assets.omics import CLINICAL, OMICS, filtered_omics_name, splits_name
from mm_assets.assets.progress import Progress
from mm_assets.assets.stage import CohortStage, Job, Produced, Trials, Workspace
from mm_assets.cohort.config import CohortConfig, Task

if TYPE_CHECKING:
    import pandas as pd

    from mm_assets.models.heec_folds import Search, Settings
    from mm_assets.resources.sagemaker_tuning import Trial

PLACE = ("model", "repeat", "fold")


def heec_settings_name(task: Task) -> str:
    """Asset name of the settings of a task's HEEC."""
    return f"heec_settings_{task.name}"


def searches_elsewhere(config: CohortConfig) -> bool:
    """Whether a tuning service searches for HEEC's settings."""
    tuning = config.heec.tuning
    return tuning.backend != "optuna" and tuning.trials > 1


def heec_settings_stages(config: CohortConfig, task: Task) -> list[CohortStage]:
    """`heec_settings_T`, where a tuning service searches."""
    if not searches_elsewhere(config) or not (config.slides or config.omics):
        return []
    omics = (OMICS, filtered_omics_name(task)) if config.omics else ()
    slides = (extremum_name(task),) if config.slides else ()
    stage = CohortStage(
        outputs=(heec_settings_name(task),),
        upstream=(CLINICAL, splits_name(task), *omics, *slides),
        group="models",
        code_version="1",
        description="Settings of HEEC found by tuning jobs of SageMaker: every trial of every "
        "variant and fold, judged on inner folds of its training patients.",
        kinds=frozenset({"lightgbm"}),
        compute=heec_compute(),
        parameters=heec_parameters(config, task),
        run=lambda job: _search(job, task, stage.compute_for(config)),
        trials=Trials(
            judge=lambda job, told: _judge(job, task, told),
            count=lambda workspace: _count_trials(workspace, task),
        ),
    )
    return [stage]


def best_settings(table: "pd.DataFrame") -> "Settings":
    """The best trial of every search."""
    from mm_assets.models.heec_folds import Search

    best = table[table["best"]].drop(columns=["trial", "gain", "seconds", "best"])
    return {
        Search(*(row.pop(key) for key in PLACE)): {
            str(name): value for name, value in row.items() if value == value
        }
        for row in best.to_dict("records")
    }


def _count_trials(workspace: Workspace, task: Task) -> int | None:
    searches = count_searches(workspace, task)
    return None if searches is None else searches * workspace.config.heec.tuning.trials


def _search(job: Job, task: Task, compute: Compute) -> Produced:
    import pandas as pd

    from mm_assets.models.heec_folds import searches
    from mm_assets.resources.launcher import job_order
    from mm_assets.resources.sagemaker_tuning import TuningJobs, TuningSearch

    space, name = job.workspace, heec_settings_name(task)
    tuning, read = space.config.heec.tuning, heec_inputs(job, task)
    wanted = {
        search: TuningSearch(
            {"stage": name, **{key: str(getattr(search, key)) for key in PLACE}}, ranges
        )
        for search, ranges in searches(
            read.blocks, read.splits, read.variants, read.parameters
        ).items()
    }
    order, files = job_order(space.config, space.store, space.tracking)
    order["fingerprint"] = job.provenance[name].fingerprint()
    service = TuningJobs(space, name, compute, tuning.trials, tuning.parallel)
    progress = Progress(f"{space.config.cohort}/{name}", len(wanted), space.log)
    found = service.run(wanted, order, files, progress.advance)
    table = pd.concat([_rows(search, found[search]) for search in wanted], ignore_index=True)
    digest = space.store.write_table(job.ref(name, "parquet"), table, job.provenance[name])
    failed = tuning.trials * len(wanted) - len(table)
    shown = {"searches": len(wanted), "trials": len(table), "failed_trials": failed}
    return Produced({"parquet": digest}, shown, seconds=service.seconds)


def _rows(search: "Search", trials: "list[Trial]") -> "pd.DataFrame":
    """A row a trial, best or not."""
    import pandas as pd

    best = max(trials, key=lambda trial: trial.gain)
    return pd.DataFrame(
        [
            {
                **{key: getattr(search, key) for key in PLACE},
                "trial": number,
                "gain": trial.gain,
                "seconds": trial.seconds,
                **trial.settings,
                "best": trial is best,
            }
            for number, trial in enumerate(trials)
        ]
    )


def _judge(job: Job, task: Task, told: Mapping[str, str]) -> float:
    """What one trial gains; `told` are the hyper-parameters that its job was given."""
    from mm_assets.models.heec_folds import Search, judge_search, searches

    read = heec_inputs(job, task)
    search = Search(told["model"], int(told["repeat"]), int(told["fold"]))
    space = searches(read.blocks, read.splits, read.variants, read.parameters)[search]
    settings = {name: limits.parse(told[name]) for name, limits in space.items()}
    return judge_search(search, settings, **_arguments(read))


def _arguments(read: HeecInputs) -> dict[str, Any]:
    return {name: value for name, value in vars(read).items() if name != "filtered"}
