"""Options of a model compared with its default: which models, and what came out."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from mm_assets.evaluation.comparison import paired_difference


@dataclass(frozen=True)
class OptionComparison:
    """Models that differ in one option.

    Attributes
    ----------
    question
        What is compared, as a heading.
    reference
        Model with the default.
    options
        Model with another option -> what it is.
    """

    question: str
    reference: str
    options: dict[str, str]


def option_rows(
    metrics: pd.DataFrame, differences: pd.DataFrame, metric: str, compared: OptionComparison
) -> list[dict[str, Any]]:
    """A row for the reference and each option, the reference first.

    Parameters
    ----------
    metrics, differences
        As in `Evaluation`.

    Returns
    -------
    list of dict
        Keys model, words, value, low, high, and gap: the paired difference option minus reference
        with its interval and p values, None for the reference itself.
    """
    columns = ["value", "low", "high"]
    of_metric = metrics[metrics["metric"] == metric].set_index("model")[columns]
    values = of_metric.astype(float).to_dict("index")
    rows: list[dict[str, Any]] = []
    for model, words in {compared.reference: "the default", **compared.options}.items():
        gap = None
        if model != compared.reference:
            gap = paired_difference(differences, model, compared.reference, metric)
        found = {name: values[model][name] for name in columns}
        rows.append({"model": model, "words": words, "gap": gap, **found})
    return rows
