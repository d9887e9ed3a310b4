"""Opening the next item in a thread while the present one is worked on."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")
P = TypeVar("P")


class _EnteredAhead(AbstractContextManager[P], Generic[P]):
    """A context that another thread enters; entering it here waits for that."""

    def __init__(
        self, thread: ThreadPoolExecutor, make: Callable[[], AbstractContextManager[P]]
    ) -> None:
        self._stack = ExitStack()
        self._value = thread.submit(lambda: self._stack.enter_context(make()))

    def __enter__(self) -> P:
        return self._value.result()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        return self._stack.__exit__(kind, error, trace)

    def abandon(self) -> None:
        """Leave the context if it was entered and not left; nothing is entered afterwards."""
        if not self._value.cancel():
            wait([self._value])
        self._stack.close()


def one_ahead(
    make: Callable[[T], AbstractContextManager[P]], items: Iterable[T]
) -> Generator[tuple[T, AbstractContextManager[P]]]:
    """Each item with its context, to be entered and left by the caller.

    While the caller has one, the context of the next is entered in a thread, and of no more than
    the next. An error of entering is raised where the caller enters. Close the generator: it
    leaves what was entered and never taken.
    """
    waiting: deque[tuple[T, _EnteredAhead[P]]] = deque()
    with ThreadPoolExecutor(1, "ahead") as thread:
        try:
            for item in items:
                waiting.append((item, _EnteredAhead(thread, partial(make, item))))
                if len(waiting) == 2:
                    yield waiting[0]
                    waiting.popleft()
            while waiting:
                yield waiting[0]
                waiting.popleft()
        finally:
            for _, context in waiting:
                context.abandon()
