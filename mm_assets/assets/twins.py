"""Slides of one content under two patients: one person, who would be in train and test."""

from mm_assets.assets.slides import manifest_rows
from mm_assets.assets.stage import Workspace
from mm_assets.assets.tiles import TILES
from mm_assets.cohort.problems import CohortError, Problem


def refuse_twins(workspace: Workspace) -> None:
    """Refuse finished slides of different patients whose tiles are the same, value by value.

    Embeddings are compared, not files: another header does not make another slide. It is for
    whoever keeps the manifest to say whose slide it is, so no side is left out here.

    Raises
    ------
    CohortError
        Naming slides and patients.
    """
    rows = manifest_rows(workspace.config)
    by_content: dict[str, list[str]] = {}
    for slide, receipt in workspace.receipts.read_all(workspace.config.cohort, TILES).items():
        if slide in rows and receipt.state == "done":
            by_content.setdefault(receipt.digest, []).append(slide)
    problems = [
        Problem(
            "slides " + ", ".join(f"{slide} (patient {rows[slide].patient_id})" for slide in same),
            "have the same pixels under different patients",
            "one of them is misnamed, or one person has two ids: correct the manifest",
        )
        for same in by_content.values()
        if len({rows[slide].patient_id for slide in same}) > 1
    ]
    if problems:
        raise CohortError(problems)
