"""What people say of evidence: agree, disagree, a comment. Appended, never changed.

Each opinion is an object of its own in the store, ``<cohort>/opinions/<time>-<random>.json``,
written whole or not at all; somebody who changes their mind adds another.
"""

import uuid
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mm_assets.explain.document import EvidenceDocument, Model
from mm_assets.resources.store import ArtefactRef, ArtefactStore

OPINIONS = "opinions"
_NAME = r"^[A-Za-z0-9._-]{1,128}$"
_FORMULA = r"^[=+\-@\t\r]"


class Statement(BaseModel):
    """What a person sends.

    Attributes
    ----------
    asset
        Of the evidence, ``evidence_survival`` for example.
    subject
        The feature's name, or ``<level>:<x>:<y>`` of a place.
    model, model_version
        The registered model whose evidence they saw.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    asset: str = Field(pattern=_NAME)
    slide_id: str = Field(pattern=_NAME)
    subject: str = Field(min_length=1, max_length=256)
    verdict: Literal["agree", "disagree", "none"]
    comment: str = Field("", max_length=4000)
    user: str = Field(min_length=1, max_length=100)
    model: str = Field(max_length=256)
    model_version: int

    @model_validator(mode="after")
    def _says_something(self) -> "Statement":
        if self.verdict == "none" and not self.comment:
            raise ValueError("neither a verdict nor a comment")
        return self

    def is_about(self, document: EvidenceDocument) -> bool:
        """Whether the evidence has the subject, and is that of the model."""
        features = {item.feature for item in document.items}
        places = {f"{at.level}:{at.x}:{at.y}" for at in document.on_slide(self.slide_id)}
        model = Model(name=self.model, version=self.model_version)
        return model == document.model and self.subject in features | places


class Opinion(Statement):
    """A statement and when it was made (UTC, ISO 8601)."""

    time: str


class Opinions:
    """The opinions about one cohort."""

    def __init__(self, store: ArtefactStore, cohort: str) -> None:
        self._store, self._cohort = store, cohort
        self._read: dict[str, Opinion] = {}

    def add(self, statement: Statement) -> Opinion:
        """Record a statement now."""
        now = datetime.now(UTC)
        opinion = Opinion(**statement.model_dump(), time=now.isoformat(timespec="milliseconds"))
        name = f"{now:%Y%m%dT%H%M%S.%fZ}-{uuid.uuid4().hex}"
        ref = ArtefactRef(self._cohort, OPINIONS, name, "json")
        self._store.put(ref.key, opinion.model_dump_json().encode())
        return opinion

    def all(self) -> list[Opinion]:
        """Every opinion, the oldest first."""
        refs = self._store.list(self._cohort, OPINIONS)
        for ref in refs:
            if ref.name not in self._read:
                self._read[ref.name] = Opinion.model_validate_json(self._store.read_bytes(ref))
        return [self._read[name] for name in sorted(ref.name for ref in refs)]

    def rows(self) -> list[dict[str, Any]]:
        """`all` as rows for people and programs."""
        return [opinion.model_dump() for opinion in self.all()]

    def csv(self) -> str:
        """`all` as CSV, which has its columns even when nobody has said anything.

        Text that a spreadsheet would take for a formula begins with an apostrophe.
        """
        import pandas as pd

        table = pd.DataFrame(self.rows(), columns=list(Opinion.model_fields)).astype(str)
        return table.replace(_FORMULA, r"'\g<0>", regex=True).to_csv(index=False)
