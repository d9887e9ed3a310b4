"""Evidence behind a prediction as JSON: one format for every model, read by the viewer.

A document is about one patient and, where there is one, one slide. Models whose features have
names list `items`; models that weigh instances, by attention for example, list `instances` alone.
Coordinates are level-0 pixels of the top-left corner. `EvidenceDocument.model_json_schema()` is
the JSON schema.
"""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Item(_Part):
    """One feature and what it adds to the score.

    Attributes
    ----------
    value
        As measured; None where the patient has none, which contributes too.
    level, dimension, extremum
        What an imaging feature stands for.
    slide_id, x, y, size0
        Where its value lies; None where the patient has no value.
    crop
        File of its pixels beside the document.
    """

    rank: int
    kind: Literal["imaging", "omics", "clinical"]
    feature: str
    value: float | None
    contribution: float
    level: str | None = None
    dimension: int | None = None
    extremum: Literal["min", "max"] | None = None
    slide_id: str | None = None
    x: int | None = None
    y: int | None = None
    size0: int | None = None
    crop: str | None = None


class Instance(_Part):
    """One place on a slide and its score.

    Attributes
    ----------
    rank
        Among all instances of the patient, by size of the score.
    score
        Sum of the contributions of the features that point here, or attention.
    features
        How many point here; None where scores come from no features.
    shared_out
        Whether smaller instances inside this one hold its score again.
    """

    rank: int
    slide_id: str
    level: str
    x: int
    y: int
    size0: int
    score: float
    features: int | None = None
    shared_out: bool = False
    crop: str | None = None


class Model(_Part):
    """The registered model that is explained."""

    name: str
    version: int


class SlideFrame(_Part):
    """What a viewer needs to place coordinates."""

    slide_id: str
    width: int
    height: int
    mpp: float


class EvidenceDocument(_Part):
    """Everything behind one prediction.

    Attributes
    ----------
    method
        Short name of the kind of model, ``heec`` for example.
    weights
        Encoders and weights behind imaging features; empty without slides.
    seen_in_training
        Whether the model was fitted to this patient among others: its prediction is then no
        forecast.
    towards
        ``risk``, or the class that positive scores speak for.
    meaning
        What a contribution or a score is, in words.
    base, score
        Score without any feature, and of this patient: base, contributions of the items and
        `remainder` (of features that are not listed) sum to it. None for methods without.
    prediction
        The model's outputs by name.
    """

    schema_name: Literal["mm_assets.evidence"] = Field("mm_assets.evidence", alias="schema")
    version: Literal[1] = 1
    cohort: str
    task: str
    patient_id: str
    method: str
    model: Model
    weights: str
    seen_in_training: bool
    towards: str
    meaning: str
    prediction: dict[str, float]
    base: float | None = None
    score: float | None = None
    remainder: float = 0.0
    slide: SlideFrame | None = None
    items: tuple[Item, ...] = ()
    instances: tuple[Instance, ...] = ()

    def to_json(self) -> bytes:
        """UTF-8 JSON."""
        return self.model_dump_json(by_alias=True, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "EvidenceDocument":
        """Inverse of `to_json`.

        Raises
        ------
        ValueError
            When it is no evidence document of a known version.
        """
        return cls.model_validate_json(data)

    def on_slide(self, slide_id: str) -> tuple[Instance, ...]:
        """The instances of one slide, the strongest first."""
        return tuple(found for found in self.instances if found.slide_id == slide_id)


def table_rows(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Items as rows for people: figures rounded, nothing but what says something to them."""
    return [
        {
            "rank": item.rank,
            "kind": item.kind,
            "feature": item.feature,
            "value": "missing" if item.value is None else f"{item.value:.4g}",
            "contribution": f"{item.contribution:+.4f}",
            "slide": item.slide_id or "",
            "x": "" if item.x is None else str(item.x),
            "y": "" if item.y is None else str(item.y),
        }
        for item in items
    ]


def place_rows(instances: Sequence[Instance]) -> list[dict[str, Any]]:
    """Instances as rows for people."""
    return [
        {
            "rank": found.rank,
            "level": found.level,
            "score": f"{found.score:+.4f}",
            "features": "" if found.features is None else str(found.features),
            "slide": found.slide_id,
            "x": found.x,
            "y": found.y,
            "size0": found.size0,
            "crop": found.crop or "",
        }
        for found in instances
    ]
