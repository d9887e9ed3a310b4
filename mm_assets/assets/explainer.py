"""Explains patients with the registered HEEC model of a task.

The model is the version that `heec_T` registered: fitted to all patients with an endpoint, so for
those patients it explains what it learnt, not a forecast; documents say so (`seen_in_training`).
"""

from typing import TYPE_CHECKING

from mm_assets.assets.extremum import extremum_name
from mm_assets.assets.models import heec_name
from mm_assets.assets.omics import CLINICAL, OMICS
from mm_assets.assets.stage import Workspace
from mm_assets.cohort.clinical import covariate_columns, make_endpoint
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
        When the model has not been made.
    """

    def __init__(self, workspace: Workspace, task: Task) -> None:
        config = workspace.config
        receipt = workspace.receipts.read(config.cohort, heec_name(task), COHORT)
        if receipt is None or receipt.state != "done":
            raise ValueError(
                f"{heec_name(task)} has not been made: run `mm materialize {config.cohort}`"
            )
        self._workspace, self._task, self._receipt = workspace, task, receipt
        name, version = (receipt.metadata[key] for key in ("registered_model", "version"))
        self._name, self._version = str(name), int(str(version))
        self._model: HeecModel = workspace.tracking.predictor(self._name, self._version)
        self._clinical = self._table(CLINICAL)
        self._omics = self._table(OMICS) if config.omics else None
        self._slides = _manifest(workspace)
        self._trained = set(make_endpoint(self._clinical, task).table.index)

    def explain(self, patient: str) -> "EvidenceDocument":
        """The patient's evidence over all slides, without crops and slide.

        Raises
        ------
        ValueError
            When the cohort has no such patient.
        """
        from mm_assets.explain.backtrack import rank_features, rank_instances
        from mm_assets.explain.contributions import explain_heec, feature_values
        from mm_assets.explain.document import EvidenceDocument, Model
        from mm_assets.models.extremum import patient_extrema, patient_matrix

        by_slide, manifest = self._slides_of(patient)
        if patient not in self._clinical.index and not by_slide:
            raise ValueError(f"cohort {self._workspace.config.cohort} has no patient {patient!r}")
        frame = self._frame(patient, patient_matrix(by_slide, manifest) if by_slide else None)
        found = explain_heec(self._model, frame)
        covariates = self._model.covariates
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
            model=Model(name=self._name, version=self._version),
            weights=str(self._receipt.metadata.get("weights", "")),
            seen_in_training=patient in self._trained,
            towards=str(found.towards.iloc[0]),
            meaning=found.meaning,
            prediction=self._model.predict(frame).iloc[0].astype(float).to_dict(),
            base=float(found.base.iloc[0]),
            score=float(found.score.iloc[0]),
            remainder=sum(item.contribution for item in items[SHOWN_ITEMS:]),
            items=tuple(items[:SHOWN_ITEMS]),
            instances=tuple(rank_instances(items)),
        )

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
