"""Few slides stay open, and none is closed while somebody reads it."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from mm_assets.viewer.open_slides import Key, OpenSlides


class Disk:
    """Counts what is open; reading what is closed is an error."""

    def __init__(self) -> None:
        self.open: Counter[Key] = Counter()
        self.opened, self.most = 0, 0
        self.lock = threading.Lock()

    @contextmanager
    def open_one(self, key: Key) -> Iterator[Key]:
        time.sleep(0.001)
        if key == ("bad",):
            raise OSError("cannot be opened")
        with self.lock:
            self.opened += 1
            self.open[key] += 1
            self.most = max(self.most, sum(self.open.values()))
        yield key
        with self.lock:
            self.open[key] -= 1


def test_a_slide_is_opened_once_and_closed_after_its_last_user() -> None:
    disk = Disk()
    slides = OpenSlides(disk.open_one, most=2)

    def read(number: int) -> None:
        with slides.use((str(number % 7),)) as key:
            assert disk.open[key] == 1
            time.sleep(0.002)
            assert disk.open[key] == 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(200)))
    assert sum(disk.open.values()) <= 2
    assert disk.most <= 8 + 2
    slides.close()
    assert not sum(disk.open.values())


def test_used_again_without_opening() -> None:
    disk = Disk()
    slides = OpenSlides(disk.open_one, most=2)
    for _ in range(3):
        for name in ("a", "b"):
            with slides.use((name,)):
                pass
    assert disk.opened == 2


def test_what_cannot_be_opened_says_so_each_time() -> None:
    slides = OpenSlides(Disk().open_one)
    for _ in range(2):
        with pytest.raises(OSError, match="cannot be opened"), slides.use(("bad",)):
            pass
