"""What the viewer shows of a cohort: slides that were taken in, their evidence, their pixels."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mm_assets.assets.attention import attention_name
from mm_assets.assets.evidence import evidence_name
from mm_assets.assets.graph import cohort_stages
from mm_assets.assets.hipt_attention import hipt_attention_name
from mm_assets.assets.overview import slide_states
from mm_assets.assets.porpoise import Network, networks
from mm_assets.assets.slides import manifest_rows, open_taken_in
from mm_assets.assets.stage import SlideStage, Workspace
from mm_assets.cohort.config import CohortConfig
from mm_assets.explain.document import EvidenceDocument
from mm_assets.resources.receipts import Receipt
from mm_assets.resources.store import ArtefactRef
from mm_assets.viewer.deepzoom import DeepZoom


class NotThere(LookupError):
    """The cohort has no such thing; the message says what is wrong and what to do."""


class Catalogue:
    """A cohort as the viewer reads it. Only what the cohort's own manifest names can be had."""

    def __init__(self, workspace: Workspace) -> None:
        self._space = workspace
        self.cohort = workspace.config.cohort
        self.shows = _shows(workspace.config)

    def slides(self) -> list[dict[str, Any]]:
        """One row a slide: patient, state, and what each asset of evidence says."""
        rows = self._rows()
        shown = {
            asset: self._space.receipts.read_many(self.cohort, asset, rows) for asset in self.shows
        }
        return [
            {
                "slide": state["slide"],
                "patient": rows[state["slide"]].patient_id,
                "state": state["state"],
                "reason": state["reason"],
                "shows": {
                    asset: _summary(receipts[state["slide"]])
                    for asset, receipts in shown.items()
                    if state["slide"] in receipts and receipts[state["slide"]].state == "done"
                },
            }
            for state in slide_states(self._space)
        ]

    def evidence(self, slide: str, asset: str) -> EvidenceDocument:
        """The evidence of a slide.

        Raises
        ------
        NotThere
            When the slide or the asset is unknown, or the evidence has not been made.
        """
        self._known(slide)
        if asset not in self.shows:
            raise NotThere(f"{self.cohort} has no evidence {asset!r}, but {', '.join(self.shows)}")
        receipt = self._space.receipts.read(self.cohort, asset, slide)
        if receipt is None or receipt.state != "done":
            reason = self._stopped_by(slide) or f"run `mm materialize {self.cohort}`"
            raise NotThere(f"{asset} of {slide} has not been made: {reason}")
        ref = ArtefactRef(self.cohort, asset, slide, "json")
        try:
            return EvidenceDocument.from_json(self._space.store.read_bytes(ref))
        except ValueError as error:
            raise NotThere(f"{asset} of {slide} is damaged: make it anew") from error

    def _stopped_by(self, slide: str) -> str:
        """Why a slide did not get further, if it was refused or failed."""
        stages = (s for s in cohort_stages(self._space.config) if isinstance(s, SlideStage))
        assets = (asset for stage in stages for asset in stage.outputs)
        found = (self._space.receipts.read(self.cohort, asset, slide) for asset in assets)
        return next((r.reason for r in found if r and r.state == "failed"), "")

    def version(self, slide: str) -> str:
        """Digest of the slide as it was taken in.

        Raises
        ------
        NotThere
            When the slide is unknown or was not taken in.
        """
        return self._taken_in(slide).digest

    @contextmanager
    def open(self, slide: str) -> Iterator[DeepZoom]:
        """The slide, opened for deep zoom.

        Raises
        ------
        NotThere
            When the slide is unknown or was not taken in.
        SlideError
            When it cannot be opened.
        """
        receipt = self._taken_in(slide)
        with open_taken_in(self._space, receipt, self._known(slide)) as opened:
            yield DeepZoom(opened)

    def _rows(self) -> dict[str, Any]:
        return manifest_rows(self._space.config) if self._space.config.slides else {}

    def _known(self, slide: str) -> Any:
        rows = self._rows()
        if slide not in rows:
            raise NotThere(f"{self.cohort} has no slide {slide!r}; `mm slides {self.cohort}`")
        return rows[slide]

    def _taken_in(self, slide: str) -> Receipt:
        self._known(slide)
        receipt = self._space.receipts.read(self.cohort, "slide", slide)
        if receipt is None or receipt.state != "done":
            reason = receipt.reason if receipt else f"run `mm materialize {self.cohort}`"
            raise NotThere(f"{slide} was not taken in: {reason}")
        return receipt


def _shows(config: CohortConfig) -> dict[str, str]:
    """Assets of evidence, and what to call them."""
    made = {asset for stage in cohort_stages(config) for asset in stage.outputs}
    known = {evidence_name(task): f"{task.name}: HEEC" for task in config.tasks}
    known |= {
        attention_name(network, task): f"{task.name}: attention{_beside(network)}"
        for task in config.tasks
        for network in networks(config)
    }
    known |= {hipt_attention_name(task): f"{task.name}: HIPT" for task in config.tasks}
    return {asset: title for asset, title in known.items() if asset in made}


def _beside(network: Network) -> str:
    if network.encoder:
        return f", {network.encoder}"
    return ", beside omics" if network.kind == "mmf" else ""


def _summary(receipt: Receipt) -> dict[str, Any]:
    wanted = ("score", "towards", "model", "seen_in_training")
    return {key: receipt.metadata.get(key) for key in wanted}
