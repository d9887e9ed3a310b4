"""A slide that ends its process, or never ends, is lost by itself."""

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mm_assets.assets import isolation
from mm_assets.assets.isolation import Loss, run_isolated
from mm_assets_tests.assets.faulty import faulty_worker, give_up, work
from mm_assets_tests.cohorts import make_cohort
from mm_assets_tests.conftest import REPOSITORY

LOG = logging.getLogger("mm_assets")


def run(slides: list[str], memory_gib: float = 1.0) -> tuple[dict[str, int], dict[str, Loss]]:
    """Slide -> process that did it, and the lost ones."""
    done: dict[str, int] = {}
    return done, run_isolated(work, slides, done.__setitem__, LOG, memory_gib)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "HANG_SECONDS", 1.0)


@pytest.mark.parametrize(
    ("slide", "reason", "own_fault"),
    [
        ("crash", "the decoder crashed (SIGSEGV)", True),
        ("abort", "the decoder crashed (SIGABRT)", True),
        ("exit", "exit code 3", True),
        ("killed", "was killed (SIGKILL) from outside", False),
        ("hang", "no pixel came out of the decoder for 1 s", True),
        ("stall", "its storage did not answer for 1 s", False),
        ("memory", "more than the 0.25 GiB of memory", True),
    ],
)
@pytest.mark.usefixtures("impatient")
def test_why_a_slide_is_lost(slide: str, reason: str, own_fault: bool) -> None:
    done, lost = run([slide], 0.25)
    assert not done
    assert lost[slide].own_fault == own_fault
    assert reason in lost[slide].reason


def test_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    done, lost = run(["a", "crash", "b", "abort", "c"])
    assert set(lost) == {"crash", "abort"}
    assert list(done) == ["a", "b", "c"]
    assert len({os.getpid(), *done.values()}) == 4
    assert f"b in process {done['b']}" in caplog.messages
    assert "crash: the decoder crashed (SIGSEGV) while reading it; each is tried once more" in (
        caplog.text
    )


@pytest.mark.usefixtures("impatient")
def test_slow_work_outside_the_decoder_is_left_alone() -> None:
    done, lost = run(["slow"])
    assert (list(done), lost) == (["slow"], {})


def test_errors_of_the_work_are_raised_here() -> None:
    with pytest.raises(ValueError, match="not a decoder's fault"):
        run(["a", "error", "b"])


def test_a_child_that_opens_nothing_is_no_slides_fault() -> None:
    with pytest.raises(RuntimeError, match="ended before it opened one"):
        run_isolated(give_up, ["a", "b"], print, LOG, 1.0)


# Tests started in the background ignore the interrupt, and Dagster's handlers then ignore both.
PARENT = """
import logging
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
from mm_assets.assets.isolation import run_isolated
from mm_assets_tests.assets.faulty import work
if __name__ == "__main__":
    run_isolated(work, ["hang"], print, logging.getLogger(), 1.0)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_orphan_is_left(tmp_path: Path, end: signal.Signals) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    deadline = time.monotonic() + 60
    family: list[psutil.Process] = []
    # One of them counts processor time without end: it is the child, in the decoder.
    while not any(p.cpu_times().user > 0.5 for p in family):
        assert time.monotonic() < deadline
        time.sleep(0.05)
        family = psutil.Process(parent.pid).children(recursive=True)
    os.kill(parent.pid, end)
    parent.wait(30)
    _, left = psutil.wait_procs(family, timeout=10)
    assert not any(map(_works, left))


def _works(process: psutil.Process) -> bool:
    """Not so what has ended, though whoever takes over orphans has not asked for its end yet."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_range_run_survives_crash_and_hang(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dagster as dg

    from mm_assets.assets.ranges import range_tags
    from mm_assets.assets.slide_asset import slide_asset
    from mm_assets.assets.stage import SlideStage, asset_key, slide_partitions
    from mm_assets.cli import workspace
    from mm_assets.resources.home import dagster_instance, default_resources

    monkeypatch.setattr(isolation, "HANG_SECONDS", 1.0)
    before = set(multiprocessing.active_children())  # such as another test's pool
    slides, bad = ["a", "crash", "hang", "y"], {"crash", "hang"}
    space = workspace(str(make_cohort(tmp_path / "tiny", 8, slides=0, omics=None)))
    stage = SlideStage(
        outputs=("faulty", "second"),
        upstream=(),
        group="imaging",
        code_version="1",
        description="",
        worker=faulty_worker,
        isolated=True,
    )
    with dagster_instance() as instance:
        partitions = slide_partitions("tiny")
        instance.add_dynamic_partitions(partitions.name or "", [*slides, "z"])

        def materialize(last: str) -> dg.ExecuteInProcessResult:
            return dg.materialize(
                [slide_asset(space.config, stage, 0, None)],
                instance=instance,
                resources=default_resources(),
                tags=range_tags("a" if last == "y" else last, last),
                raise_on_error=False,
            )

        assert not materialize("y").success
        made = instance.get_materialized_partitions(asset_key("tiny", "faulty"))
        assert made == set(slides) - bad
        receipts = space.receipts.read_all("tiny", "faulty")
        assert {s for s, r in receipts.items() if r.state == "failed"} == bad
        assert all(receipts[slide].metadata["quarantined"] for slide in bad)
        assert materialize("z").success  # of two assets of one slide
        # All is settled: a second run starts no child.
        monkeypatch.setattr(isolation, "_Child", None)
        assert not materialize("y").success
        assert space.receipts.read_many("tiny", "faulty", slides) == receipts
    assert not set(multiprocessing.active_children()) - before
