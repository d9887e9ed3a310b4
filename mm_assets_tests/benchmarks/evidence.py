"""Does evidence lie in planted lesions? On the demo cohort, out-of-fold.

Run as ``MM_HOME=... python -m mm_assets_tests.benchmarks.evidence [cohort]`` on a demo cohort of
which `extremum_vectors_survival`, `filtered_omics_survival` and what they read have been made.

For every fold the model is fitted to the training patients and explains the test patients. High
risk is a predicted risk above the training patients' median. Contributions are summed by place, all
places of high-risk patients are ranked together by what they add to the risk, and of the first 20
the share counts whose centre lies in a planted lesion. Chance is that share among all instances of
the same level on the same slide, averaged over the 20; beside it stands the share among all places
that add to the risk, however little. Intervals are bootstraps over the high-risk patients, each
draw ranked anew, the fitted models held fixed; where all 20 agree the exact binomial interval,
which takes them for independent, is wider. A region covers a whole slide of the demo, so that its
centre says nothing.
"""

import sys
from functools import cache

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from scipy.stats import binomtest

from mm_assets.assets.extremum import extremum_name
from mm_assets.assets.omics import CLINICAL, OMICS, filtered_omics_name, splits_name
from mm_assets.assets.stage import Workspace
from mm_assets.cli import workspace
from mm_assets.cohort.clinical import covariate_columns, make_endpoint
from mm_assets.cohort.config import Task
from mm_assets.cohort.folders import mm_home
from mm_assets.cohort.manifest import read_manifest
from mm_assets.explain.backtrack import rank_features, rank_instances
from mm_assets.explain.contributions import explain_heec, feature_values
from mm_assets.models.extremum import of_fold, patient_extrema, patient_matrix
from mm_assets.models.features import FeatureBlocks, Variant
from mm_assets.models.folds import Fold, list_folds
from mm_assets.models.heec import HeecModel, fit_heec
from mm_assets.models.heec_parameters import HeecParameters
from mm_assets.resources.store import COHORT, ArtefactRef
from mm_assets.synthetic.truth import read_slide_truth

TOP, DRAWS = 20, 1000
INSTANCES = {"tile": "tile_embeddings", "region": "region_embeddings", "nucleus": "nucleus_graph"}
VARIANTS = (Variant("heec"), Variant("heec_imaging", omics=False, clinical=False))


class Demo:
    """What the benchmark reads of a cohort."""

    def __init__(self, space: Workspace, task: Task) -> None:
        config = space.config
        assert config.slides is not None
        self.space, self.task = space, task
        self.clinical = self.table(CLINICAL)
        self.endpoint = make_endpoint(self.clinical, task)
        self.omics, self.filtered = self.table(OMICS), self.table(filtered_omics_name(task))
        self.folds = list_folds(self.table(splits_name(task)))
        self.manifest, _ = read_manifest(config.slides)
        name = extremum_name(task)
        slides = space.receipts.read_many(config.cohort, name, self.manifest["slide_id"])
        self.extrema = {s: self.table(name, s) for s, r in slides.items() if r.state == "done"}
        self.truth = cache(lambda slide: read_slide_truth(mm_home() / "cohorts" / "demo", slide))
        self.chance = cache(self._chance)

    def table(self, asset: str, name: str = COHORT) -> pd.DataFrame:
        """A table of the store."""
        ref = ArtefactRef(self.space.config.cohort, asset, name, "parquet")
        return self.space.store.read_table(ref)

    def in_lesion(self, slide: str, x: NDArray, y: NDArray, size0: NDArray) -> NDArray[np.bool_]:
        """Whether the centres of squares lie in a lesion."""
        inside: NDArray[np.bool_] = shapely.contains_xy(
            self.truth(slide).lesions, x + size0 / 2, y + size0 / 2
        )
        return inside

    def _chance(self, slide: str, level: str) -> float:
        """Share of a slide's instances whose centre lies in a lesion."""
        ref = ArtefactRef(self.space.config.cohort, INSTANCES[level], slide, "arrow")
        table = self.space.store.read_arrow(ref)
        x, y, size0 = (table[name].to_numpy() for name in ("x", "y", "size0"))
        return float(self.in_lesion(slide, x, y, size0).mean())


def blocks_of(demo: Demo, fold: Fold) -> tuple[FeatureBlocks, dict[str, pd.DataFrame]]:
    """Features of a fold, and the extrema behind them by patient."""
    config = demo.space.config
    by_slide = {s: of_fold(e, fold.repeat, fold.fold) for s, e in demo.extrema.items()}
    columns = covariate_columns(demo.clinical, config.clinical, demo.task)
    blocks = FeatureBlocks(
        patient_matrix(by_slide, demo.manifest), demo.omics, demo.clinical[columns]
    )
    return blocks, patient_extrema(by_slide, demo.manifest)


def fit(demo: Demo, blocks: FeatureBlocks, fold: Fold) -> HeecModel:
    """The model of a fold, as `heec_T` fits it."""
    evaluation = demo.space.config.evaluation
    filtered = demo.filtered
    known = filtered[(filtered["repeat"] == fold.repeat) & (filtered["fold"] == fold.fold)]
    return fit_heec(
        blocks,
        demo.endpoint,
        fold.train,
        parameters=HeecParameters(omics_features=evaluation.omics_features),
        filtered_omics=known if blocks.omics is not None else None,
        sites=demo.clinical["site"] if evaluation.preserve_sites else None,
    )


def places(
    demo: Demo,
    model: HeecModel,
    blocks: FeatureBlocks,
    extrema: dict[str, pd.DataFrame],
    fold: Fold,
) -> pd.DataFrame:
    """Places behind the predictions of the fold's high-risk test patients."""
    test = [patient for patient in fold.test if patient in extrema]
    frame = blocks.frame(test)
    predicted = model.predict(frame)
    contributions, values = explain_heec(model, frame).table, feature_values(model, frame)
    rows = []
    for patient in predicted.index[predicted["risk"] > predicted["risk_cut"]]:
        items = rank_features(contributions.loc[patient], values.loc[patient], extrema[patient], [])
        for found in rank_instances(items):
            x, y, size0 = (np.array([v]) for v in (found.x, found.y, found.size0))
            rows.append(
                {
                    "patient": patient,
                    "level": found.level,
                    "score": found.score,
                    "lesion": bool(demo.in_lesion(found.slide_id, x, y, size0)[0]),
                    "chance": demo.chance(found.slide_id, found.level),
                }
            )
    return pd.DataFrame(rows, columns=["patient", "level", "score", "lesion", "chance"])


def report(name: str, found: pd.DataFrame) -> None:
    """Print share and chance among the places that add most to the risk."""
    raising = found[found["score"] > 0]
    if raising.empty:
        print(f"{name:34} no place adds to the risk")
        return
    by_patient = {
        p: rows.to_numpy() for p, rows in raising.groupby("patient")[["score", "lesion", "chance"]]
    }
    patients = list(by_patient)
    rng = np.random.default_rng(0)

    def top(chosen: list[str]) -> NDArray[np.float64]:
        rows = np.concatenate([by_patient[patient] for patient in chosen]).astype(np.float64)
        best = rows[np.argsort(-rows[:, 0], kind="stable")[:TOP]]
        return best[:, 1:].mean(axis=0)

    share, chance = top(patients)
    draws = np.array([top(list(rng.choice(patients, len(patients)))) for _ in range(DRAWS)])
    low, high = np.quantile(draws[:, 0], (0.025, 0.975))
    over = np.quantile(draws[:, 0] - draws[:, 1], (0.025, 0.975))
    best = raising.nlargest(TOP, "score")
    exact = binomtest(int(best["lesion"].sum()), len(best)).proportion_ci()
    print(
        f"{name:24} {share:.0%} (bootstrap {low:.0%} to {high:.0%}, binomial {exact.low:.0%} to "
        f"{exact.high:.0%}), chance {chance:.0%}, difference {share - chance:+.0%} "
        f"({over[0]:+.0%} to {over[1]:+.0%}); from {best['patient'].nunique()} of {len(patients)} "
        f"patients; all {len(raising)} places {raising['lesion'].mean():.0%}, "
        f"chance {raising['chance'].mean():.0%}",
        flush=True,
    )


def main() -> None:
    """Print a line a variant and level."""
    space = workspace(sys.argv[1] if len(sys.argv) > 1 else "demo")
    task = next(task for task in space.config.tasks if task.kind == "survival")
    demo = Demo(space, task)
    found: dict[str, list[pd.DataFrame]] = {variant.name: [] for variant in VARIANTS}
    for fold in demo.folds:
        blocks, extrema = blocks_of(demo, fold)
        for variant in VARIANTS:
            chosen = variant.select(blocks)
            model = fit(demo, chosen, fold)
            found[variant.name].append(places(demo, model, chosen, extrema, fold))
            votes = ", ".join(f"{name} {vote:g}" for name, vote in model.votes.items())
            print(f"{variant.name} fold {fold.fold}: votes {votes}", flush=True)
    print(f"share of the first {TOP} places in lesions (95 % interval)")
    for name, tables in found.items():
        table = pd.concat(tables, ignore_index=True)
        report(f"{name}, all levels", table)
        for level in sorted(table["level"].unique()):
            report(f"{name}, {level}", table[table["level"] == level])


if __name__ == "__main__":
    main()
