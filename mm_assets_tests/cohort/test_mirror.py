"""Cohorts at `s3://` addresses: on a real S3-speaking server, in processes of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mm_assets.cohort.loading import find_cohorts
from mm_assets.cohort.mirror import mirrored
from mm_assets.cohort.problems import CohortError
from mm_assets_tests.cohort.conftest import BUCKET
from mm_assets_tests.s3_proxy import forbidding_s3
from mm_assets_tests.slow_s3 import slow_s3

YAML = """
type: mm_assets.CohortComponent
attributes: {{cohort: {name}, clinical: {{table: clinical.csv}}, tasks: []}}
"""
FIND = """
import json
from mm_assets.cohort.loading import find_cohorts
print(json.dumps({name: str(path) for name, path in find_cohorts().items()}))
"""
Client = "boto3.client"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty `MM_HOME`, as a new machine has it."""
    monkeypatch.setenv("MM_HOME", str(tmp_path / "mm"))
    return tmp_path / "mm"


def put(s3: Client, objects: Mapping[str, str]) -> None:
    """Objects below ``cohorts/``."""
    for name, text in objects.items():
        s3.put_object(Bucket=BUCKET, Key=f"cohorts/{name}", Body=text.encode())


def files(folder: Path) -> dict[str, str]:
    """Files below a folder and what they hold."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_text() for path in found}


def found(address: str) -> dict[str, Path]:
    """Cohorts that a new process finds."""
    done = subprocess.run(
        [sys.executable, "-c", FIND],
        env={**os.environ, "MM_COHORTS": address},
        capture_output=True,
        text=True,
        check=True,
    )
    return {name: Path(path) for name, path in json.loads(done.stdout).items() if name != "demo"}


def test_cohorts_come_change_and_go(s3: Client, home: Path, s3_address: str) -> None:
    put(s3, {"one/defs.yaml": YAML.format(name="first"), "one/clinical.csv": "old"})
    put(s3, {"two/defs.yaml": YAML.format(name="second"), "two/omics/a.txt": ""})
    with slow_s3(s3_address) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.address)
        before = found(f"s3://{BUCKET}/cohorts")
        assert before.keys() == {"first", "second"}
        assert files(before["second"].parent)["omics/a.txt"] == ""
        table = before["first"].parent / "clinical.csv"
        assert table.read_text() == "old"
        with table.open() as opened:
            put(s3, {"one/clinical.csv": "new"})
            proxy.fetches.clear()
            assert found(f"s3://{BUCKET}/cohorts/") == before
            assert proxy.names() == ["clinical.csv"]
            assert table.read_text() == "new"
            assert opened.read() == "old"
        s3.delete_object(Bucket=BUCKET, Key="cohorts/two/defs.yaml")
        s3.delete_object(Bucket=BUCKET, Key="cohorts/two/omics/a.txt")
        proxy.fetches.clear()
        assert found(f"s3://{BUCKET}/cohorts").keys() == {"first"}
        assert proxy.names() == []
    # Neither the former states nor what only they held.
    contents = [path.read_text() for path in home.rglob("*") if path.is_file()]
    assert sorted(contents) == sorted(2 * ["new", YAML.format(name="first")])


def test_addresses_stand_among_folders(s3: Client, tmp_path: Path) -> None:
    put(s3, {"one/defs.yaml": YAML.format(name="first")})
    for name in ("second", "third"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "defs.yaml").write_text(YAML.format(name=name))
    listed = f"{tmp_path}/second:s3://{BUCKET}/cohorts/one:{tmp_path}/third::"
    assert found(listed).keys() == {"first", "second", "third"}


def test_neither_slides_nor_hidden_files_are_fetched(s3: Client) -> None:
    put(s3, {"defs.yaml": "1", "omics/a.txt": "2", "s.SVS": "3", "m.mrxs": "4", ".git": "5"})
    put(s3, {"m/Data.dat": "6", "m2/a.csv": "7", "a/.b/c": "8"})
    s3.put_object(Bucket=BUCKET, Key="cohorts/empty/", Body=b"")
    s3.put_object(Bucket=BUCKET, Key="cohorts2/defs.yaml", Body=b"")
    assert files(mirrored(f"s3://{BUCKET}/cohorts")) == {
        "defs.yaml": "1",
        "omics/a.txt": "2",
        "m2/a.csv": "7",
    }


def test_s3_is_asked_once_in_a_process(s3: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    put(s3, {"defs.yaml": YAML.format(name="first")})
    monkeypatch.setenv("MM_COHORTS", f"s3://{BUCKET}/cohorts")
    before = find_cohorts()
    assert "first" in before
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert find_cohorts() == before


def test_processes_at_once_do_no_harm(s3: Client) -> None:
    put(s3, {f"c{n}/defs.yaml": YAML.format(name=f"c{n}") for n in range(4)})
    with ThreadPoolExecutor() as pool:
        for each in pool.map(found, 3 * [f"s3://{BUCKET}/cohorts"]):
            assert each.keys() == {f"c{n}" for n in range(4)}
            assert all(path.is_file() for path in each.values())


@pytest.mark.parametrize(
    ("address", "key", "said"),
    [
        (f"s3://{BUCKET}/gone", "", f"s3://{BUCKET}/gone: nothing is there"),
        ("s3://no-such-bucket/cohorts", "", "s3://no-such-bucket/cohorts: no such bucket"),
        ("s3://", "", "Invalid bucket name"),
        (f"s3://{BUCKET}/out", "out/../../etc", r"'\.\./\.\./etc' would lead out of the folder"),
        (f"s3://{BUCKET}/abs", "abs//etc/passwd", "'/etc/passwd' would lead out of the folder"),
    ],
)
def test_what_cannot_be_read_is_refused(
    s3: Client, home: Path, monkeypatch: pytest.MonkeyPatch, address: str, key: str, said: str
) -> None:
    if key:
        s3.put_object(Bucket=BUCKET, Key=key, Body=b"secret")
    monkeypatch.setenv("MM_COHORTS", address)
    with pytest.raises(CohortError, match=said):
        find_cohorts()
    assert not [path for path in home.parent.rglob("*") if path.is_file()]


def test_who_may_not_is_told_so(s3: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MM_COHORTS", f"s3://{BUCKET}/cohorts")
    with forbidding_s3() as address, monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", address)
        with pytest.raises(CohortError, match=r"/cohorts: S3 refuses it: .*AccessDenied"):
            find_cohorts()
