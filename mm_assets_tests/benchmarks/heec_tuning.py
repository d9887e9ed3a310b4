"""What does tuning bring to HEEC on real tables?

Run as ``python -m mm_assets_tests.benchmarks.heec_tuning FOLDER NAME --trials N --cache DIR``:
omics and clinical columns of PORPOISE's published tables in FOLDER, official folds. Every fold is
kept in DIR, where a run that was cut short goes on. Differences are paired as in `heec_promise`.

Measured, survival, omics and clinical, 20 trials (1 to 6 minutes a fold on a loaded core): BRCA
.669 (.615 to .723) by default, .655 tuned, difference -.014 (-.041 to .010); COADREAD .671 (.607 to
.736), .659, -.012 (-.036 to .013). What the best trial gains on the inner folds does not show on
the test folds, so that tuning is off by default.
"""

import argparse
import time
from pathlib import Path

import pandas as pd

from mm_assets.models.features import Variant
from mm_assets.models.heec_folds import run_folds
from mm_assets.models.heec_parameters import HeecParameters, TuningBudget
from mm_assets_tests.benchmarks.heec_cohorts import TCGA_TASKS, Measured, tcga_cohort
from mm_assets_tests.benchmarks.heec_promise import draws, show


def of_fold(
    measured: Measured, fold: int, variant: Variant, trials: int, file: Path
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predictions and trials of one fold, from the file if they are there."""
    tried = file.with_suffix(".trials.parquet")
    if not file.exists():
        start = time.perf_counter()
        found = [pd.DataFrame()]
        predictions = run_folds(
            measured.blocks,
            measured.endpoint,
            measured.splits[measured.splits["fold"] == fold],
            variants=[variant],
            parameters=HeecParameters(tuning=TuningBudget(trials)),
            sites=measured.sites,
            log_trials=found.append,
        )
        pd.concat(found).to_parquet(tried)
        predictions.to_parquet(file)
        print(f"{file.stem}: {time.perf_counter() - start:.0f} s", flush=True)
    return pd.read_parquet(file), pd.read_parquet(tried)


def main() -> None:
    """Print default, tuned and difference; then what each fold's search found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("name")
    parser.add_argument("--task", default="survival")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--omics", action="store_true", help="omics alone")
    parser.add_argument("--cache", type=Path, required=True)
    given = parser.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)
    task = next(task for task in TCGA_TASKS if task.name == given.task)
    measured = tcga_cohort(given.folder, given.name, task)
    label = "omics" if given.omics else "all"
    variant = Variant("heec", clinical=not given.omics)
    columns = {}
    for trials in (0, given.trials):
        tables, found = [], []
        for fold in sorted(measured.splits["fold"].unique()):
            file = given.cache / f"{given.name}_{task.name}_{label}_{trials}_{fold}.parquet"
            predictions, tried = of_fold(measured, int(fold), variant, trials, file)
            tables.append(predictions)
            found.append(tried)
        columns[trials] = draws(measured, pd.concat(tables, ignore_index=True))["heec"]
    print(f"{given.name} {task.name}, {label}: default {show(columns[0])}")
    print(f"{given.trials} trials {show(columns[given.trials])}")
    print(f"tuned - default {show(columns[given.trials] - columns[0], '+')}")
    trials = pd.concat(found, ignore_index=True)
    best = trials.loc[trials.groupby("fold")["gain"].idxmax()]
    default = trials[trials["trial"] == 0].set_index("fold")["gain"]
    best = best.assign(default_gain=default.loc[best["fold"]].to_numpy())
    print(best.round(4).to_string(index=False))


if __name__ == "__main__":
    main()
