"""A disk that fills up in the middle of the work."""

import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import dagster as dg
import pytest

from mm_assets.assets.stage import Workspace
from mm_assets.assets.walk import StageResult
from mm_assets_tests.cohorts import Cohort, make_cohort

SLIDES = 4


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 220 kB; `_enlarge` makes room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=220k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk to fill")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _enlarge(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def test_a_full_store(
    home: Path, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mm_assets.cli import workspace

    monkeypatch.setenv("MM_STORE", str(small_disk / "store"))
    space = workspace(str(make_cohort(tmp_path / "tiny", SLIDES, omics=None)))
    slide, tissue = _walk(space)
    assert (slide.failures, slide.computed) == ({}, SLIDES)
    assert 0 < tissue.computed < SLIDES
    (reason,) = tissue.failures.values()
    for words in (
        "1 of 4 slides",
        "1 left out",
        "tissue/P0",
        "No space left on device",
        "Free some space",
    ):
        assert words in reason
    assert not [path for path in small_disk.rglob("*") if path.name.endswith(".tmp")]
    done = space.receipts.read_all("tiny", "tissue")
    assert len(done) == tissue.computed
    for name, receipt in done.items():
        assert space.receipts.valid("tiny", "tissue", name, receipt.fingerprint)

    _enlarge(small_disk, "64m")
    slide, tissue = _walk(space)
    assert (slide.computed, tissue.failures) == (0, {})
    assert tissue.computed == SLIDES - len(done)
    now = space.receipts.read_all("tiny", "tissue")
    assert len(now) == SLIDES
    assert {name: now[name] for name in done} == done


def _walk(space: Workspace) -> list[StageResult]:
    from mm_assets.assets.walk import Walk
    from mm_assets.component import CohortComponent
    from mm_assets.resources.home import dagster_instance, default_resources

    cohort = CohortComponent(space.config).definitions()
    resources = dg.Definitions(resources=default_resources(), executor=dg.in_process_executor)
    with dagster_instance() as instance:
        walk = Walk(space, dg.Definitions.merge(cohort, resources), instance)
        return list(walk.run(["slide", "tissue"]))


@pytest.mark.stress
def test_a_full_home(small_disk: Path, tmp_path: Path) -> None:
    """Everything, Dagster's databases too, is on the disk that fills up, early or late."""
    yaml = make_cohort(tmp_path / "cohorts" / "tiny", SLIDES, omics=None)
    select = [word for asset in ("slide", "tissue") for word in ("--select", asset)]
    home = small_disk / "home"

    def materialize(expect: int) -> str:
        return Cohort(yaml, home).mm("materialize", str(yaml), *select, expect=expect)

    _enlarge(small_disk, "64m")
    home.mkdir()
    materialize(expect=0)
    needed = shutil.disk_usage(small_disk).used
    for percent in (5, 40, 80, 90, 95):
        shutil.rmtree(home)
        home.mkdir()
        _enlarge(small_disk, f"{needed * percent // 100 >> 10}k")
        said = materialize(expect=1)
        assert "No space left" in said or "is full" in said, said
        _enlarge(small_disk, "64m")
        materialize(expect=0)
        for database in home.rglob("*.db"):
            with closing(sqlite3.connect(database)) as connection:
                assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
