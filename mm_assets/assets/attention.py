"""Stages of attention: where on a slide the registered networks of PORPOISE looked."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from mm_assets.assets.champions import Champion, champion_by_slide
from mm_assets.assets.compute import Compute
from mm_assets.assets.evidence import write_evidence
from mm_assets.assets.omics import CLINICAL, OMICS
from mm_assets.assets.porpoise import Network, embeddings, networks
from mm_assets.assets.slides import manifest_rows, open_local_slide
from mm_assets.assets.stage import Job, Produced, SlideStage, SlideWorker, Workspace
from mm_assets.cohort.config import CohortConfig, Task
from mm_assets.resources.store import COHORT, ArtefactRef

if TYPE_CHECKING:
    from mm_assets.explain.attention import Bag
    from mm_assets.explain.document import EvidenceDocument


def attention_name(network: Network, task: Task) -> str:
    """Asset name of the attention of one of the networks that read slides."""
    suffix = "" if network == Network("amil") else f"_{network.suffix}"
    return f"attention{suffix}_{task.name}"


def attention_stages(config: CohortConfig, task: Task, evaluation: str) -> list[SlideStage]:
    """`attention_T`, `attention_mmf_T`, `attention_amil_ENCODER_T`, as there are networks."""
    return [
        _stage(task, network, network.tiles, evaluation)
        for network in networks(config)
        if network.tiles
    ]


def _stage(task: Task, network: Network, tiles: str, evaluation: str) -> SlideStage:
    model = network.name(task)
    return SlideStage(
        outputs=(attention_name(network, task),),
        upstream=("slide", model, CLINICAL, *network.reads),
        group="reports",
        after=(evaluation,),
        code_version="2",
        description=f"Tiles of the slide that the champion of {model} attends to: JSON for a "
        "viewer, GeoJSON for QuPath, heat map and crops. Patients with an endpoint were seen by "
        "that network in training.",
        kinds=frozenset({"pytorch", "geojson"}),
        compute=Compute(cpu=1, memory_gib=6, chunk=210),
        patient_upstream=(tiles,),
        sources=partial(champion_by_slide, task=task, asset=model),
        isolated=True,
        worker=partial(_attention_worker, task=task, network=network),
    )


@contextmanager
def _attention_worker(workspace: Workspace, task: Task, network: Network) -> Iterator[SlideWorker]:
    rows, name = manifest_rows(workspace.config), attention_name(network, task)
    explain = lru_cache(1)(_explainer(workspace, task, network))

    def work(job: Job) -> Mapping[str, Produced]:
        row = rows[job.name]
        document = explain(row.patient_id)
        with open_local_slide(job, row) as slide:
            return {name: write_evidence(job, name, document, slide)}

    yield work


def _explainer(
    workspace: Workspace, task: Task, network: Network
) -> "Callable[[str], EvidenceDocument]":
    """From a patient to the evidence over all finished slides; the model is loaded once."""
    evidence = network_evidence(workspace, task, network.name(task), network.reads)
    tiles = network.reads[0]
    return lambda patient: evidence(stored_bags(workspace, tiles, patient), patient)


def network_evidence(
    workspace: Workspace, task: Task, asset: str, reads: Sequence[str]
) -> "Callable[..., EvidenceDocument]":
    """`attention_evidence` with everything but the bags, of the champion of a slide network.

    Parameters
    ----------
    reads
        Per-slide asset of the bags and, where the network reads it, the omics table.

    Returns
    -------
    From bags, patient and the keywords `most` and `level` to the evidence; it raises `SlideError`
    where the champion cannot read the bags.

    Raises
    ------
    ValueError
        When the model has not been made.
    """
    from mm_assets.explain.attention import attention_evidence
    from mm_assets.explain.document import Model

    cohort = workspace.config.cohort
    champion = Champion(workspace, task, asset, reads)
    registered = Model(name=champion.registered.name, version=champion.registered.version)
    model = champion.load()
    omics = None
    if OMICS in reads:
        omics = workspace.store.read_table(ArtefactRef(cohort, OMICS, COHORT, "parquet"))
    slides = next(name for name in reads if name != OMICS)

    def explain(bags: "dict[str, Bag]", patient: str, **choice: Any) -> "EvidenceDocument":
        measured = omics is not None and patient in omics.index
        champion.refuse(
            patient, [*((slides, slide) for slide in bags), *([(OMICS, COHORT)] * measured)]
        )
        return attention_evidence(
            model,
            bags,
            omics,
            patient,
            cohort=cohort,
            task=task.name,
            registered=registered,
            weights=champion.weights,
            seen_in_training=champion.has_seen(patient),
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
