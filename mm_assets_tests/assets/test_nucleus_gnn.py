"""The stage of graph networks, on stored graphs."""

import logging
from pathlib import Path

import pytest

from mm_assets.assets.cohort_level import run_cohort_stage
from mm_assets.assets.nuclei import NUCLEI
from mm_assets.assets.nucleus_gnn import nucleus_gnn_stage
from mm_assets.assets.omics import table_stages, task_table_stages
from mm_assets.assets.progress import listen
from mm_assets.assets.stage import Workspace
from mm_assets.cohort.loading import load_config
from mm_assets.nuclei.gnn import load_gnns
from mm_assets.resources.receipts import Receipt
from mm_assets.resources.store import ArtefactRef, ArtefactStore, Provenance
from mm_assets.resources.tracking import Tracking
from mm_assets_tests.cohorts import make_cohort
from mm_assets_tests.nuclei.planted import plant_population

SLIDES, PATIENTS = 8, 12


@pytest.fixture
def workspace(home: Path, tmp_path: Path) -> Workspace:
    """A cohort with tables, folds and the nucleus graphs of some patients; one graph is empty."""
    yaml = make_cohort(tmp_path / "tiny", PATIENTS, slides=SLIDES, omics=None)
    store = ArtefactStore(uri=str(home / "store"))
    space = Workspace(load_config(yaml), store, Tracking(), logging.getLogger())
    for stage in table_stages(space.config):
        run_cohort_stage(stage, space, "")
    for number, (slide, (nodes, edges)) in enumerate(plant_population(SLIDES).graphs.items()):
        made_of = Provenance(NUCLEI, slide, "1", {}, {})
        tables = (nodes, edges) if number else (nodes[:0], edges[:0])
        outputs = {
            "arrow": store.write_arrow(
                ArtefactRef("tiny", NUCLEI, slide, "arrow"), tables[0], made_of
            ),
            "parquet": store.write_table(
                ArtefactRef("tiny", NUCLEI, slide, "parquet"), tables[1].to_pandas(), made_of
            ),
        }
        receipt = Receipt("tiny", NUCLEI, slide, "done", made_of, outputs)
        space.receipts.write(receipt)
    return space


def test_one_file_holds_the_networks_of_every_fold(workspace: Workspace) -> None:
    task = workspace.config.tasks[1]
    for stage in task_table_stages(workspace.config, task):
        run_cohort_stage(stage, workspace, "")
    stage = nucleus_gnn_stage(workspace.config, task)
    seen: list[tuple[str, int, int]] = []
    stop = listen(lambda *progress: seen.append(progress))
    made = run_cohort_stage(stage, workspace, "")
    stop()
    assert made.produced is not None
    assert seen[-1] == (f"tiny/{stage.name}", 3, 3)
    assert made.receipt.metadata["models"] == 3
    ref = ArtefactRef("tiny", stage.name, "cohort", "pt")
    path = workspace.store.local_path(ref)
    assert path is not None
    models = load_gnns(path)
    assert set(models) == {(0, 0), (0, 1), (-1, -1)}
    provenance = workspace.store.provenance(ref)
    assert provenance is not None
    assert len(provenance.inputs[NUCLEI]) == SLIDES
    assert run_cohort_stage(stage, workspace, "").produced is None
