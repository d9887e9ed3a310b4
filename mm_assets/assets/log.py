"""What the stages need of a logger."""

from typing import Protocol


class Log(Protocol):
    """Dagster's loggers and Python's have it."""

    def info(self, msg: str, /) -> None: ...

    def warning(self, msg: str, /) -> None: ...
