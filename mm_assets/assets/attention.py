"""Stages of attention: where on a slide the registered networks of PORPOISE looked."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from mm_assets.assets.compute import Compute
from mm_assets.assets.evidence import write_evidence
from mm_assets.assets.omics import CLINICAL, OMICS
from mm_assets.assets.porpoise import READS, embeddings, porpoise_kinds, porpoise_name
from mm_assets.assets.slides import manifest_rows, open_local_slide
from mm_assets.assets.stage import Job, Produced, SlideStage, SlideWorker, Workspace
from mm_assets.assets.tiles import TILES
from mm_assets.cohort.clinical import make_endpoint
from mm_assets.cohort.config import CohortConfig, Task
from mm_assets.resources.store import COHORT, ArtefactRef

if TYPE_CHECKING:
    from mm_assets.explain.attention import Bag
    from mm_assets.explain.document import EvidenceDocument
    from mm_assets.models.porpoise.networks import Kind


def attention_name(kind: "Kind", task: Task) -> str:
    """Asset name of the attention of one of the networks that read slides."""
    return f"attention_{task.name}" if kind == "amil" else f"attention_{kind}_{task.name}"


def attention_stages(config: CohortConfig, task: Task) -> list[SlideStage]:
    """`attention_T` and `attention_mmf_T`, where the cohort has the networks."""
    return [_stage(config, task, kind) for kind in porpoise_kinds(config) if TILES in READS[kind]]


def _stage(config: CohortConfig, task: Task, kind: "Kind") -> SlideStage:
    name = attention_name(kind, task)
    return SlideStage(
        outputs=(name,),
        upstream=("slide", porpoise_name(kind, task), CLINICAL, *READS[kind]),
        group="reports",
        code_version="1",
        description=f"Tiles of the slide that the final network {porpoise_name(kind, task)} "
        "attends to: JSON for a viewer, GeoJSON for QuPath, heat map and crops. Patients with an "
        "endpoint were seen by that network in training.",
        kinds=frozenset({"pytorch", "geojson"}),
        compute=Compute(cpu=1, memory_gib=6, chunk=210),
        patient_upstream=(TILES,),
        isolated=True,
        worker=partial(_attention_worker, task=task, kind=kind),
    )


@contextmanager
def _attention_worker(workspace: Workspace, task: Task, kind: "Kind") -> Iterator[SlideWorker]:
    rows, name = manifest_rows(workspace.config), attention_name(kind, task)
    explain = lru_cache(1)(_explainer(workspace, task, kind))

    def work(job: Job) -> Mapping[str, Produced]:
        row = rows[job.name]
        document = explain(row.patient_id)
        with open_local_slide(job, row) as slide:
            return {name: write_evidence(job, name, document, slide)}

    yield work


def _explainer(
    workspace: Workspace, task: Task, kind: "Kind"
) -> "Callable[[str], EvidenceDocument]":
    """From a patient to the evidence over all finished slides; the model is loaded once."""
    evidence = network_evidence(workspace, task, porpoise_name(kind, task), OMICS in READS[kind])
    return lambda patient: evidence(stored_bags(workspace, TILES, patient), patient)


def network_evidence(
    workspace: Workspace, task: Task, asset: str, omics: bool = False
) -> "Callable[..., EvidenceDocument]":
    """`attention_evidence` with everything but the bags, of one slide network of the cohort.

    Parameters
    ----------
    omics
        Whether the network reads the omics table too.

    Returns
    -------
    From bags, patient and the keywords `most` and `level` to the evidence.

    Raises
    ------
    ValueError
        When the model has not been made.
    """
    from mm_assets.explain.attention import attention_evidence
    from mm_assets.explain.document import Model

    config = workspace.config
    receipt = workspace.receipts.read(config.cohort, asset, COHORT)
    if receipt is None or receipt.state != "done":
        raise ValueError(f"{asset} has not been made: run `mm materialize {config.cohort}`")
    facts = receipt.metadata
    registered = Model(name=str(facts["registered_model"]), version=int(str(facts["version"])))
    model = workspace.tracking.predictor(registered.name, registered.version)
    tables = {
        name: workspace.store.read_table(ArtefactRef(config.cohort, name, COHORT, "parquet"))
        for name in (CLINICAL, *((OMICS,) if omics else ()))
    }
    trained = set(make_endpoint(tables[CLINICAL], task).table.index)

    def explain(bags: "dict[str, Bag]", patient: str, **choice: Any) -> "EvidenceDocument":
        return attention_evidence(
            model,
            bags,
            tables.get(OMICS),
            patient,
            cohort=config.cohort,
            task=task.name,
            registered=registered,
            weights=str(facts["weights"]),
            seen_in_training=patient in trained,
            **choice,
        )

    return explain


def stored_bags(workspace: Workspace, asset: str, patient: str) -> "dict[str, Bag]":
    """Embeddings of a patient's finished slides by slide."""
    rows = manifest_rows(workspace.config)
    slides = sorted(slide for slide, row in rows.items() if row.patient_id == patient)
    receipts = workspace.receipts.read_many(workspace.config.cohort, asset, slides)
    done = (slide for slide in slides if slide in receipts and receipts[slide].state == "done")
    return {slide: stored_bag(workspace, asset, slide) for slide in done}


def stored_bag(workspace: Workspace, asset: str, slide: str) -> "Bag":
    """Embeddings of one slide with their places."""
    from mm_assets.explain.attention import Bag

    table = workspace.store.read_arrow(ArtefactRef(workspace.config.cohort, asset, slide, "arrow"))
    return Bag(embeddings(table), *(table[name].to_numpy() for name in ("x", "y", "size0")))
