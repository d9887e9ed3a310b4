"""Opening the next item while the present one is worked on."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from mm_assets.assets.ahead import one_ahead


class Recorder:
    """Opens numbers and remembers what happened; opening 3 fails."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.opened = {number: threading.Event() for number in range(10)}

    @contextmanager
    def open(self, number: int) -> Iterator[int]:
        if number == 3:
            self.opened[number].set()
            raise ValueError("three")
        self.events.append(f"open {number}")
        self.opened[number].set()
        try:
            yield number * 10
        finally:
            self.events.append(f"close {number}")


def test_the_next_one_is_opened_and_no_other() -> None:
    recorder = Recorder()
    with closing(one_ahead(recorder.open, range(3))) as ahead:
        for number, context in ahead:
            with context as value:
                assert value == number * 10
                if number < 2:
                    assert recorder.opened[number + 1].wait(5)
                time.sleep(0.05)
                assert not recorder.opened[number + 2].is_set()
    opened = ["open 0", "open 1", "close 0", "open 2", "close 1", "close 2"]
    assert recorder.events == opened


def test_an_error_of_opening_belongs_to_its_item() -> None:
    recorder = Recorder()
    values = []
    with closing(one_ahead(recorder.open, range(2, 6))) as ahead:
        for number, context in ahead:
            if number == 3:
                with pytest.raises(ValueError, match="three"), context:
                    pass
            else:
                with context as value:
                    values.append(value)
    assert values == [20, 40, 50]
    assert recorder.events.count("close 4") == 1


def test_what_was_opened_is_closed_when_the_work_stops() -> None:
    recorder = Recorder()

    def work() -> None:
        with closing(one_ahead(recorder.open, range(9))) as ahead:
            for number, context in ahead:
                with context:
                    if number == 1:
                        assert recorder.opened[2].wait(5)
                        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert sorted(recorder.events) == sorted(
        f"{v} {n}" for v in ("open", "close") for n in range(3)
    )


def test_no_items() -> None:
    assert list(one_ahead(Recorder().open, [])) == []
