"""A registered model's card: what it is for, how good it is and what it must not be used for."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class ModelCard:
    """What a card says.

    Attributes
    ----------
    name, version
        Of the registered model.
    description, endpoint
        The model and what it predicts, a line each.
    metrics
        Columns metric, value, low, high, patients, events, protocol; of this model.
    weights
        Stamp of the encoder weights; empty without slides.
    outcome
        Whether the version became champion, and why.
    """

    name: str
    version: int
    description: str
    endpoint: str
    metrics: pd.DataFrame
    weights: str
    outcome: str


def render_model_card(card: ModelCard) -> str:
    """The card as Markdown."""
    rows = [
        f"| {row['metric']} | {row['value']:.3f} | {row['low']:.3f} to {row['high']:.3f} "
        f"| {row['patients']} | {row['events']} |"
        for row in card.metrics.to_dict("records")
    ]
    protocol = "; ".join(dict.fromkeys(card.metrics["protocol"].str.split(";").str[0]))
    lines = [
        f"# {card.name} version {card.version}",
        f"**Model:** {card.description}.",
        f"**Predicts:** {card.endpoint}.",
        f"**Encoder weights:** {card.weights or 'none, it reads no slides'}.",
        f"**Champion or challenger:** {card.outcome}.",
        "## Out-of-fold results",
        "\n".join(
            [
                "| metric | mean over folds | 95 % interval | patients | events |",
                "|---|---|---|---|---|",
                *rows,
            ]
        ),
        f"Protocol: {protocol}. Events: deaths, or patients of the rarest class.",
        "## Limits",
        "Fitted to one cohort and not validated on another; for research, not for the care of "
        "patients. Figures are those of models fitted to the folds; the registered one was fitted "
        "to all patients with an endpoint. It reads artefacts made with the weights, settings and "
        "code in the lineage of its run, and no others. Subgroups, calibration and the comparison "
        "with other models are in the report beside this card.",
    ]
    return "\n\n".join(lines) + "\n"


def render_encoder_card(
    name: str, version: int, description: str, facts: Mapping[str, object]
) -> str:
    """The card of an encoder pre-trained without labels, as Markdown; `facts` become a list."""
    lines = [
        f"# {name} version {version}",
        f"**Model:** {description}",
        "## Training",
        "\n".join(f"- {label.replace('_', ' ')}: {value}" for label, value in facts.items()),
        "## Limits",
        "It predicts nothing: what it is worth for a task is in the reports of the models that "
        "read its embeddings. It has seen the slides of one cohort, without outcomes, also those "
        "of test patients who were not excluded; for research, not for the care of patients.",
    ]
    return "\n\n".join(lines) + "\n"
