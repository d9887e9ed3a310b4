"""Where only synthetic data may be, everything else is refused."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from mm_assets.cohort.check import SYNTHETIC_ONLY, check_cohort
from mm_assets.cohort.config import CohortConfig
from mm_assets.cohort.loading import load_config
from mm_assets.cohort.problems import CohortError
from mm_assets.component import CohortComponent
from mm_assets_tests.cohorts import make_cohort

DEFINITION = Path(__file__).parents[2] / "mm_assets" / "defs" / "demo" / "defs.yaml"


@pytest.fixture
def copy(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the small demo cohort where its definition looks for it; only such may be used."""
    monkeypatch.setenv("MM_HOME", str(tmp_path))
    monkeypatch.setenv(SYNTHETIC_ONLY, "1")
    root = yaml.safe_load(DEFINITION.read_text())["attributes"]["slides"]["root"]
    folder = Path(root.replace("${MM_HOME}", str(tmp_path))).parent
    shutil.copytree(demo, folder)
    return folder


def errors(config: CohortConfig) -> list[str]:
    """Keys at which something may not be used here."""
    return [p.where for p in check_cohort(config) if SYNTHETIC_ONLY in p.fix]


def test_the_demo_cohort_may_be_used(copy: Path) -> None:
    assert errors(load_config(DEFINITION)) == []


def test_a_patient_among_synthetic_ones_is_noticed(copy: Path) -> None:
    table = pd.read_csv(copy / "clinical.csv")
    table.loc[0, "age"] += 1
    table.to_csv(copy / "clinical.csv", index=False)
    (copy / "omics" / "data_extra.txt").write_text("real")
    assert errors(load_config(DEFINITION)) == ["clinical.table", "omics.path"]


def test_other_slides_are_noticed(copy: Path) -> None:
    config = load_config(DEFINITION)
    assert config.slides
    with (copy / "slides.csv").open("a") as manifest:
        manifest.write("real,P1,real.tiff,A,\n")
    assert errors(config) == ["slides.manifest"]
    unlisted = config.slides.model_copy(update={"manifest": None})
    assert errors(config.model_copy(update={"slides": unlisted})) == ["slides.manifest"]


def test_another_cohort_makes_no_assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    component = CohortComponent.from_file(make_cohort(tmp_path, 12, slides=0))
    assert component.definitions()
    monkeypatch.setenv(SYNTHETIC_ONLY, "1")
    with pytest.raises(CohortError, match=r"clinical\.table: there is no demo\.json"):
        component.definitions()
