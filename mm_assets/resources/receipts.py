"""Receipts: what has been made, from what, and what failed. They are the truth, not the event log.

A receipt is a small JSON file per (asset, slide or cohort), written after every artefact it names,
so a killed run leaves either the whole result or none. What has a valid receipt is not computed
again, in retries, re-runs and after a kill.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Literal

from mm_assets.resources.digest import bytes_digest, canonical_json
from mm_assets.resources.store import (
    JSON,
    ArtefactRef,
    ArtefactStore,
    MissingArtefact,
    Provenance,
)

_THREADS = 16  # requests in flight: S3 answers in tens of milliseconds, a folder at once


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Receipt:
    """Outcome of one asset for one slide or for the cohort.

    Attributes
    ----------
    cohort, asset, name
        What it is about; `name` is a slide id or ``cohort``.
    state
        ``done``, or ``failed`` with a `reason`.
    provenance
        What it was, or was to be, made from; `fingerprint` identifies it.
    outputs
        Artefacts in the store, by what follows the name in their key (``arrow``, or
        ``regions.arrow`` for the artefact named ``<name>.regions``) -> content digest.
    metadata
        Small figures and texts for people.
    seconds
        Time it took.
    created
        ISO time, UTC.
    """

    cohort: str
    asset: str
    name: str
    state: Literal["done", "failed"]
    provenance: Provenance
    outputs: dict[str, str] = field(default_factory=dict)
    reason: str = ""
    metadata: dict[str, JSON] = field(default_factory=dict)
    seconds: float = 0.0
    created: str = field(default_factory=_now)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the provenance."""
        return self.provenance.fingerprint()

    @property
    def digest(self) -> str:
        """Data version: the digest of the only output, or one over all of them.

        A result without artefacts is what was asked for: its fingerprint.
        """
        if not self.outputs:
            return self.fingerprint
        if len(self.outputs) == 1:
            return next(iter(self.outputs.values()))
        return bytes_digest(canonical_json(self.outputs))

    def to_json(self) -> bytes:
        """Canonical JSON, fingerprint included for readers without our code."""
        return canonical_json({**asdict(self), "fingerprint": self.fingerprint})

    @classmethod
    def from_json(cls, data: bytes) -> Receipt:
        """Inverse of `to_json`.

        Raises
        ------
        ValueError
            When it is not a whole receipt.
        """
        try:
            fields = dict(json.loads(data))
            fingerprint = fields.pop("fingerprint")
            receipt = cls(**{**fields, "provenance": Provenance(**fields["provenance"])})
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a receipt: {error}") from error
        if receipt.fingerprint != fingerprint or receipt.state not in ("done", "failed"):
            raise ValueError("not a receipt: it contradicts itself")
        return receipt


class Receipts:
    """Receipts of a store, at ``<cohort>/_receipts/<asset>/<name>.json``."""

    def __init__(self, store: ArtefactStore):
        self.store = store

    def write(self, receipt: Receipt) -> None:
        """Write atomically; call it after the artefacts named in `outputs` are written."""
        key = _key(receipt.cohort, receipt.asset, receipt.name)
        self.store.put(key, receipt.to_json())

    def read(self, cohort: str, asset: str, name: str) -> Receipt | None:
        """Receipt, or None when there is none or it is damaged (then the work is done again)."""
        try:
            return Receipt.from_json(self.store.get(_key(cohort, asset, name)))
        except (MissingArtefact, ValueError):
            return None

    def read_all(self, cohort: str, asset: str) -> dict[str, Receipt]:
        """Name -> receipt, sorted by name; damaged ones are left out."""
        return self.read_many(cohort, asset, self.names(cohort, asset))

    def names(self, cohort: str, asset: str) -> list[str]:
        """Names that have a receipt, sorted."""
        files = self.store.files(f"{cohort}/_receipts/{asset}")
        return [file.removesuffix(".json") for file in files]

    def read_many(self, cohort: str, asset: str, names: Iterable[str]) -> dict[str, Receipt]:
        """Name -> receipt of those names that have one, in the order given."""
        names = tuple(names)
        with ThreadPoolExecutor(_THREADS) as pool:
            found = pool.map(lambda name: self.read(cohort, asset, name), names)
        return {name: r for name, r in zip(names, found, strict=True) if r is not None}

    def valid(self, cohort: str, asset: str, name: str, fingerprint: str) -> Receipt | None:
        """Receipt of finished work with this fingerprint whose artefacts are still there."""
        receipt = self.read(cohort, asset, name)
        if receipt is None or receipt.state != "done" or receipt.fingerprint != fingerprint:
            return None
        kept = all(self.store.has(f"{cohort}/{asset}/{name}.{o}") for o in receipt.outputs)
        return receipt if kept else None

    def valid_many(
        self, cohort: str, asset: str, fingerprints: Mapping[str, str]
    ) -> dict[str, Receipt]:
        """`valid` for many names at once (name -> fingerprint); one listing, threaded reads."""
        files = set(self.store.files(f"{cohort}/{asset}"))
        return {
            name: receipt
            for name, receipt in self.read_many(cohort, asset, fingerprints).items()
            if receipt.state == "done"
            and receipt.fingerprint == fingerprints[name]
            and files.issuperset(f"{name}.{output}" for output in receipt.outputs)
        }

    def delete(self, cohort: str, asset: str, name: str) -> None:
        """Forget the outcome; the artefacts stay."""
        self.store.remove(_key(cohort, asset, name))


def _key(cohort: str, asset: str, name: str) -> str:
    ref = ArtefactRef(cohort, asset, name, "json")  # refuses names that would leave the folder
    return f"{ref.cohort}/_receipts/{ref.asset}/{ref.name}.{ref.extension}"
