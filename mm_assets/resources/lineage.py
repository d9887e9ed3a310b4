"""Lineage: from a model or an artefact back to the digests of the slides and tables behind it.

The tree of an artefact is read from the receipts as they are now; the tree of a registered model
is the one logged with it, so it stays true when upstream artefacts are made again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mm_assets.resources.receipts import Receipt, Receipts
from mm_assets.resources.store import COHORT, JSON, ArtefactStore, Provenance

if TYPE_CHECKING:
    from mm_assets.resources.tracking import Tracking

_MODEL = re.compile(r"(?P<name>[^/@:.]+\.[^/@:.]+\.[^/@:]+)(?:[@:](?P<version>[^/@:]+))?")
FACTS = ("sha256", "weights", "weights_sha256")
_READ_ALL_ABOVE = 16  # more names than this: one listing and threaded reads


class LineageError(LookupError):
    """The reference names nothing that is known."""


@dataclass(frozen=True)
class LineageNode:
    """One artefact and what it was made from.

    Attributes
    ----------
    asset, name
        Asset and slide id or ``cohort``.
    digest
        Data version that the artefact downstream read.
    code_version, parameters
        How it was made; empty for what was not made here, such as a slide file.
    facts
        Digest of the slide's file, and of the encoder's weights, where the artefact knows them.
    current
        Data version in the store now, where it is another: the artefact downstream is stale, and
        `inputs` are those of the present version.
    inputs
        What it was made from. Nodes are shared: this is a graph, walked as a tree.
    """

    asset: str
    name: str
    digest: str
    code_version: str = ""
    parameters: dict[str, JSON] = field(default_factory=dict)
    current: str = ""
    facts: dict[str, JSON] = field(default_factory=dict)
    inputs: tuple[LineageNode, ...] = ()

    @property
    def stale(self) -> bool:
        """Whether the store now holds another version than the one that was read."""
        return bool(self.current)

    @property
    def identity(self) -> str:
        """``<asset>/<name>@<digest>``, unique in a tree."""
        return f"{self.asset}/{self.name}@{self.digest}"


def lineage_of_artefact(
    store: ArtefactStore, cohort: str, asset: str, name: str = COHORT
) -> LineageNode:
    """Tree of a finished artefact.

    Raises
    ------
    LineageError
        When it has no receipt of finished work.
    """
    receipt = Receipts(store).read(cohort, asset, name)
    if receipt is None or receipt.state != "done":
        why = f"it failed: {receipt.reason}" if receipt else "it was not made yet"
        raise LineageError(f"{cohort}/{asset}/{name} has no lineage: {why}")
    return lineage_of_provenance(store, cohort, receipt.provenance, receipt.digest)


def lineage_of_provenance(
    store: ArtefactStore, cohort: str, provenance: Provenance, digest: str = ""
) -> LineageNode:
    """Tree of something that is being made: a model to be logged before its receipt is written."""
    return _Walker(store, cohort).node(provenance, digest)


def lineage_of_asset(store: ArtefactStore, cohort: str, asset: str) -> LineageNode:
    """Every finished artefact of a per-slide asset under one root."""
    receipts = Receipts(store).read_all(cohort, asset)
    made = {name: receipt.digest for name, receipt in receipts.items() if receipt.state == "done"}
    if not made:
        raise LineageError(f"{cohort}/{asset} has no lineage: nothing of it was made yet")
    return lineage_of_provenance(store, cohort, Provenance(asset, "*", "", inputs={asset: made}))


def lineage_of_model(tracking: Tracking, ref: str) -> LineageNode:
    """Tree logged with ``<cohort>.<task>.<model>[@alias|:version]``, by default the champion.

    Raises
    ------
    LineageError
        When there is no such model, version or alias.
    """
    match = _MODEL.fullmatch(ref)
    if match is None:
        raise LineageError(f"{ref!r}: write <cohort>.<task>.<model>[@alias|:version]")
    try:
        model = tracking.version(match["name"], match["version"] or "champion")
    except LookupError as error:
        raise LineageError(str(error)) from error
    logged = tracking.lineage(model)
    if not logged:
        raise LineageError(f"{model.name}:{model.version} was registered without its lineage")
    return LineageNode(
        "registered_model",
        f"{model.name}:{model.version}",
        digest="",
        parameters={"mlflow_run": model.run_id},
        inputs=(from_json(logged),),
    )


def resolve(ref: str, store: ArtefactStore, tracking: Tracking) -> LineageNode:
    """Tree of a registered model, or of ``<cohort>/<asset>[/<slide>]``.

    Raises
    ------
    LineageError
        When the reference has neither form, or names nothing known.
    """
    parts = ref.split("/")
    if len(parts) == 1:
        return lineage_of_model(tracking, ref)
    if not all(parts) or len(parts) > 3:
        raise LineageError(f"{ref!r}: write <cohort>/<asset>[/<slide>] or <cohort>.<task>.<model>")
    if len(parts) == 2 and Receipts(store).read(parts[0], parts[1], COHORT) is None:
        return lineage_of_asset(store, parts[0], parts[1])
    return lineage_of_artefact(store, *parts)


class _Walker:
    """Reads each receipt once, however many artefacts were made from it."""

    def __init__(self, store: ArtefactStore, cohort: str):
        self._receipts = Receipts(store)
        self._cohort = cohort
        self._read: dict[tuple[str, str], Receipt | None] = {}
        self._nodes: dict[tuple[str, str, str], LineageNode] = {}

    def node(
        self,
        provenance: Provenance,
        digest: str,
        current: str = "",
        facts: Mapping[str, JSON] | None = None,
    ) -> LineageNode:
        return LineageNode(
            provenance.asset,
            provenance.name,
            digest,
            provenance.code_version,
            provenance.parameters,
            current,
            dict(facts or {}),
            tuple(self._inputs(provenance, digest)),
        )

    def _inputs(self, provenance: Provenance, own_digest: str) -> Iterator[LineageNode]:
        for asset, versions in provenance.inputs.items():
            self._prefetch(asset, versions)
            for name, digest in versions.items():
                if (asset, name) != (provenance.asset, provenance.name):
                    yield self._input(asset, name, digest)
                elif digest != own_digest:  # a slide names its own file: there the walk ends
                    yield LineageNode(asset, name, digest)

    def _input(self, asset: str, name: str, digest: str) -> LineageNode:
        key = (asset, name, digest)
        if key not in self._nodes:
            self._nodes[key] = self._made(asset, name, digest)
        return self._nodes[key]

    def _made(self, asset: str, name: str, digest: str) -> LineageNode:
        receipt = self._read.get((asset, name))
        if receipt is None:
            return LineageNode(asset, name, digest)
        unchanged = digest == receipt.digest or digest in receipt.outputs.values()
        facts = {key: receipt.metadata[key] for key in FACTS if key in receipt.metadata}
        return self.node(receipt.provenance, digest, "" if unchanged else receipt.digest, facts)

    def _prefetch(self, asset: str, versions: Mapping[str, str]) -> None:
        wanted = [name for name in versions if (asset, name) not in self._read]
        if len(wanted) > _READ_ALL_ABOVE:
            found: Mapping[str, Receipt | None] = self._receipts.read_many(
                self._cohort, asset, wanted
            )
        else:
            found = {name: self._receipts.read(self._cohort, asset, name) for name in wanted}
        self._read |= {(asset, name): found.get(name) for name in wanted}


def to_json(tree: LineageNode) -> dict[str, Any]:
    """Flat form: ``{"root": identity, "nodes": {identity: {..., "inputs": [identity, ...]}}}``.

    Flat because a slide is upstream of everything: nested, its record would be repeated for every
    path that leads to it.
    """
    nodes: dict[str, Any] = {}

    def add(node: LineageNode) -> str:
        if node.identity not in nodes:
            nodes[node.identity] = {}  # keeps the place: roots come before what they were made of
            inputs = [add(upstream) for upstream in node.inputs]
            nodes[node.identity] = {**_fields(node), "inputs": inputs}
        return node.identity

    return {"root": add(tree), "nodes": nodes}


def from_json(flat: Mapping[str, Any]) -> LineageNode:
    """Inverse of `to_json`."""
    built: dict[str, LineageNode] = {}

    def build(identity: str) -> LineageNode:
        if identity not in built:
            fields = flat["nodes"][identity]
            inputs = tuple(build(upstream) for upstream in fields["inputs"])
            built[identity] = LineageNode(**{**fields, "inputs": inputs})
        return built[identity]

    return build(flat["root"])


def _fields(node: LineageNode) -> dict[str, Any]:
    return {name: getattr(node, name) for name in node.__dataclass_fields__}


def render(tree: LineageNode, limit: int = 8, full: bool = False) -> list[str]:
    """Lines of text, one an artefact, down to slide digests.

    More than `limit` artefacts of one asset are one line with their count and what they were made
    from taken together; with `full` every artefact has its line, with whole digests.
    """
    return [_line(tree, full), *_Renderer(limit, full).children([tree], "")]


class _Renderer:
    def __init__(self, limit: int, full: bool):
        self._limit = limit
        self._full = full
        self._shown: set[str] = set()

    def children(self, nodes: Sequence[LineageNode], indent: str) -> Iterator[str]:
        groups: dict[str, dict[str, LineageNode]] = {}
        for node in (upstream for parent in nodes for upstream in parent.inputs):
            groups.setdefault(node.asset, {})[node.identity] = node
        entries = [entry for group in groups.values() for entry in self._entries([*group.values()])]
        for index, entry in enumerate(entries):
            last = index == len(entries) - 1
            yield from self._entry(entry, indent, "└─ " if last else "├─ ", last)

    def _entries(self, group: list[LineageNode]) -> list[list[LineageNode]]:
        if self._full or len(group) <= self._limit:
            return [[node] for node in group]
        return [group]

    def _entry(
        self, nodes: list[LineageNode], indent: str, branch: str, last: bool
    ) -> Iterator[str]:
        line = _line(nodes[0], self._full) if len(nodes) == 1 else _count(nodes)
        repeated = all(node.identity in self._shown for node in nodes)
        again = repeated and any(node.inputs for node in nodes)
        yield f"{indent}{branch}{line}" + (" (shown above)" if again else "")
        if not repeated:
            self._shown |= {node.identity for node in nodes}
            yield from self.children(nodes, indent + ("   " if last else "│  "))


def _line(node: LineageNode, full: bool) -> str:
    parts = [node.asset if node.name == COHORT else f"{node.asset} {node.name}"]
    parts += [_short(node.digest, full)] if node.digest else []
    parts += [f"code {node.code_version}"] if node.code_version else []
    parts += [f"{key} {_short(str(value), full)}" for key, value in node.facts.items()]
    parts += [f"{key}={value}" for key, value in node.parameters.items()] if full else []
    parts += [f"STALE: now {_short(node.current, full)}"] if node.stale else []
    return "  ".join(parts)


def _count(nodes: list[LineageNode]) -> str:
    stale = sum(node.stale for node in nodes)
    versions = sorted({node.code_version for node in nodes} - {""})
    names = sorted(node.name for node in nodes)
    parts = [f"{nodes[0].asset} x {len(nodes)}", f"{names[0]} to {names[-1]}"]
    parts += [f"code {', '.join(versions)}"] if versions else []
    parts += [f"STALE: {stale} of them"] if stale else []
    return "  ".join(parts)


def _short(digest: str, full: bool) -> str:
    return digest if full else digest[:19]
