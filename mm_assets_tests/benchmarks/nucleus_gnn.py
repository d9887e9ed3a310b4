"""Do the nuclei that the graph networks keep lie in lesions? And 100,000 nuclei on one slide.

Run as ``python -m mm_assets_tests.benchmarks.nucleus_gnn [patients [folds [cohorts]]]``. Graphs are
derived from the anatomy that demo slides are painted from (`mm_assets_tests.nuclei.planted`: traits
of the true nuclei with measurement errors, a noisy embedding, site stain). For every cohort seed,
task and fold, networks are fitted to the training patients; every figure is of test patients, one
AUROC a slide of importance against the planted `in_lesion`, then the mean over slides with a
bootstrap interval over patients. With outcomes dealt to other patients the outcome is predicted
at chance; what importance finds even then, it finds because tumour differs from what surrounds it.
"""

import resource
import sys
import time
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score

from mm_assets.models.folds import list_folds
from mm_assets.nuclei.gnn import GnnParameters, NucleusGnn
from mm_assets.nuclei.training import fit_gnn
from mm_assets_tests.models.simulation import shuffled, split
from mm_assets_tests.nuclei.planted import Planted, make_graph, plant

KINDS = ("classification", "survival")
MANY = 100_000
BOOTSTRAP = 2000


def unseen_slides(
    planted: Planted, kind: str, folds: int, deal: int | None = None
) -> Iterator[dict[str, object]]:
    """One row a test slide; `deal` seeds the dealing of outcomes to other patients."""
    endpoint = planted.endpoint(kind)
    if deal is not None:
        endpoint = shuffled(endpoint, deal)
    for fold in list_folds(split(endpoint.table.index, folds)):
        model = fit_gnn(planted.graphs, planted.manifest, endpoint, fold.train)
        for patient in fold.test:
            slide = f"{patient}-S1"
            graph, lesion = planted.graphs[slide], planted.in_lesion[slide]
            scores = model.scores(*graph)
            yield {
                "patient": patient,
                "fold": fold.fold,
                "severity": float(scores[-1] - (scores[0] if len(scores) > 1 else 0)),
                "importance": roc_auc_score(lesion, model.importance(*graph)),
                "attention": roc_auc_score(lesion, model.attention(*graph)),
                "kept in lesion": lesion[model.keep(*graph)].mean(),
                "all in lesion": lesion.mean(),
            }


def interval(values: pd.Series) -> str:
    """Mean with a 95 % bootstrap interval, and the least."""
    numbers = values.to_numpy(float)
    draws = np.random.default_rng(0).choice(numbers, (BOOTSTRAP, len(numbers))).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{numbers.mean():.3f} ({low:.3f} to {high:.3f}; least {numbers.min():.2f})"


def prediction(table: pd.DataFrame, planted: Planted, kind: str) -> float:
    """Mean over test folds of AUC or Harrell's C of the true outcome."""
    from lifelines.utils import concordance_index

    found = []
    for _, fold in table.groupby("fold"):
        truth = planted.endpoint(kind).table.loc[fold["patient"]]
        if kind == "survival":
            found.append(concordance_index(truth["time"], -fold["severity"], truth["event"]))
        else:
            found.append(roc_auc_score(truth["label"], fold["severity"]))
    return float(np.mean(found))


def study(patients: int, folds: int, cohorts: int) -> None:
    """Print importance against truth; with outcomes dealt anew for the first cohort only."""
    for deal, seeds in ((None, range(cohorts)), (1, range(1))):
        for kind in KINDS:
            print(kind if deal is None else f"{kind}, outcomes dealt to other patients")
            tables = []
            for seed in seeds:
                planted = plant(patients, seed)
                table = pd.DataFrame(unseen_slides(planted, kind, folds, deal))
                found = prediction(table, planted, kind)
                print(
                    f"  cohort {seed}: importance {table['importance'].mean():.3f}, attention "
                    f"{table['attention'].mean():.3f}; AUC or C of the outcome {found:.3f}",
                    flush=True,
                )
                tables.append(table)
            pooled = pd.concat(tables)
            for column in ("importance", "attention", "kept in lesion", "all in lesion"):
                print(f"  {column:15} {interval(pooled[column])}", flush=True)


def many_nuclei() -> None:
    """Time and memory of one slide with many nuclei."""
    rng = np.random.default_rng(0)
    small = plant(12, slides_px=(900, 1200))
    endpoint = small.classification
    model: NucleusGnn = fit_gnn(
        small.graphs, small.manifest, endpoint, endpoint.table.index, GnnParameters(epochs=2)
    )
    place = rng.uniform(0, 10_000, (MANY, 2))
    table = pd.DataFrame({"x": place[:, 0], "y": place[:, 1]}).sort_values(["y", "x"])
    table["radius"] = rng.lognormal(1.8, 0.2, MANY)
    table["aspect"] = rng.uniform(1, 2, MANY)
    table["darkness"] = rng.lognormal(0.2, 0.2, MANY)
    nodes, edges = make_graph(table, 0, rng)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    wall, cpu = time.perf_counter(), time.process_time()
    kept = model.keep(nodes, edges)
    print(
        f"{MANY} nuclei, {edges.num_rows} edges, {len(model.members)} networks: "
        f"{time.perf_counter() - wall:.1f} s wall, {time.process_time() - cpu:.1f} s CPU, "
        f"{kept.sum()} kept; peak memory of the process {before:.2f} GiB before, "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB after"
    )


def main() -> None:
    """Print all of it."""
    numbers = [int(argument) for argument in sys.argv[1:]]
    patients, folds, cohorts = [*numbers, *(120, 3, 2)[len(numbers) :]]
    torch.set_num_threads(1)
    many_nuclei()
    study(patients, folds, cohorts)


if __name__ == "__main__":
    main()
