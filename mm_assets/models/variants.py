"""Options of HEEC that a report can compare, in groups, each with the model it is compared with."""

from collections.abc import Sequence
from dataclasses import dataclass

from mm_assets.models.features import FeatureBlocks, Variant


@dataclass(frozen=True)
class VariantGroup:
    """Variants that differ from a reference model in one option.

    Attributes
    ----------
    question
        Heading of the comparison.
    reference
        Name of the model with the default option.
    variants, descriptions
        The other options, and what each is, in their order.
    """

    question: str
    reference: str
    variants: tuple[Variant, ...]
    descriptions: tuple[str, ...]

    def described(self) -> list[tuple[str, str]]:
        """Name and description of every variant."""
        names = [variant.name for variant in self.variants]
        return list(zip(names, self.descriptions, strict=True))


def _of_level(level: str) -> Variant:
    return Variant(f"heec_imaging_{level}", omics=False, clinical=False, levels=(level,))


GROUPS = {
    "levels": VariantGroup(
        "Which level of the slides tells most?",
        "heec_imaging",
        (_of_level("region"), _of_level("tile"), _of_level("nucleus")),
        (
            "slides alone, regions of 4096 px only",
            "slides alone, tiles only",
            "slides alone, nuclei only",
        ),
    ),
    "selection": VariantGroup(
        "Does selecting tiles and nuclei help?",
        "heec_imaging",
        (Variant("heec_imaging_unselected", omics=False, clinical=False, selection=False),),
        ("slides alone, extrema over all tiles and nuclei",),
    ),
    "clinical": VariantGroup(
        "How should covariates enter?",
        "heec",
        (
            Variant("heec_clinical_feature", clinical_use="feature"),
            Variant("heec_clinical_offset", clinical_use="offset"),
        ),
        (
            "covariates read by the trees, the clinical model left out",
            "boosting starts from the clinical model, the trees read no covariate",
        ),
    ),
    "filters": VariantGroup(
        "How many features should pass the filters?",
        "heec",
        (
            Variant("heec_filter_quarter", filter_factor=0.25),
            Variant("heec_filter_none", filter_factor=None),
        ),
        ("a quarter as many features", "every feature that varies"),
    ),
}


def compared_variants(
    groups: Sequence[str], blocks: FeatureBlocks, kind: str, selects: bool
) -> list[Variant]:
    """The variants of some groups that differ from their reference on these features.

    Parameters
    ----------
    groups
        Keys of `GROUPS`.
    kind
        ``survival`` or ``classification``: for classes the offset is the default.
    selects
        Whether there is a selection of instances.
    """
    return [
        variant
        for group in dict.fromkeys(groups)
        for variant in GROUPS[group].variants
        if _differs(variant, blocks, kind, selects)
    ]


def _differs(variant: Variant, blocks: FeatureBlocks, kind: str, selects: bool) -> bool:
    if variant.levels is not None:
        return len(blocks.levels) > 1 and set(variant.levels) <= set(blocks.levels)
    if not variant.selection:
        return blocks.imaging is not None and selects
    if variant.clinical_use != "vote":
        votes = kind == "survival"
        return blocks.clinical is not None and (votes or variant.clinical_use != "offset")
    return True
