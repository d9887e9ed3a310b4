"""Models of omics and clinical columns on real tables: PORPOISE's network, HEEC, and Cox.

Run as ``python -m mm_assets_tests.benchmarks.omics_models FOLDER NAME --task T --cache DIR``, NAME
being ``brca`` or ``coadread``: PORPOISE's published table in FOLDER, official folds. Predictions
are kept in DIR, where a run that was cut short goes on. Intervals and differences are those of
`heec_promise`: the mean over test folds, 2,000 patient-level resamples inside them, fitted models
held fixed. Figures of the network are means over seeds.

Practice is to report the epoch that is best on each test fold. What that adds is shown as a
difference, on the true outcomes and on outcomes dealt to other patients, and never as a result.
Figures are in the README.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mm_assets.models.clinical import run_clinical_folds
from mm_assets.models.features import Variant
from mm_assets.models.folds import Fold, list_folds
from mm_assets.models.heec_folds import run_folds
from mm_assets.models.porpoise.fitting import PorpoiseParameters, fit_porpoise
from mm_assets.models.porpoise.model import Cohort
from mm_assets.models.porpoise.training import TrainingParameters
from mm_assets_tests.benchmarks.heec_cohorts import TCGA_TASKS, Measured, tcga_cohort
from mm_assets_tests.benchmarks.heec_promise import draws, show
from mm_assets_tests.models.simulation import shuffled

LAST, INNER, LEAK = "snn, last epoch", "snn, inner early stopping", "best epoch on the test fold"
HEEC = [Variant("heec_omics", imaging=False, clinical=False), Variant("heec")]


def kept(path: Path, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """What `make` gives, from the file if an earlier run left it there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        make().to_parquet(path.with_suffix(".tmp"))
        path.with_suffix(".tmp").rename(path)
        print(f"made {path.name}", flush=True)
    return pd.read_parquet(path)


def by_epoch(measured: Measured, seed: int) -> pd.DataFrame:
    """Predictions of the network after every epoch; column model is the number of the epoch."""
    cohort, tables = Cohort(omics=measured.blocks.omics), []
    for fold in list_folds(measured.splits):
        with TemporaryDirectory() as folder:
            for epochs in range(1, TrainingParameters.epochs + 1):
                training = TrainingParameters(epochs=epochs, seed=seed)
                model = fit_porpoise(
                    "snn",
                    cohort,
                    measured.endpoint,
                    fold.train,
                    parameters=PorpoiseParameters(training=training),
                    checkpoint=Path(folder, "fold.pt"),
                )
                predicted = model.predict_patients(cohort, fold.test)
                tables.append(fold.label(predicted, str(epochs)))
    return pd.concat(tables, ignore_index=True)


def inner_stopped(measured: Measured, seed: int) -> pd.DataFrame:
    """Predictions of the network whose epoch a fifth of the training patients chose."""
    cohort = Cohort(omics=measured.blocks.omics)
    parameters = PorpoiseParameters(True, TrainingParameters(seed=seed))

    def predict(fold: Fold) -> pd.DataFrame:
        model = fit_porpoise(
            "snn",
            cohort,
            measured.endpoint,
            fold.train,
            parameters=parameters,
            sites=measured.sites,
        )
        return fold.label(model.predict_patients(cohort, fold.test), INNER)

    return pd.concat([predict(fold) for fold in list_folds(measured.splits)], ignore_index=True)


def best_on_test(measured: Measured, table: pd.DataFrame) -> pd.DataFrame:
    """The leak: predictions of the epoch that scores best on the test patients of each fold."""
    chosen = []
    for fold in sorted(table["fold"].unique()):
        rows = table[table["fold"] == fold]
        one = replace(measured, splits=measured.splits[measured.splits["fold"] == fold])
        scores = {epoch: values[0] for epoch, values in draws(one, rows, 1).items()}
        best = max(scores, key=scores.__getitem__)
        chosen.append(rows[rows["model"] == best])
    return pd.concat(chosen, ignore_index=True).assign(model=LEAK)


def network_draws(measured: Measured, file: Path, seed: int) -> dict[str, NDArray[np.float64]]:
    """Last epoch, and best epoch on the test fold."""
    path = file.with_name(f"{file.name}_epochs_{seed}.parquet")
    table = kept(path, lambda: by_epoch(measured, seed))
    last = table[table["model"] == str(TrainingParameters.epochs)].assign(model=LAST)
    found = draws(measured, pd.concat([last, best_on_test(measured, table)]))
    print(f"  seed {seed}: last epoch {found[LAST][0]:.3f}", flush=True)
    return found


def dealt(measured: Measured, seed: int) -> Measured:
    """The cohort with its outcomes dealt to other patients."""
    endpoint = shuffled(measured.endpoint, seed)
    return replace(measured, endpoint=replace(endpoint, classes=measured.endpoint.classes))


def mean(tables: Sequence[dict[str, NDArray[np.float64]]]) -> dict[str, NDArray[np.float64]]:
    """Draw by draw."""
    return {name: np.mean([table[name] for table in tables], axis=0) for name in tables[0]}


def main() -> None:
    """Print a row a model, then what choosing the epoch on the test fold adds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("name", choices=["brca", "coadread"])
    parser.add_argument("--task", default="survival")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cache", type=Path, required=True)
    given = parser.parse_args()
    task = next(task for task in TCGA_TASKS if task.name == given.task)
    measured, seeds = tcga_cohort(given.folder, given.name, task), range(given.seeds)
    file: Path = given.cache / f"{given.name}_{given.task}"
    blocks, clinical = measured.blocks, measured.blocks.clinical
    assert clinical is not None
    print(f"{given.name} {given.task}: {len(measured.endpoint.table)} patients, official folds")
    rows = mean([network_draws(measured, file, seed) for seed in seeds])
    leak = rows.pop(LEAK)
    stopped = [
        kept(
            file.with_name(f"{file.name}_inner_{seed}.parquet"),
            lambda seed=seed: inner_stopped(measured, seed),
        )
        for seed in seeds
    ]
    rows |= mean([draws(measured, table) for table in stopped])
    baseline = run_clinical_folds(clinical, measured.endpoint, measured.splits)
    rows |= draws(measured, baseline)
    boosted = kept(
        file.with_name(f"{file.name}_heec.parquet"),
        lambda: run_folds(
            blocks, measured.endpoint, measured.splits, (), HEEC, sites=measured.sites
        ),
    )
    rows |= draws(measured, boosted)
    for name, values in rows.items():
        print(f"  {name:28} {show(values)}")
    for name in (LAST, INNER, "heec_omics"):
        print(f"  heec - {name:21} {show(rows['heec'] - rows[name], '+')}")
    print(f"not results; {LEAK}, minus the last: {show(leak - rows[LAST], '+')}")
    deal = file.with_name(f"{file.name}_dealt")
    noise = mean([network_draws(dealt(measured, seed), deal, seed) for seed in seeds])
    print(f"  of outcomes dealt to others: last {show(noise[LAST])}, best {show(noise[LEAK])}")


if __name__ == "__main__":
    main()
