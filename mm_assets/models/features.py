"""What a model reads: blocks of features a cohort has, and the in-fold path to one matrix."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mm_assets.cohort.clinical import Endpoint
from mm_assets.models.clinical import CovariateEncoder
from mm_assets.omics.filters import apply_filter, fit_filter

EXPRESSION = "expression"
Matrix = NDArray[np.float32]
ClinicalUse = Literal["vote", "feature", "offset"]


@dataclass(frozen=True)
class FeatureBlocks:
    """Raw features by patient; a block is None where the cohort has none of it.

    Patients may be missing from a block, and values may be missing; both stay missing values.

    Attributes
    ----------
    imaging
        From `patient_matrix`: columns ``<level>:<min|max>:<dimension>``.
    omics
        From `read_omics`: columns ``<modality>:<GENE>``.
    clinical
        Covariates that models may use, of any type.
    """

    imaging: pd.DataFrame | None = None
    omics: pd.DataFrame | None = None
    clinical: pd.DataFrame | None = None

    def frame(self, patients: Sequence[str]) -> pd.DataFrame:
        """All blocks side by side for `patients`, in their order."""
        blocks = [b for b in (self.imaging, self.omics, self.clinical) if b is not None]
        return pd.concat([block.reindex(list(patients)) for block in blocks], axis=1)

    @property
    def modalities(self) -> list[str]:
        """Modalities of the omics block, e.g. expression and mutation."""
        if self.omics is None:
            return []
        return list(dict.fromkeys(name.partition(":")[0] for name in self.omics.columns))

    @property
    def levels(self) -> list[str]:
        """Levels of the imaging block, e.g. region and tile."""
        if self.imaging is None:
            return []
        return list(dict.fromkeys(_level(name) for name in self.imaging.columns))


def _level(feature: str) -> str:
    return feature.partition(":")[0]


@dataclass(frozen=True)
class Variant:
    """A model's name and the features it may read.

    Attributes
    ----------
    selection
        Whether extrema are taken over the instances that were selected; else over all.
    levels
        Levels of the slides that are read; None reads all.
    clinical_use
        How covariates enter, see `HeecParameters.clinical`.
    filter_factor
        Multiple of the filters' sizes; None keeps every feature.
    without_modalities
        Omics modalities left out.
    without_genes
        Genes of which no omics feature is read, of whatever modality.
    """

    name: str
    imaging: bool = True
    selection: bool = True
    omics: bool = True
    clinical: bool = True
    levels: tuple[str, ...] | None = None
    clinical_use: ClinicalUse = "vote"
    filter_factor: float | None = 1.0
    without_modalities: tuple[str, ...] = ()
    without_genes: tuple[str, ...] = ()

    def select(self, blocks: FeatureBlocks) -> FeatureBlocks:
        """The blocks that this variant reads."""
        omics = blocks.omics if self.omics else None
        if omics is not None and (self.without_modalities or self.without_genes):
            parts = [name.partition(":") for name in omics.columns]
            kept = [
                modality not in self.without_modalities and gene not in self.without_genes
                for modality, _, gene in parts
            ]
            omics = omics.loc[:, kept] if any(kept) else None
        imaging = blocks.imaging if self.imaging else None
        if imaging is not None and self.levels is not None:
            imaging = imaging.loc[:, [_level(name) in self.levels for name in imaging.columns]]
        return replace(
            blocks,
            imaging=imaging,
            omics=omics,
            clinical=blocks.clinical if self.clinical else None,
        )


def default_variants(blocks: FeatureBlocks, model: str = "heec") -> list[Variant]:
    """The full model, then every ablation that differs from it and reads imaging or omics."""
    imaging, omics = blocks.imaging is not None, blocks.omics is not None
    clinical = blocks.clinical is not None
    variants = [Variant(model)]
    if imaging and (omics or clinical):
        variants.append(Variant(f"{model}_imaging", omics=False, clinical=False))
    if omics and (imaging or clinical):
        variants.append(Variant(f"{model}_omics", imaging=False, clinical=False))
    rest = [name for name in blocks.modalities if name != EXPRESSION]
    if EXPRESSION in blocks.modalities and (rest or imaging):
        without = Variant(f"{model}_no_expression", without_modalities=(EXPRESSION,))
        variants.append(without)
    if EXPRESSION in blocks.modalities and rest and (imaging or clinical):
        only = replace(without, name=f"{model}_omics_no_expression", imaging=False, clinical=False)
        variants.append(only)
    return variants


@dataclass(frozen=True)
class Preprocessor:
    """From raw features to the matrix a booster reads; everything in it fitted in training.

    Attributes
    ----------
    imaging, omics
        Kept features with winsorisation limits, as from `fit_filter`; None without the block.
    covariates
        None without covariates.
    """

    imaging: pd.DataFrame | None
    omics: pd.DataFrame | None
    covariates: CovariateEncoder | None

    @classmethod
    def fit(
        cls,
        blocks: FeatureBlocks,
        endpoint: Endpoint,
        train: Sequence[str],
        keep_imaging: int | None,
        keep_omics: int | None,
        filtered_omics: pd.DataFrame | None = None,
    ) -> "Preprocessor":
        """Fit to training patients.

        Parameters
        ----------
        keep_imaging, keep_omics
            Features kept by the univariate filter; None keeps all that vary.
        filtered_omics
            `fit_filter` of the omics block on exactly these patients, where it is known.
        """
        known = pd.Index(train)
        imaging, omics = None, filtered_omics
        if blocks.imaging is not None and len(known.intersection(blocks.imaging.index)):
            imaging = fit_filter(blocks.imaging, endpoint, train, keep_imaging)
        if (
            omics is None
            and blocks.omics is not None
            and len(known.intersection(blocks.omics.index))
        ):
            omics = fit_filter(blocks.omics, endpoint, train, keep_omics)
        encoder = None
        if blocks.clinical is not None:
            encoder = CovariateEncoder.fit(blocks.clinical.reindex(known))
        return cls(imaging, omics, encoder)

    @property
    def filtered(self) -> tuple[pd.DataFrame, ...]:
        """The filters of the blocks there are, in the order of the matrix's columns."""
        return tuple(table for table in (self.imaging, self.omics) if table is not None)

    def columns(self, keep_imaging: int | None, keep_omics: int | None) -> NDArray[np.intp]:
        """Places of the matrix's columns that smaller filters would have kept."""
        chosen, start = [], 0
        for table, keep in ((self.imaging, keep_imaging), (self.omics, keep_omics)):
            size = 0 if table is None else len(table)
            chosen.append(start + np.arange(size)[:keep])
            start += size
        return np.concatenate([*chosen, np.arange(start, max(len(self.names), 1))])

    @property
    def inputs(self) -> list[str]:
        """Raw features that `transform` reads."""
        kept = [name for table in self.filtered for name in table["feature"]]
        return kept + (list(self.covariates.inputs) if self.covariates else [])

    @property
    def names(self) -> list[str]:
        """Names of the matrix's columns."""
        kept = [name for table in self.filtered for name in table["feature"]]
        return kept + (self.covariates.names() if self.covariates else [])

    def transform(self, frame: pd.DataFrame) -> Matrix:
        """Matrix [patients, `names`] of a frame with at least the columns `inputs`."""
        parts = [apply_filter(frame, table).to_numpy(np.float32) for table in self.filtered]
        if self.covariates:
            parts.append(self.covariates.encode(frame).astype(np.float32))
        matrix = np.hstack([np.empty((len(frame), 0), np.float32), *parts])
        # LightGBM refuses a matrix without columns; from a constant it learns nothing.
        return matrix if matrix.shape[1] else np.zeros((len(frame), 1), np.float32)
