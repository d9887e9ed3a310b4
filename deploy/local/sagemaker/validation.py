"""Requests checked against the service's own model, as botocore brings it.

botocore itself checks types and lower limits before it sends; the service also refuses what is too
long or does not match a pattern, and so does this.
"""

import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import groupby
from typing import Any

from botocore.loaders import Loader


@cache
def _model() -> Any:
    return Loader().load_service_model("sagemaker", "service-2")


def problems(operation: str, request: dict[str, Any]) -> list[str]:
    """What the service would refuse in a request."""
    return list(_check(_model()["operations"][operation]["input"]["shape"], request, ""))


def known(operation: str, side: str, members: dict[str, Any]) -> dict[str, Any]:
    """Those of some members that an operation's ``input`` or ``output`` has too."""
    shape = _model()["operations"][operation][side]["shape"]
    return {
        name: value
        for name, value in members.items()
        if name in _model()["shapes"][shape]["members"]
    }


def _check(name: str, value: Any, where: str) -> Iterator[str]:
    shape = _model()["shapes"][name]
    kind = shape["type"]
    if kind == "structure":
        yield from _check_structure(shape, value, where)
    elif kind == "list":
        yield from _check_size(shape, len(value), value, where, "length")
        for place, member in enumerate(value, 1):
            yield from _check(shape["member"]["shape"], member, f"{where}.{place}.member")
    elif kind == "map":
        yield from _check_size(shape, len(value), value, where, "length")
        for key, member in value.items():
            yield from _check(shape["key"]["shape"], key, f"{where}.key")
            yield from _check(shape["value"]["shape"], member, f"{where}.{key}.member")
    elif kind == "string":
        yield from _check_text(shape, value, where)
    elif kind in ("integer", "long", "float", "double"):
        yield from _check_size(shape, value, value, where, "value")


def _check_structure(shape: Any, value: dict[str, Any], where: str) -> Iterator[str]:
    for member in shape.get("required", ()):
        if member not in value:
            yield _refusal(None, f"{where}.{member}", "Member must not be null")
    for member, content in value.items():
        if member not in shape["members"]:
            yield _refusal(content, f"{where}.{member}", "Member is unknown")
        else:
            yield from _check(shape["members"][member]["shape"], content, f"{where}.{member}")


def _check_text(shape: Any, value: str, where: str) -> Iterator[str]:
    yield from _check_size(shape, len(value), value, where, "length")
    if "enum" in shape and value not in shape["enum"]:
        yield _refusal(value, where, f"Member must satisfy enum value set: {shape['enum']}")
    pattern = shape.get("pattern", "")
    if pattern and not re.fullmatch(_in_python(pattern), value):
        yield _refusal(value, where, f"Member must satisfy regular expression pattern: {pattern}")


@cache
def _in_python(pattern: str) -> str:
    """One of the model's patterns, which are Java's: it repeats `$` and knows classes by name."""
    pattern = re.sub(r"\$\{\d+,\d+\}$", "", pattern).replace(r"\p{Alnum}", "a-zA-Z0-9")
    return re.sub(r"\\p\{(\w)\}", lambda found: _categories()[found[1]], pattern)


@cache
def _categories() -> dict[str, str]:
    """General category of Unicode, such as ``L`` -> its characters, as ranges between brackets."""
    found: dict[str, str] = defaultdict(str)
    everything = range(sys.maxunicode + 1)
    for category, run in groupby(everything, lambda code: unicodedata.category(chr(code))[0]):
        codes = list(run)
        found[category] += f"\\U{codes[0]:08x}-\\U{codes[-1]:08x}"
    return found


def _check_size(shape: Any, size: float, value: Any, where: str, what: str) -> Iterator[str]:
    if size < shape.get("min", size):
        yield _refusal(
            value, where, f"Member must have {what} greater than or equal to {shape['min']}"
        )
    if size > shape.get("max", size):
        yield _refusal(
            value, where, f"Member must have {what} less than or equal to {shape['max']}"
        )


def _refusal(value: Any, where: str, constraint: str) -> str:
    place = where.removeprefix(".")
    return f"Value '{value}' at '{place}' failed to satisfy constraint: {constraint}"
