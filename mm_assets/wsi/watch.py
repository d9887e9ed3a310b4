"""Calls into decoders, so that a supervisor can see one that never returns.

Nothing is recorded unless `report_to` was called: in a process without a supervisor a watched
function is the function itself.
"""

import time
from collections.abc import Callable
from functools import wraps
from threading import Lock
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_begun: dict[object, float] = {}
_lock = Lock()
_report: Callable[[float], None] | None = None


def report_to(report: Callable[[float], None]) -> None:
    """Call `report` whenever it changes with the start of the oldest call that still runs.

    The start is a `time.monotonic`, 0 when no call runs.
    """
    global _report
    _report = report


def watched(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that spends its time in a decoder; each call must be short."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if _report is None:
            return function(*args, **kwargs)
        this = object()
        with _lock:
            _begun[this] = time.monotonic()
            _report(_oldest())
        try:
            return function(*args, **kwargs)
        finally:
            with _lock:
                del _begun[this]
                _report(_oldest())

    return call


def _oldest() -> float:
    return next(iter(_begun.values()), 0.0)  # dictionaries keep the order of insertion
