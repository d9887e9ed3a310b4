"""Opinions are appended, whole or not at all, whoever writes at the same time."""

import io
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
from pydantic import ValidationError

from mm_assets.resources.store import ArtefactStore
from mm_assets.viewer.opinions import Opinion, Opinions, Statement

FACTS = {
    "asset": "evidence_subtype",
    "slide_id": "P000-S1",
    "subject": "tile:max:0007",
    "verdict": "agree",
    "user": "Dr Who",
    "model": "tiny.subtype.heec",
    "model_version": 3,
}


def _say(folder: str, user: str, times: int) -> None:
    opinions = Opinions(ArtefactStore(uri=folder), "tiny")
    for number in range(times):
        statement = Statement(**FACTS | {"user": user, "comment": f"{number}"})
        opinions.add(statement)


def test_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_say, args=(str(tmp_path), f"u{n}", 40)) for n in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = Opinions(ArtefactStore(uri=str(tmp_path)), "tiny").all()
    assert len(found) == 120
    for n in range(3):
        said = [opinion.comment for opinion in found if opinion.user == f"u{n}"]
        assert said == [str(number) for number in range(40)]
    assert [opinion.time for opinion in found] == sorted(opinion.time for opinion in found)


def test_a_killed_writer_leaves_only_whole_opinions(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writer = context.Process(target=_say, args=(str(tmp_path), "u", 100_000))
    writer.start()
    opinions = Opinions(ArtefactStore(uri=str(tmp_path)), "tiny")
    while len(opinions.all()) < 20:
        time.sleep(0.01)
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    found = Opinions(ArtefactStore(uri=str(tmp_path)), "tiny").all()
    assert [opinion.comment for opinion in found] == [str(n) for n in range(len(found))]


def test_the_table_has_its_columns_without_opinions(tmp_path: Path) -> None:
    lines = Opinions(ArtefactStore(uri=str(tmp_path)), "tiny").csv().splitlines()
    assert lines == [",".join(Opinion.model_fields)]


def test_a_spreadsheet_finds_no_formula_in_the_table(tmp_path: Path) -> None:
    opinions = Opinions(ArtefactStore(uri=str(tmp_path)), "tiny")
    for comment in ("=1+1", "@SUM(A1)", "-2", "2-1"):
        opinions.add(Statement(**FACTS | {"comment": comment}))
    table = pd.read_csv(io.StringIO(opinions.csv()), dtype=str)
    assert list(table["comment"]) == ["'=1+1", "'@SUM(A1)", "'-2", "2-1"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"verdict": "none"},
        {"verdict": "perhaps"},
        {"user": "  "},
        {"slide_id": "../secret"},
        {"comment": "x" * 4001},
        {"time": "2020-01-01"},
    ],
)
def test_what_says_nothing_or_too_much_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Statement(**FACTS | wrong)
