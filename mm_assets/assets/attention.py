"""Stage of attention: where on a slide the registered slide network of PORPOISE looked."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from mm_assets.assets.compute import Compute
from mm_assets.assets.evidence import write_evidence
from mm_assets.assets.omics import CLINICAL
from mm_assets.assets.porpoise import embeddings, porpoise_kinds, porpoise_name
from mm_assets.assets.slides import manifest_rows, open_local_slide
from mm_assets.assets.stage import Job, Produced, SlideStage, SlideWorker, Workspace
from mm_assets.assets.tiles import TILES
from mm_assets.cohort.clinical import make_endpoint
from mm_assets.cohort.config import CohortConfig, Task
from mm_assets.resources.store import COHORT, ArtefactRef

if TYPE_CHECKING:
    from mm_assets.explain.attention import Bag
    from mm_assets.explain.document import EvidenceDocument


def attention_name(task: Task) -> str:
    """Asset name of a task's attention."""
    return f"attention_{task.name}"


def attention_stages(config: CohortConfig, task: Task) -> list[SlideStage]:
    """`attention_T`, where the cohort has the slide network."""
    if "amil" not in porpoise_kinds(config):
        return []
    stage = SlideStage(
        outputs=(attention_name(task),),
        upstream=("slide", TILES, porpoise_name("amil", task), CLINICAL),
        group="reports",
        code_version="1",
        description="Tiles of the slide that the final slide network attends to: JSON for a "
        "viewer, GeoJSON for QuPath, heat map and crops. Patients with an endpoint were seen by "
        "that network in training.",
        kinds=frozenset({"pytorch", "geojson"}),
        compute=Compute(cpu=1, memory_gib=6, chunk=210),
        patient_upstream=(TILES,),
        isolated=True,
        worker=partial(_attention_worker, task=task),
    )
    return [stage]


@contextmanager
def _attention_worker(workspace: Workspace, task: Task) -> Iterator[SlideWorker]:
    rows, name = manifest_rows(workspace.config), attention_name(task)
    explain = lru_cache(1)(_explainer(workspace, task))

    def work(job: Job) -> Mapping[str, Produced]:
        row = rows[job.name]
        document = explain(row.patient_id)
        with open_local_slide(job, row) as slide:
            return {name: write_evidence(job, name, document, slide)}

    yield work


def _explainer(workspace: Workspace, task: Task) -> "Callable[[str], EvidenceDocument]":
    """From a patient to the evidence over all finished slides; the model is loaded once."""
    evidence = network_evidence(workspace, task, porpoise_name("amil", task))
    return lambda patient: evidence(stored_bags(workspace, TILES, patient), patient)


def network_evidence(
    workspace: Workspace, task: Task, asset: str
) -> "Callable[..., EvidenceDocument]":
    """`attention_evidence` with everything but the bags, of one slide network of the cohort.

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
    table = ArtefactRef(config.cohort, CLINICAL, COHORT, "parquet")
    trained = set(make_endpoint(workspace.store.read_table(table), task).table.index)

    def explain(bags: "dict[str, Bag]", patient: str, **choice: Any) -> "EvidenceDocument":
        return attention_evidence(
            model,
            bags,
            None,
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
