"""Progress of long work: rate and remaining time in Dagster's log, and a bar in a terminal."""

import time
from collections.abc import Callable

from mm_assets.assets.log import Log

LOG_EVERY_SECONDS = 15.0

Listener = Callable[[str, int, int], None]
_listeners: list[Listener] = []


def listen(listener: Listener) -> Callable[[], None]:
    """Call `listener(label, done, total)` on every advance; returns the function that stops it."""
    _listeners.append(listener)
    return lambda: _listeners.remove(listener)


class Progress:
    """Counts finished units of one piece of work.

    Examples
    --------
    >>> import logging
    >>> progress = Progress("tissue", total=2, log=logging.getLogger())
    >>> progress.advance()
    >>> progress.done
    1
    """

    def __init__(self, label: str, total: int, log: Log):
        self.label, self.total, self.done = label, total, 0
        self._log = log
        self._started = self._last_logged = time.monotonic()
        self._notify()

    def advance(self, count: int = 1) -> None:
        """Record that `count` more units are done."""
        self.update(self.done + count, self.total)

    def update(self, done: int, total: int) -> None:
        """Record that `done` of `total` units are done."""
        self.done, self.total = done, total
        now = time.monotonic()
        if now - self._last_logged >= LOG_EVERY_SECONDS or (done == total and total > 1):
            self._last_logged = now
            self._log.info(self.describe(now))
        self._notify()

    def describe(self, now: float) -> str:
        """One line: done, total, rate and remaining time."""
        elapsed = max(now - self._started, 1e-6)
        rate = self.done / elapsed
        remaining = (self.total - self.done) / rate if rate else float("nan")
        return (
            f"{self.label}: {self.done} of {self.total}, {rate:.2f} a second, "
            f"about {remaining:.0f} s remaining"
        )

    def _notify(self) -> None:
        for listener in _listeners:
            listener(self.label, self.done, self.total)
