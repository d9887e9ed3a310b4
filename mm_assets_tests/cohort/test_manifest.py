"""The manifest: what it lists, and every row that cannot be right."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mm_assets.cohort.config import SlidesConfig
from mm_assets.cohort.manifest import COLUMNS, read_manifest
from mm_assets.cohort.problems import CohortError, Problem


def slides(folder: Path, *names: str) -> Path:
    root = folder / "slides"
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def read(root: Path, text: str) -> tuple[pd.DataFrame, list[Problem]]:
    manifest = root.parent / "slides.csv"
    manifest.write_text(text)
    return read_manifest(SlidesConfig(root=str(root), manifest=str(manifest)))


def test_rows(tmp_path: Path) -> None:
    root = slides(tmp_path, "b.svs", "sub/a.tiff")
    table, problems = read(
        root,
        "slide_id,patient_id,path,site,mpp,note\nb,002,b.svs,,0.25,x\n"
        f"a,001,{root}/sub/a.tiff,07,,y\n",
    )
    assert problems == []
    assert table.columns.tolist() == COLUMNS
    assert table["slide_id"].tolist() == ["a", "b"]
    assert table["patient_id"].tolist() == ["001", "002"]
    assert table["path"].tolist() == [str(root / "sub/a.tiff"), str(root / "b.svs")]
    assert table["site"].fillna("none").tolist() == ["07", "none"]
    np.testing.assert_array_equal(table["mpp"], [np.nan, 0.25])


def test_every_wrong_row_is_listed_by_line(tmp_path: Path) -> None:
    root = slides(tmp_path, *(f"{n}.svs" for n in "abcdefgh"))
    (root / "out.svs").symlink_to("/etc/hostname")
    table, problems = read(
        root,
        "slide_id,patient_id,path,mpp\n"
        "a,P1,a.svs,0.5\n"
        "b,P1,b.svs,\n"
        "b,P2,c.svs,\n"
        "d d,P1,d.svs,\n"
        "e,,e.svs,\n"
        "f,P1,../../f.svs,\n"
        "g,P1,g.svs,forty\n"
        "h,P1,h.svs,0\n"
        "i,P1,a.svs,\n"
        "j,P1,out.svs,\n"
        ",P1,k.svs,\n",
    )
    assert table.empty
    assert {p.severity for p in problems} == {"error"}
    lines = [int(p.where.rsplit(" ", 1)[1]) for p in problems]
    assert lines == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    said = dict(zip(lines, (p.what for p in problems), strict=True))
    assert said[2] == said[10] == "path 'a.svs' is on lines 2, 10"
    assert said[3] == said[4] == "slide_id 'b' is on lines 3, 4"
    assert said[5] == "slide_id 'd d'"
    assert said[6] == "no patient_id"
    assert "leads outside" in said[7]
    assert "mpp 'forty'" in said[8]
    assert "mpp '0'" in said[9]
    assert "leads outside" in said[11]
    assert said[12] == "no slide_id"


def test_a_slide_that_has_not_arrived_waits(tmp_path: Path) -> None:
    root = slides(tmp_path, "a.svs")
    table, problems = read(root, "slide_id,patient_id,path\na,P1,a.svs\nb,P2,b.svs\n")
    assert table["slide_id"].tolist() == ["a"]
    assert table["mpp"].dtype == float
    assert [(p.severity, p.what) for p in problems] == [("warning", f"b waits for {root}/b.svs")]


def test_what_is_no_manifest_is_refused(tmp_path: Path) -> None:
    root = slides(tmp_path, "a.svs")
    with pytest.raises(CohortError, match="has no column patient_id, path"):
        read(root, "slide_id,patient\na,P1\n")
    with pytest.raises(CohortError, match="slides cannot be listed: no such folder"):
        read(tmp_path / "gone", "slide_id,patient_id,path\na,P1,a.svs\n")
    with pytest.raises(CohortError, match=r"none\.csv: no such file"):
        read_manifest(SlidesConfig(root=str(root), manifest=str(tmp_path / "none.csv")))


def test_without_a_manifest_the_folder_is_scanned(tmp_path: Path) -> None:
    name = "TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF.svs"
    root = slides(tmp_path, name, "deep/local.tiff", "readme.txt", "bad name.svs")
    table, problems = read_manifest(SlidesConfig(root=str(root)))
    assert table[["slide_id", "patient_id"]].to_numpy().tolist() == [
        [name.removesuffix(".svs"), "TCGA-3C-AALI"],
        ["local", "local"],
    ]
    assert [(p.severity, Path(p.where).name) for p in problems] == [("warning", "bad name.svs")]


def test_a_scan_takes_the_patient_from_the_pattern(tmp_path: Path) -> None:
    root = slides(tmp_path, "P7_slide2.svs", "stray.svs")
    table, problems = read_manifest(SlidesConfig(root=str(root), patient_pattern=r"^(P\d+)_"))
    assert table["patient_id"].tolist() == ["P7"]
    assert "no patient id" in problems[0].what
    empty, _ = read_manifest(SlidesConfig(root=str(root), patient_pattern="^(Q)"))
    assert empty.empty
    assert empty.columns.tolist() == COLUMNS


def test_a_scan_refuses_what_is_ambiguous_or_leads_away(tmp_path: Path) -> None:
    root = slides(tmp_path, "x/a.svs", "y/a.tiff", "b.svs")
    (root / "c.svs").symlink_to("/etc/hostname")
    table, problems = read_manifest(SlidesConfig(root=str(root)))
    assert table["slide_id"].tolist() == ["b"]
    errors = sorted(Path(p.where).name for p in problems if p.severity == "error")
    assert errors == ["a.svs", "a.tiff", "c.svs"]
