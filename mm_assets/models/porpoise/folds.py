"""PORPOISE through the folds: out-of-fold predictions, and the final model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pandas as pd

from mm_assets.cohort.clinical import Endpoint
from mm_assets.models.folds import list_folds
from mm_assets.models.porpoise.fitting import PorpoiseParameters, fit_porpoise
from mm_assets.models.porpoise.model import Cohort, PorpoiseModel
from mm_assets.models.porpoise.networks import Kind

Epochs = Callable[[str, int, float, float], None]
FINAL = "final"


@dataclass(frozen=True)
class Fits:
    """All fits of one network to one endpoint.

    Attributes
    ----------
    horizons
        Months at which survival is predicted.
    sites
        Site by patient; the inner split of early stopping then keeps sites apart.
    checkpoints
        Folder of a file a fit, named by the versions of the data: fits that it holds go on where
        they were, or are not done again.
    on_epoch
        Called with the fit (``repeat0_fold1`` or ``final``), the epoch, and the training and
        inner validation loss a patient; also for epochs that a checkpoint holds already.
    """

    kind: Kind
    cohort: Cohort
    endpoint: Endpoint
    horizons: Sequence[float] = ()
    parameters: PorpoiseParameters = field(default_factory=PorpoiseParameters)
    sites: "pd.Series[str] | None" = None
    checkpoints: Path | None = None
    on_epoch: Epochs | None = None

    def out_of_fold(self, splits: pd.DataFrame) -> pd.DataFrame:
        """Predictions of the test patients whom the network can read.

        Parameters
        ----------
        splits
            Columns repeat, fold, patient_id, role.

        Returns
        -------
        DataFrame
            Columns model (``porpoise_<kind>``), repeat, fold, patient_id, then those of
            `PorpoiseModel.predict`.

        Raises
        ------
        ValueError
            When too few training patients of a fold can be read.
        """
        tables = []
        for fold in list_folds(splits):
            model = self._fit(f"repeat{fold.repeat}_fold{fold.fold}", fold.train)
            predicted = model.predict_patients(self.cohort, fold.test)
            tables.append(fold.label(predicted, f"porpoise_{self.kind}"))
        return pd.concat(tables, ignore_index=True)

    def final(self) -> PorpoiseModel:
        """The model of all patients of the task."""
        return self._fit(FINAL, self.endpoint.table.index.to_list())

    def _fit(self, name: str, train: Sequence[str]) -> PorpoiseModel:
        return fit_porpoise(
            self.kind,
            self.cohort,
            self.endpoint,
            train,
            self.horizons,
            self.parameters,
            self.sites,
            self.checkpoints / f"{name}.pt" if self.checkpoints else None,
            partial(self.on_epoch, name) if self.on_epoch else None,
        )
