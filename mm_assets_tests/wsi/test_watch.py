"""A supervisor sees the oldest call into a decoder that still runs."""

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event

import pytest

from mm_assets.wsi import watch
from mm_assets.wsi.watch import report_to, watched


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    monkeypatch.setattr(watch, "_report", None)
    seen: list[float] = []
    report_to(seen.append)
    return seen


def test_the_oldest_call_is_reported(reported: list[float]) -> None:
    both, finish = Barrier(3), Event()

    @watched
    def old() -> None:
        both.wait(10)
        finish.wait(10)

    @watched
    def young() -> None:
        both.wait(10)

    before = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        pool.submit(old)
        while not reported:
            time.sleep(0.001)
        start = reported[0]
        second = pool.submit(young)
        both.wait(10)
        second.result()
        assert before <= start <= time.monotonic()
        assert set(reported) == {start}
        finish.set()
    assert reported[-1] == 0.0


def test_a_call_that_raises_is_over(reported: list[float]) -> None:
    @watched
    def fail() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert reported[0] > 0
    assert reported[-1] == 0.0
