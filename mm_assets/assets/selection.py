"""Stage of tile selection: `tile_scorer_T`, positive-unlabeled scorers of every fold."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import dagster as dg

from mm_assets.assets.checks import selection_checks
from mm_assets.assets.compute import Compute
from mm_assets.assets.omics import CLINICAL, read_table, splits_name
from mm_assets.assets.progress import Progress
from mm_assets.assets.slides import manifest_rows, markdown_image
from mm_assets.assets.stage import CohortStage, Job, Produced
from mm_assets.assets.tiles import TILES
from mm_assets.cohort.clinical import make_endpoint
from mm_assets.cohort.config import CohortConfig, Task

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from mm_assets.evaluation.kept_tiles import KeptTiles
    from mm_assets.models.tile_scorers import TileScorer

CHUNK_ROWS = 4096
SLIDES_SHOWN = 4


def tile_scorer_name(task: Task) -> str:
    """Asset name of a task's tile scorers."""
    return f"tile_scorer_{task.name}"


def tile_scorer_stage(config: CohortConfig, task: Task) -> CohortStage:
    """`tile_scorer_T`."""
    return CohortStage(
        outputs=(tile_scorer_name(task),),
        upstream=(CLINICAL, splits_name(task), "slide", "tissue", TILES),
        group="models",
        code_version="1",
        description="Per fold: positive-unlabeled scorer that keeps the tiles which do not look "
        "like those of patients outside a class.",
        kinds=frozenset({"scikit-learn"}),
        compute=Compute(cpu=2, memory_gib=8),
        parameters={"task": task.model_dump(), "selection": config.selection.model_dump()},
        elsewhere="training",
        run=lambda job: _fit_scorers(job, task),
        checks=("contrast", "share_kept", "train_and_test_alike"),
    )


def _fit_scorers(job: Job, task: Task) -> Produced:
    from mm_assets.models.pu import PuParameters, fit_tile_scorers, kept_shares, sample_for
    from mm_assets.models.tile_scorers import dump_tile_scorers

    config = job.workspace.config
    assert config.selection.method != "none"
    parameters = PuParameters(config.selection.method, config.selection.share)
    endpoint = make_endpoint(read_table(job, CLINICAL), task)
    splits = read_table(job, splits_name(task))
    name = tile_scorer_name(task)
    progress = Progress(f"{config.cohort}/{name}", 0, job.workspace.log)
    sample = sample_for(_bags(job), endpoint, parameters.seed)
    scorers = fit_tile_scorers(sample, endpoint, splits, parameters, progress.update)
    shares = kept_shares(sample, scorers, splits)
    digest = job.workspace.store.write_bytes(
        job.ref(name, "npz"), dump_tile_scorers(scorers), job.provenance[name]
    )
    return Produced({"npz": digest}, _shown(job, shares, scorers, splits), selection_checks(shares))


def _bags(job: Job) -> "Iterator[tuple[str, NDArray[np.floating]]]":
    """Patient and embeddings, a bounded number of rows of the memory-mapped files at a time."""
    rows = manifest_rows(job.workspace.config)
    for slide in sorted(job.upstream[TILES]):
        table = job.workspace.store.read_arrow(job.ref(TILES, "arrow", slide))
        for batch in table.to_batches(max_chunksize=CHUNK_ROWS):
            values = batch.column("embedding").flatten().to_numpy()
            yield rows[slide].patient_id, values.reshape(batch.num_rows, -1)


def _shown(
    job: Job,
    shares: "pd.DataFrame",
    scorers: "dict[tuple[int, int], TileScorer]",
    splits: "pd.DataFrame",
) -> dict[str, Any]:
    """Metadata: method, share kept and prior of every fold, kept tiles of a few slides."""
    from mm_assets.evaluation.kept_tiles import draw_kept_tiles

    shown: dict[str, Any] = {
        "method": str(shares["method"].iloc[0]),
        "share_kept": float(shares["test"].mean()),
        "share_kept_in_training": float(shares["train"].mean()),
        "folds": json.dumps(shares.to_dict("records")),
        "table": dg.MetadataValue.md(shares.round(3).to_markdown(index=False)),
    }
    pictures = _held_out_slides(job, scorers, splits)
    if pictures:
        shown["kept_tiles"] = dg.MetadataValue.md(
            markdown_image(draw_kept_tiles(pictures), "kept tiles of held-out patients")
        )
    return shown


def _held_out_slides(
    job: Job, scorers: "dict[tuple[int, int], TileScorer]", splits: "pd.DataFrame"
) -> "list[KeptTiles]":
    """A few slides of the first fold's held-out patients, evenly over the slide ids."""
    from mm_assets.models.folds import list_folds

    fold = list_folds(splits)[0]
    rows = manifest_rows(job.workspace.config)
    slides = [slide for slide in sorted(job.upstream[TILES]) if rows[slide].patient_id in fold.test]
    step = max(1, len(slides) // SLIDES_SHOWN)
    scorer = scorers[fold.repeat, fold.fold]
    return [_kept_tiles(job, slide, scorer) for slide in slides[::step][:SLIDES_SHOWN]]


def _kept_tiles(job: Job, slide: str, scorer: "TileScorer") -> "KeptTiles":
    from mm_assets.evaluation.kept_tiles import KeptTiles

    store = job.workspace.store
    facts = json.loads(store.read_bytes(job.ref("slide", "json", slide)))
    table = store.read_arrow(job.ref(TILES, "arrow", slide))
    values = table["embedding"].combine_chunks().flatten().to_numpy()
    kept = scorer.keep(values.reshape(table.num_rows, -1))
    return KeptTiles(
        title=f"{slide}: {int(kept.sum())} of {len(kept)} tiles kept",
        thumbnail=store.read_bytes(job.ref("tissue", "png", slide)),
        width=int(facts["width"]),
        x=table["x"].to_numpy(),
        y=table["y"].to_numpy(),
        size0=table["size0"].to_numpy(),
        kept=kept,
    )
