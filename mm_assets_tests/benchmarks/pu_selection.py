"""Which tiles positive-unlabeled selection keeps, against the demo's planted lesions.

Run as ``python -m mm_assets_tests.benchmarks.pu_selection [FOLDER]``: writes the demo cohorts of
`SEEDS` and their tile embeddings (ResNet50, random weights) under FOLDER, where a second run finds
them, and prints a table a task. Scores are of held-out patients of five site-preserving folds;
a tile is a lesion when half of it is. Intervals are 95 % over resampled patients of all cohorts.
AUC is of scores ranked inside each fold, whose scales differ.

Measured (9,526 tiles of 348 patients, 36.8 % lesions; subtype, survival):

- Classes compared by the models' own log odds: naive AUC .56, .59 and Elkan-Noto the same, because
  the larger of two mirrored scores is large on both sides, also on that of normal tissue; nnPU .83,
  .80.
- With tail ratios to compare the classes: naive and Elkan-Noto .75, .79; nnPU .81, .84. They change
  nnPU little here, but keep its AUC at .99 instead of .85 where only one class has tiles of its own
  (`test_pu`): hence they are on.
- nnPU beats the naive classifier at equal calibration by .062 (.053 to .073) and .050 (.040 to
  .060), so it is the default; a model trained on the truth reaches .99.
- Its estimated prior keeps 16 and 14 % of the tiles with precision .91 and recall .39, .34; a fixed
  quarter has precision .85, .86 and recall .57, .59. Elkan and Noto's c takes overlap for
  negatives: it keeps 5 % with precision .97. The prior's share is the default: extrema are taken by
  single tiles, so a wrong tile costs more than a lesion tile left out.
- Training patients keep the same share as held-out ones (.152 against .157, .130 against .135).

The figures hold for this encoder, whose tiles vary along few directions: three or four components
carry 80 % of the variance, and a linear model of 32 that is told the truth finds lesions at .99.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import shapely
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mm_assets.cohort.clinical import Endpoint, make_endpoint, read_clinical
from mm_assets.cohort.config import (
    ClassificationTask,
    ClinicalConfig,
    EvaluationConfig,
    SurvivalTask,
)
from mm_assets.cohort.splits import make_splits
from mm_assets.encoders.registry import load_encoder
from mm_assets.models.folds import list_folds
from mm_assets.models.pu import PuParameters, fit_tile_scorers, sample_for
from mm_assets.models.tile_scorers import TileScorer
from mm_assets.synthetic.cohort import create_demo_cohort
from mm_assets.synthetic.truth import read_slide_plans, read_slide_truth
from mm_assets.wsi.embed import embed_slide
from mm_assets.wsi.slide import open_slide
from mm_assets.wsi.tiling import plan_tiles
from mm_assets.wsi.tissue import find_tissue

SEEDS, RESAMPLES, LESION_SHARE, FIXED_SHARE = (0, 1, 2), 300, 0.5, 0.25
TASKS = (
    ClassificationTask(
        kind="classification", name="subtype", column="subtype", classes=["IDC", "ILC"]
    ),
    SurvivalTask(kind="survival", name="survival", time="survival_months", event="event"),
)
VARIANTS = {
    "naive, log odds": PuParameters("naive", FIXED_SHARE, calibrated=False),
    "Elkan-Noto, log odds": PuParameters("elkan_noto", calibrated=False),
    "nnPU, log odds": PuParameters("nnpu", calibrated=False),
    "naive, tail ratios": PuParameters("naive", FIXED_SHARE),
    "Elkan-Noto, tail ratios": PuParameters("elkan_noto"),
    "nnPU, tail ratios": PuParameters("nnpu"),
    f"nnPU, tail ratios, {FIXED_SHARE:.0%}": PuParameters("nnpu", FIXED_SHARE),
}
ORACLE, BASELINE, CHOSEN = "trained on truth", "naive, tail ratios", "nnPU, tail ratios"


@dataclass(frozen=True)
class Tiles:
    """Tiles of a cohort: embeddings [n, D], patient and lesion [n]."""

    embeddings: NDArray[np.float16]
    patient: NDArray[np.str_]
    lesion: NDArray[np.bool_]

    def of(self, patients: list[str]) -> NDArray[np.bool_]:
        """Which tiles are of these patients."""
        return np.isin(self.patient, patients)


def embed(cohort: Path, folder: Path) -> None:
    """Tile embeddings of the cohort's good slides, one Arrow file each."""
    folder.mkdir(exist_ok=True)
    plans = read_slide_plans(cohort)
    encoder = load_encoder("resnet50", "random:0")
    for slide_id in plans.index[plans["state"] == "good"]:
        target = folder / f"{slide_id}.arrow"
        if target.exists():
            continue
        with open_slide(cohort / "slides" / f"{slide_id}.tiff") as slide:
            tissue = find_tissue(slide)
            plan = plan_tiles(
                slide.width,
                slide.height,
                slide.mpp,
                tissue.mask,
                tissue.downsample,
                target_mpp=0.5,
                tile_px=256,
                region_px=4096,
                min_tissue=0.5,
            )
            table = embed_slide(slide, plan, {"tiles": encoder}, {})["tiles"].combine_chunks()
        draft = target.with_suffix(".tmp")
        with pa.OSFile(str(draft), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        draft.rename(target)


def read(cohort: Path, folder: Path) -> Tiles:
    """Embeddings with the truth beside them."""
    owner = pd.read_csv(cohort / "slides.csv", index_col="slide_id")["patient_id"]
    values, patients, lesion = [], [], []
    for path in sorted(folder.glob("*.arrow")):
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all().combine_chunks()
        flat = table["embedding"].combine_chunks().flatten().to_numpy()
        values.append(flat.reshape(table.num_rows, -1))
        patients += [owner[path.stem]] * table.num_rows
        x, y, size0 = (table[name].to_numpy() for name in ("x", "y", "size0"))
        squares = shapely.box(x, y, x + size0, y + size0)
        covered = shapely.area(
            shapely.intersection(squares, read_slide_truth(cohort, path.stem).lesions)
        )
        lesion.append(covered >= LESION_SHARE * shapely.area(squares))
    return Tiles(np.concatenate(values), np.array(patients), np.concatenate(lesion))


def held_out(tiles: Tiles, endpoint: Endpoint, splits: pd.DataFrame, seed: int) -> pd.DataFrame:
    """A row a held-out tile and variant: patient, lesion, rank inside the fold, kept, and the
    share that the fold's scorer keeps of its training patients."""
    bags = [(patient, tiles.embeddings[tiles.patient == patient]) for patient in set(tiles.patient)]
    sample = sample_for(bags, endpoint, 0)
    rows = []
    for name, parameters in VARIANTS.items():
        scorers = fit_tile_scorers(sample, endpoint, splits, parameters)
        for fold in list_folds(splits):
            scorer, train = scorers[fold.repeat, fold.fold], tiles.of(fold.train)
            in_training = scorer.score(tiles.embeddings[train]) > scorer.cutoff
            rows.append(_rows(name, tiles, tiles.of(fold.test), *_judge(scorer, tiles, fold.test)))
            rows[-1]["train"] = in_training.mean()
    for fold in list_folds(splits):
        train, test = tiles.of(fold.train), tiles.of(fold.test)
        rows.append(_rows(ORACLE, tiles, test, *_oracle(tiles, train, test)))
    table = pd.concat(rows, ignore_index=True)
    return table.assign(patient=f"{seed}:" + table["patient"])


def _judge(
    scorer: TileScorer, tiles: Tiles, patients: list[str]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    score = scorer.score(tiles.embeddings[tiles.of(patients)])
    return score, score > scorer.cutoff


def _oracle(
    tiles: Tiles, train: NDArray[np.bool_], test: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """A linear model of 32 components that was told which training tiles are lesions."""
    model = make_pipeline(
        StandardScaler(), PCA(32, whiten=True, random_state=0), LogisticRegression()
    )
    model.fit(tiles.embeddings[train].astype(np.float32), tiles.lesion[train])
    score = model.decision_function(tiles.embeddings[test].astype(np.float32))
    return score, score > 0


def _rows(
    name: str,
    tiles: Tiles,
    test: NDArray[np.bool_],
    score: NDArray[np.floating],
    kept: NDArray[np.bool_],
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "variant": name,
            "patient": tiles.patient[test],
            "lesion": tiles.lesion[test],
            "rank": rankdata(score) / test.sum(),
            "kept": kept,
        }
    )


def measures(rows: pd.DataFrame, weight: NDArray[np.float64]) -> dict[str, float]:
    """AUC, share kept, precision and recall of weighted tiles."""
    lesion, kept = rows["lesion"].to_numpy(), rows["kept"].to_numpy()
    both = weight @ (lesion & kept)
    return {
        "AUC": roc_auc_score(lesion, rows["rank"], sample_weight=weight),
        "kept": weight @ kept / weight.sum(),
        "precision": both / (weight @ kept),
        "recall": both / (weight @ lesion),
    }


def summarize(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Table of the variants with intervals, and the paired difference of the chosen one's AUC."""
    patients = rows["patient"].unique()
    rng = np.random.default_rng(0)
    draws = [np.ones(len(patients))] + [
        np.bincount(rng.integers(0, len(patients), len(patients)), minlength=len(patients))
        for _ in range(RESAMPLES)
    ]
    lines, areas = [], {}
    for name, own in rows.groupby("variant", sort=False):
        place = pd.Index(patients).get_indexer(own["patient"])
        drawn = pd.DataFrame([measures(own, draw[place].astype(float)) for draw in draws])
        areas[name] = drawn["AUC"]
        low, high = drawn.iloc[1:].quantile(0.025), drawn.iloc[1:].quantile(0.975)
        line = {
            key: f"{drawn[key][0]:.3f} ({low[key]:.3f}-{high[key]:.3f})" for key in drawn.columns
        }
        lines.append({"variant": name, **line, "kept in training": f"{own['train'].mean():.3f}"})
    gain = areas[CHOSEN] - areas[BASELINE]
    low, high = gain[1:].quantile([0.025, 0.975])
    difference = f"AUC of {CHOSEN} - {BASELINE}: {gain[0]:+.3f} ({low:+.3f} to {high:+.3f})"
    return pd.DataFrame(lines), difference


def main() -> None:
    """Print a table a task, and the chosen variant for every cohort."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else scratch)
        cohorts = {}
        for seed in SEEDS:
            cohort, embeddings = folder / f"demo{seed}", folder / f"embeddings{seed}"
            create_demo_cohort(cohort, seed=seed)
            embed(cohort, embeddings)
            cohorts[seed] = cohort, read(cohort, embeddings)
        for task in TASKS:
            found = []
            for seed, (cohort, tiles) in cohorts.items():
                table = ClinicalConfig(table=str(cohort / "clinical.csv"))
                clinical, _ = read_clinical(table, [task])
                endpoint = make_endpoint(clinical, task)
                splits, _ = make_splits(endpoint, clinical, EvaluationConfig())
                found.append(held_out(tiles, endpoint, splits, seed))
            rows = pd.concat(found, ignore_index=True)
            one = rows[rows["variant"] == CHOSEN]
            print(
                f"\n{task.name}: {len(one)} tiles of {one['patient'].nunique()} patients, "
                f"{one['lesion'].mean():.3f} lesions (precision of keeping all)"
            )
            table, difference = summarize(rows)
            print(table.to_markdown(index=False))
            print(difference)
            for seed, own in one.groupby(one["patient"].str[0]):
                values = measures(own, np.ones(len(own)))
                print(f"seed {seed}:", ", ".join(f"{k} {v:.3f}" for k, v in values.items()))


if __name__ == "__main__":
    main()
