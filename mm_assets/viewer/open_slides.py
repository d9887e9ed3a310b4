"""The few slides that are open at once, each opened once however many requests want it."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")
Key = tuple[str, ...]


class _Entry(Generic[T]):
    def __init__(self) -> None:
        self.opening = Lock()
        self.users = 0
        self.stack = ExitStack()
        self.value: T | None = None


class OpenSlides(Generic[T]):
    """Keeps the slides used last open; one in use is closed only after its last user.

    Parameters
    ----------
    open_one
        Opens a slide by key.
    most
        How many stay open when nobody uses them.
    """

    def __init__(self, open_one: Callable[[Key], AbstractContextManager[T]], most: int = 4) -> None:
        self._open_one, self._most = open_one, most
        self._entries: OrderedDict[Key, _Entry[T]] = OrderedDict()
        self._lock = Lock()

    @contextmanager
    def use(self, key: Key) -> Iterator[T]:
        """The open slide; errors of opening it reach every caller."""
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
            entry.users += 1
        try:
            with entry.opening:
                if entry.value is None:
                    entry.value = entry.stack.enter_context(self._open_one(key))
            yield entry.value
        finally:
            with self._lock:
                entry.users -= 1
            self._close_idle(self._most)

    def close(self) -> None:
        """Close all that nobody uses."""
        self._close_idle(0)

    def _close_idle(self, most: int) -> None:
        with self._lock:
            idle = [key for key, entry in self._entries.items() if not entry.users]
            surplus = idle[: max(0, len(self._entries) - most)]
            closing = [self._entries.pop(key) for key in surplus]
        for entry in closing:
            entry.stack.close()
