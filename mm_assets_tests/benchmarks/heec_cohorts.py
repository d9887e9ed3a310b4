"""Cohorts on which HEEC is measured: generated demo cohorts and real TCGA tables."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pandas as pd
import pyarrow as pa

from mm_assets.cohort.clinical import Endpoint, covariate_columns, make_endpoint, read_clinical
from mm_assets.cohort.config import (
    ClassificationTask,
    ClinicalConfig,
    EvaluationConfig,
    OmicsConfig,
    SurvivalTask,
)
from mm_assets.cohort.splits import make_splits, read_splits
from mm_assets.encoders.registry import load_encoder
from mm_assets.models.extremum import encode_extrema, of_all, of_fold, of_selected, patient_matrix
from mm_assets.models.features import FeatureBlocks
from mm_assets.models.pu import fit_tile_scorers, sample_for
from mm_assets.omics.filters import ALL_PATIENTS
from mm_assets.omics.readers import read_omics
from mm_assets.synthetic.cohort import create_demo_cohort
from mm_assets.synthetic.truth import read_slide_plans
from mm_assets.wsi.embed import embed_slide
from mm_assets.wsi.slide import open_slide
from mm_assets.wsi.tiling import plan_tiles
from mm_assets.wsi.tissue import find_tissue

LEVELS = ("region", "tile")
DEMO_TASKS = (
    ClassificationTask(
        kind="classification", name="subtype", column="subtype", classes=["IDC", "ILC"]
    ),
    SurvivalTask(kind="survival", name="survival", time="survival_months", event="event"),
)
TCGA_TASKS = (
    ClassificationTask(
        kind="classification", name="subtype", column="oncotree_code", classes=["IDC", "ILC"]
    ),
    SurvivalTask(kind="survival", name="survival", time="survival_months", censored="censorship"),
)


@dataclass(frozen=True)
class Measured:
    """A cohort and task as `run_folds` takes them."""

    blocks: FeatureBlocks
    endpoint: Endpoint
    splits: pd.DataFrame
    clinical: pd.DataFrame
    sites: pd.Series | None = None
    imaging_of: Callable[[int, int, bool], pd.DataFrame] | None = None

    @property
    def options(self) -> dict[str, object]:
        """Arguments of `run_folds` that go with the cohort."""
        return {"sites": self.sites, "imaging_of": self.imaging_of}


def demo_cohort(folder: Path, seed: int, task: ClassificationTask | SurvivalTask) -> Measured:
    """The demo cohort of a seed under `folder`, made there and embedded unless it is there already.

    Folds, tile selection and features are those of the demo's settings.
    """
    cohort, embeddings = folder / f"demo{seed}", folder / f"embeddings{seed}"
    create_demo_cohort(cohort, seed=seed)
    _embed(cohort, embeddings)
    config = ClinicalConfig(table=str(cohort / "clinical.csv"), covariates=["age", "sex"])
    clinical, _ = read_clinical(config, DEMO_TASKS)
    endpoint = make_endpoint(clinical, task)
    splits, _ = make_splits(endpoint, clinical, EvaluationConfig())
    omics, _ = read_omics(OmicsConfig(kind="cbioportal", path=str(cohort / "omics")))
    imaging_of = _imaging(cohort, embeddings, endpoint, splits)
    blocks = FeatureBlocks(
        imaging_of(ALL_PATIENTS, ALL_PATIENTS, True),
        omics,
        clinical[covariate_columns(clinical, config, task)],
    )
    return Measured(blocks, endpoint, splits, clinical, clinical["site"], imaging_of)


def tcga_cohort(folder: Path, name: str, task: ClassificationTask | SurvivalTask) -> Measured:
    """PORPOISE's table of ``brca`` or ``coadread``: official folds, no slides."""
    table = str(folder / f"tcga_{name}_all_clean.csv.zip")
    columns = {"patient_id": "case_id", "sex": "is_female"}
    config = ClinicalConfig(table=table, columns=columns, covariates=["age", "sex"])
    clinical, _ = read_clinical(config, [task])
    endpoint = make_endpoint(clinical, task)
    splits, _ = read_splits(folder / "splits" / f"tcga_{name}", endpoint)
    omics, _ = read_omics(OmicsConfig(kind="wide", path=table))
    blocks = FeatureBlocks(None, omics, clinical[covariate_columns(clinical, config, task)])
    return Measured(blocks, endpoint, splits, clinical, clinical["site"])


def _embed(cohort: Path, folder: Path) -> None:
    """Tile and region embeddings of the cohort's good slides, one Arrow file each."""
    folder.mkdir(exist_ok=True)
    plans = read_slide_plans(cohort)
    encoder = load_encoder("resnet50", "random:0")
    for slide_id in plans.index[plans["state"] == "good"]:
        if all(_file(folder, slide_id, level).exists() for level in LEVELS):
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
            tables = embed_slide(slide, plan, {"tile": encoder}, {"region": encoder})
        for level, table in tables.items():
            target = _file(folder, slide_id, level)
            draft = target.with_suffix(".tmp")
            with pa.OSFile(str(draft), "wb") as sink, pa.ipc.new_file(sink, table.schema) as file:
                file.write_table(table.combine_chunks())
            draft.rename(target)


def _file(folder: Path, slide_id: str, level: str) -> Path:
    return folder / f"{slide_id}.{level}.arrow"


def _imaging(
    cohort: Path, folder: Path, endpoint: Endpoint, splits: pd.DataFrame
) -> Callable[[int, int, bool], pd.DataFrame]:
    """Extrema of all patients by fold and selection, as `extremum_vectors_T` makes them."""
    manifest = pd.read_csv(cohort / "slides.csv")
    tables = {
        path.name.removesuffix(".tile.arrow"): {
            level: _read(_file(folder, path.name.removesuffix(".tile.arrow"), level))
            for level in LEVELS
        }
        for path in sorted(folder.glob("*.tile.arrow"))
    }
    owner = manifest.set_index("slide_id")["patient_id"]
    values = {slide: _values(by_level["tile"]) for slide, by_level in tables.items()}
    sample = sample_for(((owner[s], tiles) for s, tiles in values.items()), endpoint, 0)
    scorers = fit_tile_scorers(sample, endpoint, splits)
    extrema = {}
    for slide, by_level in tables.items():
        found = [of_all(encode_extrema([table], level)) for level, table in by_level.items()]
        for (repeat, fold), scorer in scorers.items():
            kept = by_level["tile"].filter(scorer.keep(values[slide]))
            found.append(of_selected(encode_extrema([kept], "tile"), repeat, fold))
        extrema[slide] = pd.concat(found, ignore_index=True)

    @lru_cache(2)
    def imaging_of(repeat: int, fold: int, selection: bool) -> pd.DataFrame:
        chosen = {slide: of_fold(e, repeat, fold, selection) for slide, e in extrema.items()}
        return patient_matrix(chosen, manifest)

    return imaging_of


def _read(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all().combine_chunks()


def _values(table: pa.Table):
    flat = table["embedding"].combine_chunks().flatten().to_numpy()
    return flat.reshape(table.num_rows, -1)
