"""Stage of HIPT's attention: regions, their tiles and 16 px of these, as one map of the slide."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING

from mm_assets.assets.attention import network_evidence, stored_bag, stored_bags
from mm_assets.assets.champions import champion_by_slide
from mm_assets.assets.compute import Compute
from mm_assets.assets.evidence import write_evidence
from mm_assets.assets.hipt import Levels, hipt_name, level_weights, load_levels
from mm_assets.assets.omics import CLINICAL
from mm_assets.assets.slides import manifest_rows, open_local_slide
from mm_assets.assets.stage import Job, Produced, SlideStage, SlideWorker, Workspace
from mm_assets.assets.tiles import HIPT, HIPT_TILES
from mm_assets.cohort.config import CohortConfig, Task

if TYPE_CHECKING:
    from mm_assets.explain.document import EvidenceDocument
    from mm_assets.wsi.slide import Slide

MOST_REGIONS = 1000
# The strongest of each slide, whose score is shared out among what they hold.
REGIONS_SHARED, TILES_SHARED = 8, 8


def hipt_attention_name(task: Task) -> str:
    """Asset name of a task's map."""
    return f"hipt_attention_{task.name}"


def hipt_attention_stage(config: CohortConfig, task: Task, evaluation: str) -> SlideStage:
    """`hipt_attention_T`; follows the evaluation, which settles who is champion."""
    assert config.hipt is not None
    return SlideStage(
        outputs=(hipt_attention_name(task),),
        upstream=("slide", HIPT_TILES, HIPT, hipt_name(task), CLINICAL),
        group="reports",
        after=(evaluation,),
        code_version="2",
        description="What the champion of HIPT attends to: regions, tiles of the slide's strongest "
        "regions and 16 px of its strongest tiles, each with its share of the patient's "
        "attention: JSON for a viewer, GeoJSON for QuPath, heat map and crops. Patients with an "
        "endpoint were seen by that network in training.",
        kinds=frozenset({"pytorch", "geojson"}),
        compute=Compute(gpu=1, cpu=2, memory_gib=8, chunk=180),
        parameters=level_weights(config),
        weights={hipt_attention_name(task): level_weights(config)},
        patient_upstream=(HIPT,),
        sources=partial(champion_by_slide, task=task, asset=hipt_name(task)),
        isolated=True,
        worker=partial(_worker, task=task),
    )


@contextmanager
def _worker(workspace: Workspace, task: Task) -> Iterator[SlideWorker]:
    rows, name = manifest_rows(workspace.config), hipt_attention_name(task)
    load = cache(partial(load_levels, workspace))
    evidence = cache(partial(network_evidence, workspace, task, hipt_name(task), (HIPT,)))

    def work(job: Job) -> Mapping[str, Produced]:
        row = rows[job.name]
        bags = stored_bags(workspace, HIPT, row.patient_id)
        regions = evidence()(bags, row.patient_id, most=MOST_REGIONS, level="region")
        with open_local_slide(job, row) as slide:
            document = _share_out(job, regions, slide, load())
            return {name: write_evidence(job, name, document, slide)}

    yield work


def _share_out(
    job: Job, document: "EvidenceDocument", slide: "Slide", levels: Levels
) -> "EvidenceDocument":
    """The evidence of regions, with tiles and 16 px of this slide."""
    from mm_assets.explain.hierarchy import MEANING, composed, patches_of, tiles_of
    from mm_assets.wsi.tiling import Grid

    imaging = job.workspace.config.imaging
    mpp = json.loads(job.workspace.store.read_bytes(job.ref("slide", "json")))["mpp"]
    regions = document.on_slide(job.name)[:REGIONS_SHARED]
    tiles = tiles_of(
        regions,
        stored_bag(job.workspace, HIPT_TILES, job.name),
        Grid(imaging.tile_px, imaging.mpp, mpp),
        imaging.region_px // imaging.tile_px,
        levels.regions,
        levels.white,
    )
    strongest = sorted(tiles, key=lambda tile: -tile.score)[:TILES_SHARED]
    patches = [
        patch
        for tile in strongest
        for patch in patches_of(tile, slide, imaging.tile_px, levels.tiles)
    ]
    everything = [*document.instances, *tiles, *patches]
    return document.model_copy(
        update={
            "method": "hipt",
            "meaning": MEANING,
            "instances": composed(everything, [*regions, *strongest]),
        }
    )
