"""Explains patients with the champion of HEEC, whose predictions are those of `predictions_T`.

It was fitted to all patients who then had an endpoint, so for those it explains what it learnt,
not a forecast; documents say so (`seen_in_training`).
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from mm_assets.assets.champions import Champion
from mm_assets.assets.extremum import extremum_name
from mm_assets.assets.heec_inputs import heec_name
from mm_assets.assets.omics import CLINICAL, OMICS
from mm_assets.assets.scoring import scorers
from mm_assets.assets.stage import Workspace
from mm_assets.cohort.clinical import covariate_columns
from mm_assets.cohort.config import Task
from mm_assets.resources.store import COHORT, ArtefactRef

if TYPE_CHECKING:
    import pandas as pd

    from mm_assets.explain.document import EvidenceDocument
    from mm_assets.models.heec import HeecModel

SHOWN_ITEMS = 200


class PatientExplainer:
    """The model and the cohort's tables, loaded once; `explain` is then a matter of moments.

    Raises
    ------
    ValueError
        When no version of the model is registered.
    """

    def __init__(self, workspace: Workspace, task: Task) -> None:
        self._workspace, self._task = workspace, task
        reads = scorers(workspace.config, task)[heec_name(task)].reads
        self._champion = Champion(workspace, task, heec_name(task), reads)
        self._model: HeecModel = self._champion.load()
        self._clinical = self._table(CLINICAL)
        self._omics = self._table(OMICS) if workspace.config.omics else None
        self._slides = _manifest(workspace)

    def explain(self, patient: str) -> "EvidenceDocument":
        """The patient's evidence over all slides, without crops and slide.

        Raises
        ------
        ValueError
            When the cohort has no such patient.
        SlideError
            When the champion cannot read what there is of the patient.
        """
        from mm_assets.explain.backtrack import rank_features, rank_instances
        from mm_assets.explain.contributions import explain_heec, feature_values
        from mm_assets.explain.document import EvidenceDocument, Model
        from mm_assets.models.extremum import patient_extrema, patient_matrix

        by_slide, manifest = self._slides_of(patient)
        if patient not in self._clinical.index and not by_slide:
            raise ValueError(f"cohort {self._workspace.config.cohort} has no patient {patient!r}")
        self._champion.refuse(patient, self._artefacts(patient, by_slide))
        frame = self._frame(patient, patient_matrix(by_slide, manifest) if by_slide else None)
        found = explain_heec(self._model, frame)
        covariates = self._model.covariates
        registered = self._champion.registered
        items = rank_features(
            found.table.iloc[0],
            feature_values(self._model, frame).iloc[0],
            patient_extrema(by_slide, manifest).get(patient),
            covariates.names() if covariates else [],
        )
        return EvidenceDocument(
            cohort=self._workspace.config.cohort,
            task=self._task.name,
            patient_id=patient,
            method="heec",
            model=Model(name=registered.name, version=registered.version),
            weights=self._champion.weights,
            seen_in_training=self._champion.has_seen(patient),
            towards=str(found.towards.iloc[0]),
            meaning=found.meaning,
            prediction=self._model.predict(frame).iloc[0].astype(float).to_dict(),
            base=float(found.base.iloc[0]),
            score=float(found.score.iloc[0]),
            remainder=sum(item.contribution for item in items[SHOWN_ITEMS:]),
            items=tuple(items[:SHOWN_ITEMS]),
            instances=tuple(rank_instances(items)),
        )

    def _artefacts(self, patient: str, slides: Iterable[str]) -> Iterator[tuple[str, str]]:
        for asset, table in ((CLINICAL, self._clinical), (OMICS, self._omics)):
            if table is not None and patient in table.index:
                yield asset, COHORT
        for slide in slides:
            yield extremum_name(self._task), slide

    def _frame(self, patient: str, imaging: "pd.DataFrame | None") -> "pd.DataFrame":
        """The patient's features; those of a modality that the patient lacks are missing."""
        from mm_assets.models.features import FeatureBlocks

        columns = covariate_columns(self._clinical, self._workspace.config.clinical, self._task)
        blocks = FeatureBlocks(imaging, self._omics, self._clinical[columns])
        return blocks.frame([patient]).reindex(columns=self._model.feature_names)

    def _slides_of(self, patient: str) -> "tuple[dict[str, pd.DataFrame], pd.DataFrame]":
        """Extrema that the final model reads of each of the patient's finished slides."""
        from mm_assets.models.extremum import of_fold

        manifest = self._slides[self._slides["patient_id"] == patient]
        cohort = self._workspace.config.cohort
        name = extremum_name(self._task)
        receipts = self._workspace.receipts.read_many(cohort, name, manifest["slide_id"])
        by_slide = {
            slide: of_fold(self._table(name, slide))
            for slide, receipt in receipts.items()
            if receipt.state == "done"
        }
        return by_slide, manifest

    def _table(self, asset: str, name: str = COHORT) -> "pd.DataFrame":
        ref = ArtefactRef(self._workspace.config.cohort, asset, name, "parquet")
        return self._workspace.store.read_table(ref)


def _manifest(workspace: Workspace) -> "pd.DataFrame":
    """Slides and patients; empty for a cohort without slides."""
    import pandas as pd

    from mm_assets.cohort.manifest import read_manifest

    if workspace.config.slides is None:
        return pd.DataFrame(columns=["slide_id", "patient_id"])
    manifest, _ = read_manifest(workspace.config.slides)
    return manifest
