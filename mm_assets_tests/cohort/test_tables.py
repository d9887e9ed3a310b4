"""Reading tables: what is read, and that every defect is named."""

import zipfile
from pathlib import Path

import pandas as pd
import pytest

from mm_assets.cohort.problems import CohortError
from mm_assets.cohort.tables import listing, non_numeric, read_table, table_columns


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_identifiers_keep_their_zeros_and_rows_their_line_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "\ufeff, id ,age\n0,007,1\n\n1,008,2\n")
    table = read_table(path, text=("id",))
    assert table["id"].tolist() == ["007", "008"]
    assert table.index.tolist() == [2, 4]
    assert list(table.columns) == table_columns(path) == ["id", "age"]


def test_only_wanted_columns_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "a,b,b\n1,2,3\n")
    assert read_table(path, wanted=lambda name: name == "a").to_dict("list") == {"a": [1]}


def test_a_column_twice_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "id,TP53,TP53\n1,2,3\n")
    with pytest.raises(CohortError, match=r"t\.csv.*more than once: TP53"):
        read_table(path)


def test_tab_separated_text_has_comments_and_no_quotes(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.txt", '#Patient\n#STRING\nID\tNOTE\nA\t5" long\nB\t[Not Available]\n'
    )
    table = read_table(path)
    assert table["NOTE"].tolist()[0] == '5" long'
    assert table["NOTE"].isna().tolist() == [False, True]
    assert table.index.tolist() == [4, 5]


@pytest.mark.parametrize("member", ["t.csv", "./folder/t.csv.zip"])
def test_a_zip_with_one_table_and_macos_junk(tmp_path: Path, member: str) -> None:
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("__MACOSX/._t.csv", "junk")
        archive.writestr(".DS_Store", "junk")
        archive.writestr(member, "id,age\nA,1\n")
    assert read_table(tmp_path / "t.zip").to_dict("list") == {"id": ["A"], "age": [1]}


def test_a_zip_with_two_tables_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("a.csv", "id\nA\n")
        archive.writestr("b.csv", "id\nB\n")
    with pytest.raises(CohortError, match=r"t\.zip.*a\.csv, b\.csv"):
        read_table(tmp_path / "t.zip")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", "", "is empty"),
        ("t.csv", "id,age\nA,1,2\n", "line 2 has 3 cells, the header 2"),
        ("t.csv", "id,age\nA,1,\nB,1,2\n", "line 3 has 3 cells"),
        ("t.csv", "id,name\nA,Mül\n".encode("latin-1"), "UTF-8"),
        ("t.zip", b"PK not a zip", "cannot be read"),
    ],
)
def test_defective_files_are_named(
    tmp_path: Path, name: str, content: str | bytes, said: str
) -> None:
    with pytest.raises(CohortError, match=said) as caught:
        read_table(write(tmp_path / name, content))
    assert str(tmp_path / name) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for read in (read_table, table_columns):
        with pytest.raises(CohortError, match=r"gone\.csv: no such file"):
            read(tmp_path / "gone.csv")


def test_non_numeric_tells_missing_from_wrong() -> None:
    cells = non_numeric(pd.Series(["1", None, "x", "2e3"], index=[5, 6, 7, 8]))
    assert cells.to_dict() == {7: "x"}


def test_listings_end_with_a_count() -> None:
    assert listing(["a", "b"]) == "a, b"
    assert listing(range(13)).endswith("9 and 3 more")
