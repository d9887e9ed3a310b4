"""The clinical table and the endpoints on it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm_assets.cohort.clinical import covariate_columns, make_endpoint, read_clinical
from mm_assets.cohort.config import ClassificationTask, ClinicalConfig, SurvivalTask
from mm_assets.cohort.problems import CohortError

SUBTYPE = ClassificationTask(
    name="subtype", kind="classification", column="subtype", classes=["IDC", "ILC"]
)
SURVIVAL = SurvivalTask(name="survival", kind="survival", time="months", event="event")


def read(path: Path, text: str, **options: object) -> tuple[pd.DataFrame, list[str]]:
    path.write_text(text)
    config = ClinicalConfig.model_validate({"table": str(path), **options})
    table, problems = read_clinical(config, [SUBTYPE, SURVIVAL])
    return table, [f"{problem.severity} {problem}" for problem in problems]


def test_rows_of_a_patient_are_merged(tmp_path: Path) -> None:
    table, problems = read(
        tmp_path / "c.csv",
        "case_id,slide_id,age,is_female,TP53_rnaseq\nB,s3,50,1,9\nA,s1,40,0,1\nA,s2,,0,1\n",
        columns={"patient_id": "case_id", "sex": "is_female"},
    )
    assert table.index.tolist() == ["A", "B"]
    assert table.to_dict("list") == {"sex": [0, 1], "age": [40.0, 50.0]}
    assert problems == []


def test_rows_that_disagree_about_an_endpoint_or_covariate_are_errors(tmp_path: Path) -> None:
    _, problems = read(
        tmp_path / "c.csv",
        "patient_id,age,subtype,scanner\nA,40,IDC,x\nA,41,IDC,y\nB,50,IDC,x\nB,50,ILC,x\n",
    )
    assert [p.split(" ", 1)[0] for p in problems] == ["error", "error", "warning"]
    assert "'age': A" in problems[0]
    assert "'subtype': B" in problems[1]
    assert "scanner" in problems[2]


def test_a_row_without_patient_is_named_by_its_line(tmp_path: Path) -> None:
    table, problems = read(tmp_path / "c.csv", "patient_id,age\nA,1\n ,2\n")
    assert table.index.tolist() == ["A"]
    assert problems[0].startswith("error")
    assert "c.csv, line 3: no patient id" in problems[0]


def test_a_missing_column_lists_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"no column 'patient_id'.*case_id, age"):
        read(tmp_path / "c.csv", "case_id,age\nA,1\n")
    with pytest.raises(CohortError, match=r"no column 'gender' for 'sex'"):
        read(tmp_path / "c.csv", "patient_id,age\nA,1\n", columns={"sex": "gender"})


def test_a_mapped_column_replaces_one_of_that_name(tmp_path: Path) -> None:
    table, _ = read(
        tmp_path / "c.csv",
        "patient_id,age,age_at_biopsy\nA,1,2\n",
        columns={"age": "age_at_biopsy"},
    )
    assert table.to_dict("list") == {"age": [2]}


def test_sites_are_text_and_come_from_tcga_barcodes(tmp_path: Path) -> None:
    table, _ = read(tmp_path / "c.csv", "patient_id,site\nA,01\nB,\n")
    assert table["site"].fillna("none").tolist() == ["01", "none"]
    table, _ = read(tmp_path / "c.csv", "patient_id,age\nTCGA-3C-AALI,1\nTCGA-01-AALJ,2\n")
    assert table["site"].tolist() == ["01", "3C"]
    table, _ = read(tmp_path / "c.csv", "patient_id,age\nTCGA-3C-AALI,1\nlocal-1,2\n")
    assert "site" not in table


def test_a_cbioportal_study(tmp_path: Path) -> None:
    (tmp_path / "data_clinical_patient.txt").write_text(
        "#Patient\n#STRING\n#STRING\n#1\nPATIENT_ID\tAGE\tSEX\tOS_STATUS\tOS_MONTHS\tDFS_STATUS\n"
        "P1\t40\tFemale\t1:DECEASED\t5.5\tUnclear\nP2\t50\tMale\t0:LIVING\t10\t\n"
        "P3\t60\tMale\t\t7\t1:Recurred\n"
    )
    (tmp_path / "data_clinical_sample.txt").write_text(
        "#S\nSAMPLE_ID\tPATIENT_ID\tONCOTREE_CODE\tAGE\nP1-1\tP1\tIDC\t1\nP1-2\tP1\tIDC\t1\n"
        "P2-1\tP2\tILC\t1\n"
    )
    survival = SurvivalTask(name="os", kind="survival", time="OS_MONTHS", event="OS_STATUS")
    table, problems = read_clinical(ClinicalConfig(table=str(tmp_path)), [survival])
    assert problems == []
    assert table["age"].tolist() == [40, 50, 60]
    assert table["ONCOTREE_CODE"].tolist()[:2] == ["IDC", "ILC"]
    assert table["DFS_STATUS"].iloc[0] == "Unclear"
    endpoint = make_endpoint(table, survival)
    assert endpoint.table.to_dict("index") == {
        "P1": {"time": 5.5, "event": 1},
        "P2": {"time": 10.0, "event": 0},
    }
    assert endpoint.excluded.to_numpy().tolist() == [["P3", "no OS_STATUS"]]


def test_every_unusable_survival_is_excluded_with_its_reason() -> None:
    clinical = pd.DataFrame(
        {
            "months": ["5", "0", "-1", None, "soon", "inf", "9", "9"],
            "event": [1, 0, 1, 1, 1, 1, 2, None],
        },
        index=list("abcdefgh"),
    )
    endpoint = make_endpoint(clinical, SURVIVAL)
    assert endpoint.table.index.tolist() == ["a"]
    assert endpoint.excluded.set_index("patient_id")["reason"].to_dict() == {
        "b": "months is not above 0",
        "c": "months is not above 0",
        "d": "no months",
        "e": "months is not a number",
        "f": "months is infinite",
        "g": "event is neither 0 nor 1",
        "h": "no event",
    }


def test_classes_are_compared_as_text() -> None:
    grade = ClassificationTask(
        name="grade", kind="classification", column="grade", classes=["1", "2"]
    )
    clinical = pd.DataFrame({"grade": [2.0, 1.0, np.nan, 3.0]}, index=list("abcd"))
    endpoint = make_endpoint(clinical, grade)
    assert endpoint.table["label"].to_dict() == {"a": 1, "b": 0}
    assert endpoint.table["label"].dtype == np.int64
    assert endpoint.excluded["reason"].tolist() == ["no grade", "class 3 is not one of the task's"]


def test_a_task_on_a_missing_column_is_refused() -> None:
    with pytest.raises(CohortError, match=r"task subtype: .*'subtype' \(it has: age, sex\)"):
        make_endpoint(pd.DataFrame({"age": [1], "sex": [1]}), SUBTYPE)


def test_covariates_never_include_the_endpoint() -> None:
    clinical = pd.DataFrame(columns=["age", "subtype", "months", "event", "grade"])
    config = ClinicalConfig(table="-", covariates=["age", "subtype", "months", "event", "absent"])
    assert covariate_columns(clinical, config, SUBTYPE) == ["age", "months", "event"]
    assert covariate_columns(clinical, config, SURVIVAL) == ["age", "subtype"]
    assert covariate_columns(clinical, ClinicalConfig(table="-"), SURVIVAL) == ["age"]
    none = ClinicalConfig(table="-", covariates=[])
    assert covariate_columns(clinical, none, SURVIVAL) == []


@given(
    st.lists(
        st.tuples(
            st.one_of(st.none(), st.floats(-10, 100), st.just(float("inf"))),
            st.one_of(st.none(), st.integers(-1, 2)),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_each_patient_is_either_usable_or_excluded(rows: list[tuple[float, int]]) -> None:
    clinical = pd.DataFrame(rows, columns=["months", "event"], dtype=float)
    clinical.index = pd.Index([f"p{i:02d}" for i in range(len(rows))])
    endpoint = make_endpoint(clinical, SURVIVAL)
    both = [*endpoint.table.index, *endpoint.excluded["patient_id"]]
    assert sorted(both) == clinical.index.tolist()
    assert (endpoint.table["time"] > 0).all()
    assert np.isfinite(endpoint.table["time"]).all()
    assert set(endpoint.table["event"]) <= {0, 1}


@pytest.mark.parametrize(
    ("name", "patients", "events"), [("brca", 956, 130), ("coadread", 340, 81)]
)
def test_tcga_tables(shared_data: Path, name: str, patients: int, events: int) -> None:
    table = shared_data / "tcga" / f"tcga_{name}_all_clean.csv.zip"
    survival = SurvivalTask(
        name="survival", kind="survival", time="survival_months", censored="censorship"
    )
    subtype = SUBTYPE.model_copy(update={"column": "oncotree_code"})
    columns = {"patient_id": "case_id", "sex": "is_female"}
    clinical, problems = read_clinical(
        ClinicalConfig(table=str(table), columns=columns), [survival, subtype]
    )
    assert problems == []
    assert (clinical["site"] == clinical.index.str[5:7]).all()
    endpoint = make_endpoint(clinical, survival)
    assert len(endpoint.table) == patients
    assert endpoint.table["event"].sum() == events
    if name == "brca":
        counts = make_endpoint(clinical, subtype).table["label"].value_counts()
        assert counts.to_dict() == {0: 737, 1: 158}
