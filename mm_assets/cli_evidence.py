"""`mm evidence`: what a prediction rests on, with places and files."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mm_assets.assets.stage import Workspace
    from mm_assets.cohort.config import Task
    from mm_assets.explain.document import EvidenceDocument


def evidence(
    cohort: Annotated[str, typer.Argument(help="Name of a cohort, or the path of its defs.yaml.")],
    patient: Annotated[str, typer.Option(help="Patient id.")],
    task: Annotated[str | None, typer.Option(help="Only this task.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Features and places to print.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print data for programs.")] = False,
) -> None:
    """Features behind a patient's prediction, ranked, with slide, coordinate and files."""
    from mm_assets.cli import out, show, workspace

    space = workspace(cohort)
    tasks = [t for t in space.config.tasks if task in (None, t.name)]
    if not tasks:
        known = ", ".join(t.name for t in space.config.tasks)
        raise ValueError(f"no task is named {task!r}; there are {known}")
    found = [(t, *patient_evidence(space, t, patient)) for t in tasks]
    if as_json:
        rows = [
            {**document.model_dump(by_alias=True, mode="json"), "files": files}
            for _, document, files in found
        ]
        show(rows, True)
        return
    for t, document, files in found:
        _print(document, files, top, f"{space.config.cohort}.{t.name}, patient {patient}")
    out.print("files: .json for programs, .geojson for QuPath, .png to look at", style="dim")


def patient_evidence(
    space: "Workspace", task: "Task", patient: str
) -> "tuple[EvidenceDocument, dict[str, str]]":
    """A patient's ranking, and the evidence file of each slide by slide id.

    The ranking is that of the stored documents; crops of all slides are named in it. For patients
    without a slide there are none, so it is made here.

    Raises
    ------
    ValueError
        When the patient is unknown, or the evidence has not been made.
    """
    from mm_assets.assets.evidence import evidence_name
    from mm_assets.assets.explainer import PatientExplainer
    from mm_assets.assets.slides import manifest_rows
    from mm_assets.explain.crops import joined
    from mm_assets.explain.document import EvidenceDocument
    from mm_assets.resources.store import ArtefactRef

    config = space.config
    rows = manifest_rows(config) if config.slides else {}
    slides = [slide for slide, row in rows.items() if row.patient_id == patient]
    receipts = space.receipts.read_many(config.cohort, evidence_name(task), slides)
    done = [slide for slide in slides if slide in receipts and receipts[slide].state == "done"]
    if slides and not done:
        raise ValueError(
            f"{evidence_name(task)} has not been made of {', '.join(slides)}: run `mm materialize "
            f"{config.cohort}`; `mm slides {config.cohort} --failed` says what is wrong with them"
        )
    if not slides:
        return PatientExplainer(space, task).explain(patient), {}
    refs = {slide: ArtefactRef(config.cohort, evidence_name(task), slide, "json") for slide in done}
    documents = [EvidenceDocument.from_json(space.store.read_bytes(ref)) for ref in refs.values()]
    return joined(documents), {slide: space.store.address(ref) for slide, ref in refs.items()}


def _print(document: "EvidenceDocument", files: dict[str, str], top: int, title: str) -> None:
    from mm_assets.cli import out, show
    from mm_assets.explain.document import place_rows, table_rows

    prediction = ", ".join(f"{name} {value:.3f}" for name, value in document.prediction.items())
    seen = "seen in training" if document.seen_in_training else "not seen in training"
    show(table_rows(document.items[:top]), False, title)
    if document.instances:
        show(place_rows(document.instances[:top]), False, "places, contributions summed")
    out.print(f"{prediction}; {document.model.name} version {document.model.version}, {seen}")
    out.print(f"contributions speak for {document.towards}: {document.meaning}", style="dim")
    for slide, file in files.items():
        out.print(f"{slide}: {file}", soft_wrap=True, highlight=False)
