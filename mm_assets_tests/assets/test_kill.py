"""kill -9 in the middle of a run: nothing lost, nothing half-written, nothing done twice."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mm_assets_tests.cohorts import make_cohort
from mm_assets_tests.daemon import environment

SLIDES = 12
ASSET = "tile_embeddings"


def _materialize(yaml: Path, home: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mm_assets", "materialize", str(yaml), "--select", "slide"]
    command += ["--select", "tissue", "--select", "tile_embeddings"]
    return subprocess.Popen(
        command,
        env=environment(home, yaml.parent.parent),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def test_resume_after_kill(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mm_assets.cli import workspace

    yaml = make_cohort(tmp_path / "cohorts" / "tiny", SLIDES, omics=None)
    monkeypatch.setenv("MM_COHORTS", str(yaml.parent.parent))
    space = workspace(str(yaml))

    def finished() -> dict[str, str]:
        receipts = space.receipts.read_all("tiny", ASSET)
        return {slide: f"{r.created} {r.seconds}" for slide, r in receipts.items()}

    killed_at = []
    for wanted in (2, 5):
        process = _materialize(yaml, home)
        deadline = time.monotonic() + 120
        while len(finished()) < wanted and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        killed_at.append(finished())
        _assert_whole(space)
    assert 2 <= len(killed_at[0]) < len(killed_at[1]) < SLIDES

    process = _materialize(yaml, home)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()
    end = finished()
    assert len(end) == SLIDES
    assert {slide: end[slide] for slide in killed_at[1]} == killed_at[1]
    _assert_whole(space)

    from mm_assets.resources.home import dagster_instance

    with dagster_instance() as instance:
        import dagster as dg

        from mm_assets.assets.repair import repair_events

        repair_events(space, instance)
        made = instance.get_materialized_partitions(dg.AssetKey(["tiny", ASSET]))
        assert made == set(end)


def _assert_whole(space: object) -> None:
    """Every visible embedding file is complete, and every receipt has its file."""
    store = space.store  # type: ignore[attr-defined]
    for ref in store.list("tiny", ASSET):
        if ref.extension == "arrow":
            table = store.read_arrow(ref)
            assert table.num_rows == len(table.column("x")) > 0
    for slide, receipt in space.receipts.read_all("tiny", ASSET).items():  # type: ignore[attr-defined]
        assert receipt.state == "done", (slide, receipt.reason)
        assert space.receipts.valid("tiny", ASSET, slide, receipt.fingerprint)  # type: ignore[attr-defined]
