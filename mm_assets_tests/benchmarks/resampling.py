"""How long an evaluation takes: all metrics and pairs of models on every bootstrap resample.

    python -m mm_assets_tests.benchmarks.resampling

Made-up predictions, 5 folds; survival at twenty months, three of them horizons (as
the platform stores them), two classes with threshold. The whole of `evaluate` is timed: metrics,
differences of every pair, subgroups, calibration, risk groups, decisions.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np

from mm_assets.cohort.config import SurvivalTask
from mm_assets.evaluation.comparison import evaluate
from mm_assets_tests.evaluation.made_up import HORIZONS, Task, class_task, survival_task


def with_curve(task: Task) -> Task:
    """Survival at every month at which the platform's models predict it."""
    named = SurvivalTask(
        name="survival", kind="survival", time="time", event="event", horizons=list(HORIZONS)
    )
    rows = task.predictions
    hazard = -np.log(rows["survival_12"]) / 12
    for month in named.prediction_months:
        rows[f"survival_{month:g}"] = np.exp(-month * hazard)
    return task


def main() -> None:
    """Time both kinds of task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patients", type=int, default=1000)
    parser.add_argument("--models", type=int, default=6)
    parser.add_argument("--resamples", type=int, default=1000)
    arguments = parser.parse_args()
    noise = {f"model{number}": 1.0 + number for number in range(arguments.models)}
    makers: dict[str, Callable[[], Task]] = {
        "survival": lambda: with_curve(survival_task(arguments.patients, noise)),
        "two classes": lambda: class_task(arguments.patients, noise),
    }
    for name, make in makers.items():
        task = make()
        started, computed = time.perf_counter(), time.process_time()
        found = evaluate(*task.arguments, horizons=HORIZONS, bootstrap=arguments.resamples)
        print(
            f"{name}: {time.perf_counter() - started:.1f} s, "
            f"{time.process_time() - computed:.1f} s of CPU; "
            f"{found.metrics['metric'].nunique()} metrics, {len(found.differences)} differences"
        )


if __name__ == "__main__":
    main()
