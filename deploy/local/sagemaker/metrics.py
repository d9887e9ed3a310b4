"""Metrics that a training job's log tells."""

import re
import time
from collections.abc import Iterable, Iterator
from typing import Any


class Metrics:
    """The last value of every metric, found in the log by its definition's regular expression."""

    def __init__(self, definitions: Iterable[dict[str, str]]) -> None:
        self._patterns = {item["Name"]: re.compile(item["Regex"]) for item in definitions}
        self._last: dict[str, tuple[float, float]] = {}

    def observe(self, lines: Iterable[str]) -> None:
        """Look at further lines of the log."""
        for line in lines:
            for name, pattern in self._patterns.items():
                for match in pattern.finditer(line):
                    value = _number(match.group(1))
                    if value is not None:
                        self._last[name] = value, time.time()

    def value(self, name: str) -> float | None:
        """Last value of a metric."""
        return self._last[name][0] if name in self._last else None

    def describe(self) -> list[dict[str, Any]]:
        """`FinalMetricDataList`."""
        return [
            {"MetricName": name, "Value": value, "Timestamp": moment}
            for name, (value, moment) in self._last.items()
        ]


def objections(definitions: Iterable[dict[str, str]]) -> Iterator[str]:
    """Definitions that find no number."""
    for item in definitions:
        try:
            groups = re.compile(item["Regex"]).groups
        except re.error as error:
            yield f"metric {item['Name']}: {item['Regex']} is no regular expression: {error}"
        else:
            if not groups:
                yield f"metric {item['Name']}: {item['Regex']} has no group that catches the value"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
