"""Damaged slides among good ones: each is quarantined with a reason, the good ones complete."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import dagster as dg
import psutil
import pytest

from mm_assets.assets.stage import Workspace
from mm_assets_tests.cohorts import make_cohort, paint_slide
from mm_assets_tests.wsi.damaged import corpus, make

GOOD = ["P001-S1", "P002-S1"]
EMBEDDINGS = ["tile_embeddings", "region_embeddings"]
STAGES = ["slide", "tissue", *EMBEDDINGS]
MOST_BYTES = 4 * 2**30
# Some are refused at intake, some open well and fail later.
SAMPLE = [
    *("jpeg-cut-50", "j2k-cut-99", "impostor-zero", "impostor-png", "jpeg-loop-self"),
    *("jpeg-picture=65536", "jpeg-tile=1000000", "jpeg-one-tile=65520"),
    *("jpeg-offsets-number=16777216", "jpeg-bomb-claims-65500", "j2k-bomb-claims-2G"),
    *("jpeg-bomb-is-8000-once", "jpeg-hole-0", "j2k-hole-0", "deflate-zeroed-0", "jpeg-zeroed-8"),
]
# What flips of bits must not look like: these are for what no check foresaw.
LAST_RESORT = ("crashed", "no pixel came out", "GiB of memory", "exit code")


def test_a_sample_of_each_kind(home: Path, tmp_path: Path) -> None:
    outcome = _materialize(tmp_path, SAMPLE)
    assert set(outcome) == set(SAMPLE)
    assert all(outcome.values()), outcome


@pytest.mark.stress
@pytest.mark.timeout(3600)
def test_the_whole_corpus(home: Path, tmp_path: Path) -> None:
    names = list(corpus())
    assert len(names) >= 300
    outcome = _materialize(tmp_path, names)
    whole = {name for name, reason in outcome.items() if not reason}
    # JPEG and JPEG 2000 have no checksums: a flipped bit may give a picture all the same.
    assert {name for name in whole if "flip" not in name} <= {
        "jpeg-bits-number=1",
        "jpeg-photometric=3",
        "jpeg-bomb-lzw-1G",
        "deflate-hole-0",
        "deflate-hole-4",
    }
    assert len(names) - len(whole) >= 300


def _materialize(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Name -> reason of its quarantine, empty where the slide is complete."""
    from mm_assets.cli import workspace

    yaml = make_cohort(folder / "cohorts" / "tiny", 4, slides=0, omics=None)
    slides = yaml.parent / "slides"
    for seed, good in enumerate(GOOD):
        paint_slide(slides / f"{good}.tiff", seed)
    scratch = folder / "scratch"
    scratch.mkdir()
    paths = make(names, slides, scratch, prefix="P000-")
    space = workspace(str(yaml))
    with _peak_memory() as peak:
        _walk(space)
    assert peak[0] < MOST_BYTES
    states = {slide: _state(space, slide) for slide in GOOD}
    assert states == dict.fromkeys(GOOD, "")
    return {name: _state(space, path.stem) for name, path in paths.items()}


def _walk(space: Workspace) -> None:
    from mm_assets.assets.walk import Walk
    from mm_assets.component import CohortComponent
    from mm_assets.resources.home import dagster_instance, default_resources

    cohort = CohortComponent(space.config).definitions()
    resources = dg.Definitions(resources=default_resources(), executor=dg.in_process_executor)
    with dagster_instance() as instance:
        results = list(Walk(space, dg.Definitions.merge(cohort, resources), instance).run(STAGES))
    assert [result.failures for result in results] == [{}, {}, {}]


def _state(space: Workspace, slide: str) -> str:
    """Why a slide is quarantined, or nothing when its embeddings are there."""
    from mm_assets.assets.partitions import is_quarantine

    receipts = [space.receipts.read("tiny", asset, slide) for asset in STAGES]
    assert all(r.seconds < 60 for r in receipts if r)
    bad = [r for r in receipts if r and r.state == "failed"]
    if not bad:
        assert all(receipts), slide
        return ""
    assert all(is_quarantine(r) and r.reason for r in bad)
    assert not any(words in bad[0].reason for words in LAST_RESORT), bad[0].reason
    return bad[0].reason


@contextmanager
def _peak_memory() -> Iterator[list[int]]:
    """The most that this process and those it starts have gained together, bytes."""
    peak, ended = [0], Event()
    this = psutil.Process()
    before = this.memory_info().rss

    def look() -> None:
        while not ended.wait(0.1):
            held = -before
            for process in (this, *this.children(recursive=True)):
                try:
                    held += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            peak[0] = max(peak[0], held)

    thread = Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()
