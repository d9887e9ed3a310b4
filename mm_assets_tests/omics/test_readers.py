"""Omics readers: wide tables and cBioPortal study folders, right and wrong ones."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mm_assets.cohort.config import OmicsConfig
from mm_assets.cohort.problems import CohortError, Problem
from mm_assets.omics.readers import read_omics

HEADER = "case_id,slide_id,age,TP53_rnaseq,BRCA1_cnv,TP53_mut\n"


def read_wide(path: Path, rows: str, header: str = HEADER) -> tuple[pd.DataFrame, list[Problem]]:
    path.write_text(header + rows)
    return read_omics(OmicsConfig(kind="wide", path=str(path)))


def test_wide_table(tmp_path: Path) -> None:
    table, problems = read_wide(
        tmp_path / "w.csv", "B,s3,5,-1.5,2,1\nA,s1,4,0.25,-2,0\nA,s2,4,0.25,-2,0\nC,s4,6,,0,\n"
    )
    assert problems == []
    assert table.index.tolist() == ["A", "B", "C"]
    assert table.index.name == "patient_id"
    assert table.columns.tolist() == ["expression:TP53", "copy_number:BRCA1", "mutation:TP53"]
    assert (table.dtypes == np.float32).all()
    np.testing.assert_array_equal(table, [[0.25, -2, 0], [-1.5, 2, 1], [np.nan, 0, np.nan]])


def test_patients_without_any_value_are_not_in_the_table(tmp_path: Path) -> None:
    table, problems = read_wide(tmp_path / "w.csv", "A,s,4,1,0,0\nB,s,4,,,\nC,s,4,2,1,1\n")
    assert problems == []
    assert table.index.tolist() == ["A", "C"]


def test_rows_that_conflict_are_an_error(tmp_path: Path) -> None:
    _, problems = read_wide(tmp_path / "w.csv", "A,s1,4,1,0,0\nA,s2,4,2,0,0\nB,s3,4,3,1,1\n")
    assert [p.severity for p in problems] == ["error"]
    assert problems[0].what.endswith("different omics: A")


def test_cells_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    _, problems = read_wide(tmp_path / "w.csv", "A,s1,4,high,0,0\nB,s2,4,1,inf,1\nC,s3,4,2,1,0\n")
    errors = [str(p) for p in problems if p.severity == "error"]
    assert len(errors) == 2
    assert "w.csv, line 2, column TP53_rnaseq: 'high' is not a number" in errors[0]
    assert "w.csv, line 3, column BRCA1_cnv: is infinite" in errors[1]


def test_many_bad_cells_end_with_a_count(tmp_path: Path) -> None:
    rows = "".join(f"P{i:02d},s,4,x{i},{i % 2},{i % 2}\n" for i in range(30))
    _, problems = read_wide(tmp_path / "w.csv", rows)
    errors = [p for p in problems if p.severity == "error"]
    assert len(errors) == 21
    assert "30 cells are not finite numbers, in columns TP53_rnaseq" in errors[-1].what


def test_constant_columns_are_dropped_and_counted(tmp_path: Path) -> None:
    table, problems = read_wide(tmp_path / "w.csv", "A,s,4,1,0,\nB,s,4,2,0,\n")
    assert table.columns.tolist() == ["expression:TP53"]
    assert [p.severity for p in problems] == ["warning"]
    assert "2 columns have one value for all patients: " in problems[0].what
    assert "copy_number:BRCA1" in problems[0].what


def test_duplicated_genes_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"w\.csv: columns.*more than once: TP53_mut"):
        read_wide(tmp_path / "w.csv", "A,1,2\n", "case_id,TP53_mut,TP53_mut\n")


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("patient,TP53_mut\n", "no patient column 'case_id' .set omics.patient_id"),
        ("case_id,TP53\n", "no omics column .names end in _rnaseq, _cnv, _mut"),
    ],
)
def test_tables_of_another_kind_are_refused(tmp_path: Path, header: str, said: str) -> None:
    with pytest.raises(CohortError, match=said):
        read_wide(tmp_path / "w.csv", "A,1\n", header)


def test_a_row_without_patient_is_named(tmp_path: Path) -> None:
    table, problems = read_wide(tmp_path / "w.csv", "A,s,4,1,0,1\n,s,4,2,1,0\nB,s,4,2,1,0\n")
    assert table.index.tolist() == ["A", "B"]
    assert problems[0].where.endswith("w.csv, line 3")


EXPRESSION = "data_mrna_seq_v2_rsem_zscores_ref_all_samples.txt"


def write_study(folder: Path) -> None:
    folder.joinpath(EXPRESSION).write_text(
        "Hugo_Symbol\tEntrez_Gene_Id\tS1\tS2\tS1b\nTP53\t7157\t1.5\tNA\t9\n"
        "BRCA1\t672\t-1\t2\t9\nTP53\t7157\t7\t7\t7\n\t1\t3\t4\t5\n"
    )
    folder.joinpath("data_cna.txt").write_text("Hugo_Symbol\tS1\tS2\nMYC\t2\t-1\n")
    folder.joinpath("data_mutations.txt").write_text(
        "#version 2.4\nHugo_Symbol\tTumor_Sample_Barcode\tVariant_Classification\tNote\n"
        'TP53\tS1\tMissense_Mutation\tsaid "so\nTP53\tS1\tNonsense_Mutation\t\n'
        "TTN\tS2\tSilent\t\nKRAS\tS2\tMissense_Mutation\t\n"
    )
    folder.joinpath("case_lists").mkdir()
    folder.joinpath("case_lists", "cases_sequenced.txt").write_text(
        "cancer_study_identifier: x\ncase_list_ids: S1\tS2\tS3\n"
    )
    folder.joinpath("data_clinical_sample.txt").write_text(
        "#a\n#b\n#c\n#d\nSAMPLE_ID\tPATIENT_ID\nS1\tP1\nS1b\tP1\nS2\tP2\nS3\tP3\n"
    )


def read_study(folder: Path) -> tuple[pd.DataFrame, list[Problem]]:
    return read_omics(OmicsConfig(kind="cbioportal", path=str(folder)))


def test_cbioportal_study(tmp_path: Path) -> None:
    write_study(tmp_path)
    table, problems = read_study(tmp_path)
    expected = pd.DataFrame(
        {
            "expression:BRCA1": [-1, 2, np.nan],
            "copy_number:MYC": [2, -1, np.nan],
            "mutation:KRAS": [0, 1, 0],
            "mutation:TP53": [1, 0, 0],
        },
        index=pd.Index(["P1", "P2", "P3"], name="patient_id"),
        dtype=np.float32,
    )
    # TP53's expression is known of one patient only, so it does not vary.
    pd.testing.assert_frame_equal(table, expected, check_index_type=False)
    assert {p.severity for p in problems} == {"warning"}
    said = " | ".join(str(p) for p in problems)
    assert "1 rows have no Hugo_Symbol" in said
    assert "1 genes have several rows: TP53" in said
    assert "1 patients have several samples: P1" in said
    assert "one value for all patients: expression:TP53" in said


def test_without_case_list_only_mutated_samples_count_as_sequenced(tmp_path: Path) -> None:
    write_study(tmp_path)
    (tmp_path / "case_lists" / "cases_sequenced.txt").unlink()
    table, _ = read_study(tmp_path)
    assert "P3" not in table.index
    assert table.loc["P2", "mutation:TP53"] == 0


def test_tcga_barcodes_need_no_sample_file_and_meta_files_name_the_data(tmp_path: Path) -> None:
    (tmp_path / "meta_expr.txt").write_text(
        "genetic_alteration_type: MRNA_EXPRESSION\ndatatype: Z-SCORE\ndata_filename: e.txt\n"
    )
    (tmp_path / "e.txt").write_text(
        "Hugo_Symbol\tTCGA-AA-0001-06\tTCGA-AA-0001-01\tTCGA-AA-0002-01\nA\t9\t1\t2\n"
    )
    table, _ = read_study(tmp_path)
    assert table.index.tolist() == ["TCGA-AA-0001", "TCGA-AA-0002"]
    assert table["expression:A"].tolist() == [1, 2]


def test_samples_of_nobody_are_an_error(tmp_path: Path) -> None:
    write_study(tmp_path)
    (tmp_path / "data_clinical_sample.txt").write_text("SAMPLE_ID\tPATIENT_ID\nS1\tP1\n")
    _, problems = read_study(tmp_path)
    errors = [str(p) for p in problems if p.severity == "error"]
    assert any(
        EXPRESSION in e and "2 samples belong to no known patient: S2, S1b" in e for e in errors
    )


def test_cells_of_a_study_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    (tmp_path / "data_cna.txt").write_text(
        "Hugo_Symbol\tTCGA-AA-0001-01\tTCGA-AA-0002-01\nA\t1\tlots\nB\tinf\t1\n"
    )
    _, problems = read_study(tmp_path)
    errors = [str(p) for p in problems if p.severity == "error"]
    assert any("line 2 (A), column TCGA-AA-0002-01: 'lots'" in e for e in errors)
    assert any("infinite values, of genes B" in e for e in errors)


def test_a_folder_without_omics_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="holds no expression"):
        read_study(tmp_path)
    with pytest.raises(CohortError, match="no such folder"):
        read_study(tmp_path / "gone")
    (tmp_path / "data_cna.txt").write_text("Gene\tS1\nA\t1\n")
    with pytest.raises(CohortError, match=r"data_cna\.txt: has no column Hugo_Symbol"):
        read_study(tmp_path)


@pytest.mark.parametrize(
    ("name", "patients", "counts"),
    [
        ("brca", 956, {"expression": 1558, "copy_number": 1333, "mutation": 21}),
        ("coadread", 340, {"expression": 1550, "mutation": 1103, "copy_number": 4}),
    ],
)
def test_tcga_tables(shared_data: Path, name: str, patients: int, counts: dict[str, int]) -> None:
    path = shared_data / "tcga" / f"tcga_{name}_all_clean.csv.zip"
    table, problems = read_omics(OmicsConfig(kind="wide", path=str(path)))
    assert problems == []
    assert len(table) == patients
    assert table.columns.str.split(":").str[0].value_counts().to_dict() == counts
    assert np.isfinite(table.to_numpy()).all()
