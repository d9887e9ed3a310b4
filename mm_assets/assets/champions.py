"""The champion of a model: its version, whom it was fitted to, and what it cannot read."""

import io
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from mm_assets.assets.omics import CLINICAL, OMICS
from mm_assets.assets.slides import manifest_rows
from mm_assets.assets.stage import Workspace
from mm_assets.cohort.config import Task
from mm_assets.resources.model_run import TRAINING_PATIENTS, WEIGHTS_TAG
from mm_assets.resources.receipts import Receipt
from mm_assets.resources.store import Provenance
from mm_assets.wsi.errors import SlideError

TABLES = (CLINICAL, OMICS)
# What `refusal` ends with: the ways out.
_WAYS_OUT = "make it as before, or train and `mm promote` a version that reads it"


class Champion:
    """The champion of a model asset, and what it makes of the artefacts as they are now.

    Parameters
    ----------
    asset
        Model asset, e.g. ``heec_survival``.
    reads
        Assets of which it reads what there is of a patient.

    Raises
    ------
    ValueError
        When no version is registered.
    """

    def __init__(self, workspace: Workspace, task: Task, asset: str, reads: Sequence[str]) -> None:
        cohort, model = workspace.config.cohort, asset.removesuffix(f"_{task.name}")
        self._workspace, self.reads = workspace, tuple(reads)
        try:
            self.registered = workspace.tracking.version(f"{cohort}.{task.name}.{model}")
        except LookupError as error:
            raise ValueError(
                f"no version of {asset} is registered: run `mm materialize {cohort}`"
            ) from error

    @cached_property
    def weights(self) -> str:
        """Stamp of the encoder weights behind it; empty without slides."""
        stamp = self._workspace.tracking.notes(self.registered)[WEIGHTS_TAG]
        return "" if stamp == "none" else stamp

    @cached_property
    def trained(self) -> set[str] | None:
        """Patients it was fitted to; None where the version was registered without them."""
        import pandas as pd

        file = self._workspace.tracking.read_file(self.registered.run_id, TRAINING_PATIENTS)
        return None if file is None else set(pd.read_csv(io.BytesIO(file), dtype=str)["patient_id"])

    def load(self) -> Any:
        """The predictor as it was registered."""
        return self._workspace.tracking.predictor(self.registered.name, self.registered.version)

    def has_seen(self, patient: str) -> bool:
        """Whether the patient was in training; also where that is not known."""
        return self.trained is None or patient in self.trained

    def refuse(self, patient: str, artefacts: Iterable[tuple[str, str]]) -> None:
        """Refuse to explain what it cannot read.

        Raises
        ------
        SlideError
            Which settles the matter until the artefacts or the champion change.
        """
        if reason := self.refusal(artefacts):
            model = f"{self.registered.name} version {self.registered.version}"
            raise SlideError(f"{model} cannot read patient {patient}: {reason}")

    def refusal(self, artefacts: Iterable[tuple[str, str]]) -> str:
        """Why it cannot read some artefacts, given as asset and slide id or ``cohort``; or empty.

        It can read what was made by the code and with the parameters and weights of what it was
        trained on.
        """
        reason = next(filter(None, map(self._objections.get, artefacts)), "")
        return f"{reason}; {_WAYS_OUT}" if reason else ""

    @cached_property
    def _objections(self) -> dict[tuple[str, str], str]:
        from mm_assets.resources.lineage import from_json, lineage_of_provenance
        from mm_assets.resources.recipe import Recipe

        store, cohort = self._workspace.store, self._workspace.config.cohort
        recipe = Recipe(from_json(self._workspace.tracking.lineage(self.registered)))
        inputs = {
            asset: _versions(self._workspace.receipts.read_all(cohort, asset))
            for asset in self.reads
            if recipe.reads(asset)
        }
        read = lineage_of_provenance(store, cohort, Provenance("", "", "", {}, inputs))
        return {
            (node.asset, node.name): recipe.objection(node, table=node.asset in TABLES)
            for node in read.inputs
        }


def _versions(receipts: Mapping[str, Receipt]) -> dict[str, str]:
    return {name: receipt.digest for name, receipt in receipts.items() if receipt.state == "done"}


def champion_version(workspace: Workspace, task: Task, asset: str) -> str:
    """Version of a model asset's champion, for the provenance of what is made with it."""
    try:
        return str(Champion(workspace, task, asset, ()).registered.version)
    except ValueError:
        return "none yet"


def champion_by_slide(workspace: Workspace, task: Task, asset: str) -> dict[str, dict[str, str]]:
    """`SlideStage.sources` of a stage that explains the champion of a model asset."""
    version = champion_version(workspace, task, asset)
    return {slide: {"champion": version} for slide in manifest_rows(workspace.config)}
