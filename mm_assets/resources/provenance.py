"""What made an artefact, and its fingerprint."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TypeAlias

from mm_assets.resources.digest import bytes_digest, canonical_json

JSON: TypeAlias = bool | int | float | str | list["JSON"] | dict[str, "JSON"] | None


@dataclass(frozen=True)
class Provenance:
    """What made an artefact.

    Attributes
    ----------
    asset, name
        The asset and the slide id, or ``cohort``.
    code_version
        Version of the code that computes the asset.
    parameters
        Everything configurable that influences the result, JSON values only.
    inputs
        Upstream asset -> slide id or ``cohort`` -> digest of what was read.
    """

    asset: str
    name: str
    code_version: str
    parameters: dict[str, JSON] = field(default_factory=dict)
    inputs: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Tuples and NumPy-free numbers become what JSON makes of them, so a round trip is equal.
        for attribute in ("parameters", "inputs"):
            plain = json.loads(canonical_json(getattr(self, attribute)))
            object.__setattr__(self, attribute, plain)

    def fingerprint(self) -> str:
        """``sha256:<hex>`` over asset, code version, parameters and inputs (not the name)."""
        return bytes_digest(
            canonical_json([self.asset, self.code_version, self.parameters, self.inputs])
        )

    def to_json(self) -> str:
        """Canonical JSON text."""
        return canonical_json(asdict(self)).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Provenance:
        """Inverse of `to_json`."""
        return cls(**json.loads(text))
