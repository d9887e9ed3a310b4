"""Models and endpoints in words, for reports."""

from collections.abc import Sequence

from mm_assets.assets.heec_inputs import without_genes_label
from mm_assets.assets.porpoise import Network
from mm_assets.cohort.config import SurvivalTask, Task

# Beginnings of the names of models of one modality.
SINGLE_MODALITY = (
    *("clinical_", "heec_imaging", "heec_omics"),
    *("porpoise_amil", "porpoise_snn", "hipt"),
)
ALONE = {"imaging": "HEEC, slides alone", "omics": "HEEC, omics alone"}
READ = {"amil": "slides alone", "snn": "omics alone", "mmf": "slides and omics"}
METHOD = {
    "amil": "attention over the tiles of the slides",
    "snn": "self-normalizing network of all omics features",
    "mmf": "attention over tiles and self-normalizing network, fused",
}


def model_names(task: Task, networks: Sequence[Network], only: str = "") -> dict[str, str]:
    """Model -> name for people; models that are not here go by their own.

    Parameters
    ----------
    networks
        Of PORPOISE, as the cohort has them.
    only
        ``imaging`` or ``omics`` where that is all there is for HEEC to read.
    """
    genes = ", ".join(task.without_genes)
    return {
        "clinical_cox": "Clinical covariates alone",
        "clinical_logistic": "Clinical covariates alone",
        "heec": ALONE.get(only, "HEEC, all modalities"),
        **{f"heec_{modality}": name for modality, name in ALONE.items()},
        "heec_no_expression": "HEEC without expression",
        "heec_omics_no_expression": "HEEC, omics without expression",
        "heec_imaging_unselected": "HEEC, slides, all tiles",
        "heec_imaging_region": "HEEC, slides, regions",
        "heec_imaging_tile": "HEEC, slides, tiles",
        "heec_imaging_nucleus": "HEEC, slides, nuclei",
        "heec_clinical_feature": "HEEC, covariates as features",
        "heec_clinical_offset": "HEEC, covariates as offset",
        "heec_filter_quarter": "HEEC, smaller filters",
        "heec_filter_none": "HEEC, no filters",
        "hipt": "HIPT, slides alone",
        **{
            f"porpoise_{n.suffix}": f"PORPOISE, {READ[n.kind]}{n.encoder and f' ({n.encoder})'}"
            for n in networks
        },
        **({f"heec_{without_genes_label(task)}": f"HEEC without {genes}"} if genes else {}),
    }


def model_descriptions(task: Task, networks: Sequence[Network]) -> dict[str, str]:
    """One line on every model there can be; `networks` as of `model_names`."""
    from mm_assets.models.variants import GROUPS

    options = {model: words for group in GROUPS.values() for model, words in group.described()}
    without = {f"heec_{without_genes_label(task)}": f"without {', '.join(task.without_genes)}"}
    return {
        "clinical_cox": "Cox regression on clinical covariates",
        "clinical_logistic": "logistic regression on clinical covariates",
        "heec": "boosted trees on everything the cohort has",
        "heec_imaging": "boosted trees on slides",
        "heec_omics": "boosted trees on omics",
        "heec_no_expression": "boosted trees on everything but gene expression",
        "heec_omics_no_expression": "boosted trees on omics without gene expression",
        "hipt": "attention over the regions of the slides",
        **{
            f"porpoise_{n.suffix}": f"{METHOD[n.kind]}{n.encoder and f' embedded by {n.encoder}'}"
            for n in networks
        },
        **options,
        **(without if task.without_genes else {}),
    }


def is_single_modality(model: str) -> bool:
    """Whether a model reads slides, omics or clinical covariates alone, by its name."""
    return model.startswith(SINGLE_MODALITY)


def endpoint_in_words(task: Task) -> str:
    """What a task predicts."""
    if isinstance(task, SurvivalTask):
        return f"time to the event ({task.time}, in months; {task.event or task.censored})"
    return f"{task.column}: {' or '.join(task.classes)}"
