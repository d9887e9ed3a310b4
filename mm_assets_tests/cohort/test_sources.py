"""Slide files: listing, identity and local copies, in folders and on a real S3-speaking server."""

import os
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from mm_assets.cohort.config import SlidesConfig
from mm_assets.cohort.manifest import read_manifest
from mm_assets.cohort.problems import CohortError
from mm_assets.cohort.sources import (
    absolute,
    leads_outside,
    list_files,
    list_slides,
    localize,
    stamps,
)

BUCKET = "slides"


@pytest.fixture(scope="module")
def s3_address() -> Iterator[str]:
    """Address of an S3 server with an empty bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator["boto3.client"]:
    """Client of the server, which the environment points at; the bucket is emptied after use."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    yield client
    for item in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=item["Key"])


def test_slides_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "b" / ".hidden").mkdir(parents=True)
    for name in ("a.svs", "b/c.TIFF", "b/notes.txt", ".part.svs", "b/.hidden/d.svs"):
        (tmp_path / name).write_bytes(b"1234")
    found = list_slides(str(tmp_path))
    assert [(f.path, f.size) for f in found] == [
        (str(tmp_path / "a.svs"), 4),
        (str(tmp_path / "b/c.TIFF"), 4),
    ]
    assert len(list_files(str(tmp_path))) == 3
    with pytest.raises(OSError, match="gone"):
        list_slides(str(tmp_path / "gone"))


def test_stamps_follow_content(tmp_path: Path) -> None:
    slide = tmp_path / "a.svs"
    slide.write_bytes(b"1")
    before = stamps([str(slide), "gone.svs"])
    assert before["gone.svs"] == "absent"
    assert stamps([str(slide)]) == {str(slide): before[str(slide)]}
    os.utime(slide, ns=(0, 5))
    assert stamps([str(slide)])[str(slide)] == "1 bytes, 5"
    assert before[str(slide)] != "1 bytes, 5"


@pytest.mark.parametrize(
    ("path", "outside"),
    [
        ("a.svs", False),
        ("in/../a.svs", False),
        ("../a.svs", True),
        ("in/../../a.svs", True),
        ("/etc/passwd", True),
        ("s3://bucket/a.svs", True),
        ("link/a.svs", True),
        ("loop/a.svs", False),
    ],
)
def test_what_leads_outside_a_folder(tmp_path: Path, path: str, outside: bool) -> None:
    root = tmp_path / "root"
    (root / "in").mkdir(parents=True)
    (root / "link").symlink_to(tmp_path)
    (root / "loop").symlink_to(root / "in")
    assert leads_outside(str(root), path) is outside
    assert leads_outside(str(root), str(root / "a.svs")) is False


@pytest.mark.parametrize(
    ("path", "outside"),
    [
        ("a.svs", False),
        ("s3://bucket/cohort/a.svs", False),
        ("s3://bucket/cohorts/a.svs", True),
        ("s3://bucket/cohort/../a.svs", True),
        ("../a.svs", True),
        ("/data/a.svs", True),
    ],
)
def test_what_leads_outside_a_prefix(path: str, outside: bool) -> None:
    assert leads_outside("s3://bucket/cohort/", path) is outside


def test_absolute_paths(tmp_path: Path) -> None:
    assert absolute("s3://bucket/cohort/", "x/a.svs") == "s3://bucket/cohort/x/a.svs"
    assert absolute("s3://bucket/cohort", "s3://bucket/cohort/a.svs") == "s3://bucket/cohort/a.svs"
    assert absolute(str(tmp_path), "x/../a.svs") == str(tmp_path / "a.svs")


def test_slides_of_a_bucket(s3: "boto3.client") -> None:
    for key in ("cohort/a.svs", "cohort/deep/b.tif", "cohort/notes.txt", "other/c.svs"):
        s3.put_object(Bucket=BUCKET, Key=key, Body=b"123")
    found = list_slides(f"s3://{BUCKET}/cohort")
    assert [f.path for f in found] == ["s3://slides/cohort/a.svs", "s3://slides/cohort/deep/b.tif"]
    assert {f.size for f in found} == {3}
    assert list_slides(f"s3://{BUCKET}/nothing-yet") == []
    with pytest.raises(OSError, match="gone"):
        list_slides("s3://gone/cohort")
    wanted = [found[0].path, found[1].path, "s3://slides/cohort/gone.svs"]
    found_stamps = stamps(wanted)
    assert found_stamps[wanted[2]] == "absent"
    assert found_stamps[wanted[0]] == f"3 bytes, {found[0].stamp}"


def test_objects_are_copied_once_for_each_content(s3: "boto3.client", tmp_path: Path) -> None:
    body = os.urandom(100_000)
    s3.put_object(Bucket=BUCKET, Key="c/a.svs", Body=body)
    copy = localize("s3://slides/c/a.svs", tmp_path)
    assert copy.name == "a.svs"
    assert copy.read_bytes() == body
    touched = copy.stat().st_mtime_ns
    assert localize("s3://slides/c/a.svs", tmp_path) == copy
    assert copy.stat().st_mtime_ns == touched
    s3.put_object(Bucket=BUCKET, Key="c/a.svs", Body=body[:-1])
    other = localize("s3://slides/c/a.svs", tmp_path)
    assert other != copy
    assert other.read_bytes() == body[:-1]
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["a.svs", "a.svs"]
    with pytest.raises(FileNotFoundError, match="gone"):
        localize("s3://slides/c/gone.svs", tmp_path)


def test_a_mirax_slide_brings_its_folder(s3: "boto3.client", tmp_path: Path) -> None:
    s3.put_object(Bucket=BUCKET, Key="c/m.mrxs", Body=b"index")
    s3.put_object(Bucket=BUCKET, Key="c/m/Slidedat.ini", Body=b"ini")
    s3.put_object(Bucket=BUCKET, Key="c/m/data/0.dat", Body=b"dat")
    copy = localize("s3://slides/c/m.mrxs", tmp_path)
    assert (copy.parent / "m" / "Slidedat.ini").read_bytes() == b"ini"
    assert (copy.parent / "m" / "data" / "0.dat").read_bytes() == b"dat"


def test_a_local_path_stays(tmp_path: Path) -> None:
    slide = tmp_path / "a.svs"
    assert localize(str(slide), tmp_path / "cache") == slide
    assert not (tmp_path / "cache").exists()


def test_a_manifest_on_s3_slides(s3: "boto3.client", tmp_path: Path) -> None:
    s3.put_object(Bucket=BUCKET, Key="c/a.svs", Body=b"1")
    manifest = tmp_path / "slides.csv"
    manifest.write_text("slide_id,patient_id,path\na,P1,a.svs\nb,P2,b.svs\nc,P3,../c.svs\n")
    table, problems = read_manifest(SlidesConfig(root="s3://slides/c/", manifest=str(manifest)))
    assert table["path"].tolist() == ["s3://slides/c/a.svs"]
    assert [p.severity for p in problems] == ["error", "warning"]
    scanned, _ = read_manifest(SlidesConfig(root="s3://slides/c"))
    assert scanned["slide_id"].tolist() == ["a"]
    with pytest.raises(CohortError, match="s3://gone: slides cannot be listed"):
        read_manifest(SlidesConfig(root="s3://gone"))
