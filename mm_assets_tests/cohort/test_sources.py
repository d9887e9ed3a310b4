"""Slide files: listing and identity, in folders and on a real S3-speaking server."""

import os
from pathlib import Path

import boto3
import pytest

from mm_assets.cohort.config import SlidesConfig
from mm_assets.cohort.manifest import read_manifest
from mm_assets.cohort.problems import CohortError
from mm_assets.cohort.sources import (
    absolute,
    leads_outside,
    list_files,
    list_slides,
    stamps,
)
from mm_assets_tests.cohort.conftest import BUCKET


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
