"""Settings of a HEEC fit."""

from dataclasses import dataclass, field, replace

from mm_assets.models.boosting import BoostingParameters
from mm_assets.models.features import ClinicalUse


@dataclass(frozen=True)
class TuningBudget:
    """How long hyper-parameters are searched for, in one search.

    Attributes
    ----------
    trials
        Settings tried, the given ones first; below 2 nothing is searched for.
    seconds
        No trial starts after this many; the result then depends on the machine. None: no limit.
    filters
        Whether sizes of filters are searched for too.
    """

    trials: int = 0
    seconds: float | None = None
    filters: bool = True

    def shared(self, searches: float) -> "TuningBudget":
        """The same trials for each of several searches, and an equal part of the seconds."""
        return replace(self, seconds=self.seconds and self.seconds / searches)


@dataclass(frozen=True)
class HeecParameters:
    """Settings of a fit.

    Attributes
    ----------
    imaging_features, omics_features
        Features kept by the univariate filter of each block; None keeps all that vary.
    clinical
        ``feature``: the trees read the covariates. ``offset``: they do not, and boosting starts
        from the linear predictor of the clinical model. ``vote``: in survival the trees read the
        covariates and the clinical Cox model votes beside them; for classes, whose log odds add
        up, the same as ``offset``.
    tuning
        Budget of the search for better settings on the inner folds.
    """

    imaging_features: int | None = 200
    omics_features: int | None = 600
    clinical: ClinicalUse = "vote"
    inner_folds: int = 5
    seed: int = 0
    boosting: BoostingParameters = field(default_factory=BoostingParameters)
    tuning: TuningBudget = TuningBudget()

    def with_filters(self, factor: float | None) -> "HeecParameters":
        """With filters `factor` times as large, kept out of the search; None keeps all features."""

        def scaled(size: int | None) -> int | None:
            return None if factor is None or size is None else max(1, round(factor * size))

        return replace(
            self,
            imaging_features=scaled(self.imaging_features),
            omics_features=scaled(self.omics_features),
            tuning=replace(self.tuning, filters=False),
        )
