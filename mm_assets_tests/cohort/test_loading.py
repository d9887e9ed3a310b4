"""The cohort YAML: where it is found, and what is said about a wrong one."""

import os
from pathlib import Path

import pytest

from mm_assets.cohort.loading import find_cohorts, load_config
from mm_assets.cohort.problems import CohortError

GOOD = """\
type: mm_assets.CohortComponent
attributes:
  cohort: {name}
  clinical: {{table: clinical.csv}}
  tasks:
    - {{name: survival, kind: survival, time: months, event: event}}
"""


def write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "defs.yaml"
    path.write_text(text)
    return path


def refusals(folder: Path, text: str) -> list[str]:
    path = write(folder, text)
    with pytest.raises(CohortError) as caught:
        load_config(path)
    return [str(problem).replace(str(path), "Y") for problem in caught.value.problems]


def test_paths_start_at_the_yaml(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD.format(name="x")))
    assert config.cohort == "x"
    assert config.clinical.table == str(tmp_path / "clinical.csv")


def test_every_wrong_key_is_named_with_its_line(tmp_path: Path) -> None:
    found = refusals(
        tmp_path,
        """\
type: mm_assets.CohortComponent
attributes:
  cohort: Upper
  clincal: {table: x}
  tasks:
    - {name: survival, kind: survival, time: a, event: b, censored: c}
    - name: s
      kind: classification
      colum: x
      classes: [a, b]
    - {name: q, kind: regression}
  evaluation:
    folds: one
  imaging: {mpp: 300}
surplus: 1
""",
    )
    starts = {line.partition(": ")[0]: line.partition(": ")[2] for line in found}
    assert set(starts) == {
        "Y, line 3, attributes.cohort",
        "Y, line 3, attributes.clinical",
        "Y, line 4, attributes.clincal",
        "Y, line 6, attributes.tasks[0]",
        "Y, line 7, attributes.tasks[1].column",
        "Y, line 9, attributes.tasks[1].colum",
        "Y, line 11, attributes.tasks[2]",
        "Y, line 13, attributes.evaluation.folds",
        "Y, line 14, attributes.imaging.mpp",
        "Y, line 15, surplus",
    }
    assert "'Upper'" in starts["Y, line 3, attributes.cohort"]
    assert "did you mean 'clinical'?" in starts["Y, line 4, attributes.clincal"]
    assert starts["Y, line 7, attributes.tasks[1].column"].startswith("is missing")
    assert "exactly one of" in starts["Y, line 6, attributes.tasks[0]"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("type: x\n  attributes: {\n", "Y, line 2: is not valid YAML"),
        ("- a\n- b\n", "Y: is no mapping"),
        ("", "Y: is no mapping"),
        ("type: other.Component\nattributes: {}\n", "Y: is no cohort"),
        ("type: mm_assets.CohortComponent\n", "Y: is no cohort"),
        ("type: mm_assets.CohortComponent\nattributes: 3\n", "Y, line 2, attributes: "),
        ("type: a\nattributes:\n  cohort: x\n  cohort: y\n", "Y, line 4, cohort: the key is"),
    ],
)
def test_what_is_no_cohort_is_refused(tmp_path: Path, text: str, said: str) -> None:
    assert refusals(tmp_path, text)[0].startswith(said)


def test_a_missing_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"gone\.yaml: cannot be read"):
        load_config(tmp_path / "gone.yaml")


def test_cohorts_of_all_folders_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = write(tmp_path / "one", GOOD.format(name="first"))
    two = write(tmp_path / "many" / "two", GOOD.format(name="second"))
    broken = write(tmp_path / "many" / "three", "type: [")
    folders = [str(tmp_path / "one"), "", str(tmp_path / "many")]
    monkeypatch.setenv("MM_COHORTS", os.pathsep.join(folders))
    found = find_cohorts()
    assert found.pop("demo").parts[-4:] == ("mm_assets", "defs", "demo", "defs.yaml")
    assert found == {"first": one, "second": two, "three": broken}


def test_a_name_twice_and_a_missing_folder_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "one", GOOD.format(name="same"))
    write(tmp_path / "two", GOOD.format(name="same"))
    gone = tmp_path / "gone"
    monkeypatch.setenv("MM_COHORTS", f"{tmp_path}{os.pathsep}{gone}{os.pathsep}{tmp_path}")
    with pytest.raises(CohortError) as caught:
        find_cohorts()
    said = [str(problem) for problem in caught.value.problems]
    assert len(said) == 2
    assert f"no such folder: {gone}" in said[0]
    assert "'same' is also defined in" in said[1]
