"""How the artefacts behind a registered model were made, and whether others were made alike."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from mm_assets.resources.digest import canonical_json
from mm_assets.resources.lineage import LineageNode
from mm_assets.resources.store import COHORT

WEIGHTS = ("weights", "weights_sha256")


class Recipe:
    """Code versions, parameters and weights of everything that a model was made from.

    Parameters
    ----------
    lineage
        Tree logged with the model.
    """

    def __init__(self, lineage: LineageNode) -> None:
        self._known: set[str] = set()
        self._made: dict[str, dict[bytes, dict[str, Any]]] = defaultdict(dict)
        for node in _walk(lineage, set()):
            self._known.add(node.identity)
            if node.code_version:
                self._made[node.asset][canonical_json(_settings(node))] = _settings(node)

    def reads(self, asset: str) -> bool:
        """Whether the model was made from such artefacts."""
        return asset in self._made

    def objection(self, node: LineageNode, table: bool = False) -> str:
        """Why the model cannot read an artefact; empty when it can.

        Parameters
        ----------
        table
            Whether the artefact is a table of the cohort's patients, which may have got more rows.
        """
        if node.identity in self._known or not node.code_version:
            return ""
        if node.name == COHORT and not table:
            return f"{node.asset} is not the one that the model was trained after"
        if node.stale:
            return f"{_called(node)} has been made again since: materialize what reads it"
        if canonical_json(_settings(node)) not in self._made[node.asset]:
            return f"{_called(node)} was made with {self._differing(node)}"
        if table:
            return ""
        return next(filter(None, map(self.objection, node.inputs)), "")

    def _differing(self, node: LineageNode) -> str:
        """Settings that the model's artefacts have otherwise."""
        reference = next(iter(self._made[node.asset].values()), {})
        ours = _settings(node)
        changed = [
            key for key in sorted({*ours, *reference}) if ours.get(key) != reference.get(key)
        ]
        return "; ".join(
            f"{key} {_short(ours.get(key))}, the model's with {_short(reference.get(key))}"
            for key in changed
        )


def _walk(node: LineageNode, seen: set[str]) -> Iterator[LineageNode]:
    if node.identity in seen:
        return
    seen.add(node.identity)
    yield node
    for upstream in node.inputs:
        yield from _walk(upstream, seen)


def _settings(node: LineageNode) -> dict[str, Any]:
    facts = {key: node.facts[key] for key in WEIGHTS if key in node.facts}
    return {**node.parameters, **facts, "code version": node.code_version}


def _called(node: LineageNode) -> str:
    return node.asset if node.name == COHORT else f"{node.asset} of {node.name}"


def _short(value: Any) -> str:
    return str(value)[:60]
