"""Ranges of hyper-parameters: what a tuning job draws from them.

Whatever the strategy, values are drawn at random; `Auto` scaling is linear.
"""

import math
from collections.abc import Iterable, Iterator
from random import Random
from typing import Any

_KINDS = ("Integer", "Continuous", "Categorical")
_LINEAR = ("Auto", "Linear")


def draws(ranges: dict[str, Any], random: Random) -> Iterator[dict[str, str]]:
    """Different combinations of values, endlessly: name -> value."""
    seen = set()
    while True:
        values = {range_["Name"]: _draw(kind, range_, random) for kind, range_ in _each(ranges)}
        if tuple(values.values()) not in seen:
            seen.add(tuple(values.values()))
            yield values


def objections(ranges: dict[str, Any], static: Iterable[str], count: int) -> Iterator[str]:
    """What the service refuses in ranges, beside static values, for so many training jobs."""
    names = [*static, *(range_["Name"] for _, range_ in _each(ranges))]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"hyper-parameter {name} is given more than once"
    if not any(True for _ in _each(ranges)):
        yield "ParameterRanges must have a range"
        return
    faults = [fault for kind, range_ in _each(ranges) for fault in _faults(kind, range_)]
    yield from faults
    if not faults:
        combinations = math.prod(_size(kind, range_) for kind, range_ in _each(ranges))
        if combinations < count:
            yield (
                f"the ranges have {combinations:g} combinations, fewer than "
                f"MaxNumberOfTrainingJobs ({count})"
            )


def _each(ranges: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for kind in _KINDS:
        for range_ in ranges.get(f"{kind}ParameterRanges", ()):
            yield kind, range_


def _bounds(kind: str, range_: dict[str, Any]) -> tuple[float, float]:
    number = int if kind == "Integer" else float
    return number(range_["MinValue"]), number(range_["MaxValue"])


def _size(kind: str, range_: dict[str, Any]) -> float:
    """How many values a range has."""
    if kind == "Categorical":
        return len(set(range_["Values"]))
    low, high = _bounds(kind, range_)
    return high - low + 1 if kind == "Integer" else math.inf


def _faults(kind: str, range_: dict[str, Any]) -> Iterator[str]:
    if kind == "Categorical":
        return
    name, scaling = range_["Name"], range_.get("ScalingType", "Auto")
    try:
        low, high = _bounds(kind, range_)
    except ValueError as error:
        yield f"range of {name}: {error}"
        return
    if low > high or (kind == "Continuous" and low == high):
        yield f"range of {name}: MinValue must be less than MaxValue"
    if scaling == "Logarithmic" and low <= 0:
        yield f"range of {name}: logarithmic scaling takes only values greater than 0"
    if scaling == "ReverseLogarithmic" and (kind == "Integer" or low < 0 or high >= 1):
        yield f"range of {name}: reverse logarithmic scaling takes only fractions, 0 <= x < 1"


def _draw(kind: str, range_: dict[str, Any], random: Random) -> str:
    if kind == "Categorical":
        value: str = random.choice(range_["Values"])
        return value
    low, high = _bounds(kind, range_)
    scaling = range_.get("ScalingType", "Auto")
    if kind == "Continuous":
        return str(min(max(_scaled(low, high, scaling, random), low), high))
    # Every integer is as wide as the others on a linear scale, those at the ends too.
    drawn = round(_scaled(low - 0.5, high + 0.5, scaling, random))
    return str(min(max(drawn, int(low)), int(high)))


def _scaled(low: float, high: float, scaling: str, random: Random) -> float:
    if scaling in _LINEAR:
        return random.uniform(low, high)
    if scaling == "Logarithmic":
        return math.exp(random.uniform(math.log(low), math.log(high)))
    return 1 - math.exp(random.uniform(math.log(1 - high), math.log(1 - low)))
