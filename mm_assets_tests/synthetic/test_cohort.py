import hashlib
import json
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import pytest

from mm_assets.cohort.problems import CohortError
from mm_assets.synthetic import cohort as generator
from mm_assets.synthetic.cohort import create_demo_cohort, demo_is_complete
from mm_assets.synthetic.truth import read_latents, read_slide_plans
from mm_assets_tests.synthetic.conftest import SMALL


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_same_parameters_give_the_same_bytes(demo: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    create_demo_cohort(tmp_path / "again", **SMALL, progress=lambda *step: steps.append(step))
    assert digests(tmp_path / "again") == digests(demo)
    slides = len(list((demo / "slides").iterdir()))
    assert steps == [(done, slides) for done in range(1, slides + 1)]


def test_smaller_cohort_is_the_beginning_of_a_larger_one(demo: Path, tmp_path: Path) -> None:
    create_demo_cohort(tmp_path / "small", **{**SMALL, "patients": 3})
    small, large = digests(tmp_path / "small"), digests(demo)
    slides = [name for name in small if name.startswith(("slides/", "truth/nuclei/"))]
    assert len(slides) == 12
    assert all(small[name] == large[name] for name in slides)


def test_complete_cohort_is_left_alone(demo: Path) -> None:
    assert demo_is_complete(demo, **SMALL)
    assert not demo_is_complete(demo, **{**SMALL, "seed": 4})
    before = (demo / "slides.csv").stat().st_mtime_ns
    create_demo_cohort(demo, **SMALL, progress=lambda *_: pytest.fail("made a slide again"))
    assert (demo / "slides.csv").stat().st_mtime_ns == before


def test_other_parameters_replace_the_cohort(tmp_path: Path) -> None:
    out = tmp_path / "cohort"
    create_demo_cohort(out, patients=2, slides_px=(600, 700), oddities=False)
    create_demo_cohort(out, patients=1, slides_px=(600, 700), oddities=False)
    assert [path.name for path in (out / "slides").iterdir()] == ["DEMO-0000-S1.tiff"]
    assert list(tmp_path.iterdir()) == [out]


def test_interrupted_cohort_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create_demo_cohort(
            tmp_path / "cohort", patients=3, slides_px=(600, 700), progress=interrupt
        )
    assert list(tmp_path.iterdir()) == []


def test_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("years of work")
    with pytest.raises(CohortError, match="not a demo cohort"):
        create_demo_cohort(tmp_path, patients=1)
    assert (tmp_path / "thesis.doc").read_text() == "years of work"


def test_new_generator_makes_cohorts_anew(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "GENERATOR_VERSION", 0)
    assert not demo_is_complete(demo, **SMALL)


def test_tables_hold_what_real_cohorts_hold(demo: Path) -> None:
    clinical = pd.read_csv(demo / "clinical.csv", index_col="patient_id")
    manifest = pd.read_csv(demo / "slides.csv")
    samples = pd.read_csv(demo / "omics" / "data_clinical_sample.txt", sep="\t", comment="#")
    assert len(clinical) == 9
    assert clinical.index[clinical["age"].isna()].tolist() == ["DEMO-0007"]
    endpoints = clinical[["subtype", "survival_months", "event"]].isna()
    assert clinical.index[endpoints.all(axis=1)].tolist() == ["DEMO-0006"]
    assert endpoints.to_numpy().sum() == 3
    assert set(clinical.index) - set(samples["PATIENT_ID"]) == {"DEMO-0005"}
    several = manifest["patient_id"].value_counts()
    assert several[several > 1].to_dict() == {"DEMO-0002": 3, "DEMO-0000": 2}
    assert set(manifest["path"]) == {path.name for path in (demo / "slides").iterdir()}
    assert manifest["mpp"].isna().all()


def test_bad_slides_are_bad_in_their_own_way(demo: Path) -> None:
    states = read_slide_plans(demo)["state"]
    assert states.value_counts().to_dict() == {"good": 9, "truncated": 1, "blank": 1, "no_mpp": 1}
    for slide_id, state in states.items():
        path = demo / "slides" / f"{slide_id}.tiff"
        if state == "truncated":
            with pytest.raises(openslide.OpenSlideError):
                _pixels(path)
            continue
        with openslide.OpenSlide(path) as slide:
            assert slide.level_count >= 2
            assert slide.properties.get("openslide.mpp-x") == (None if state == "no_mpp" else "0.5")
        assert (_pixels(path).std(axis=(0, 1)).max() < 1) == (state == "blank")


def test_oddities_can_be_left_out(tmp_path: Path) -> None:
    out = tmp_path / "cohort"
    create_demo_cohort(out, patients=8, slides_px=(600, 700), oddities=False)
    assert set(read_slide_plans(out)["state"]) == {"good"}
    clinical = pd.read_csv(out / "clinical.csv")
    assert not clinical.isna().to_numpy().any()
    assert len(pd.read_csv(out / "slides.csv")) == 8


def test_attainable_is_that_of_the_true_risk(demo: Path) -> None:
    from lifelines.utils import concordance_index

    attainable = json.loads((demo / "attainable.json").read_text())
    clinical = pd.read_csv(demo / "clinical.csv", index_col="patient_id").drop("DEMO-0006")
    risk = read_latents(demo).loc[clinical.index, "risk"]
    expected = concordance_index(clinical["survival_months"], -risk, clinical["event"])
    assert attainable["survival"]["metric"] == "c_index"
    assert attainable["survival"]["value"] == pytest.approx(expected, abs=1e-4)
    assert "8 patients" in attainable["survival"]["note"]


def _pixels(path: Path) -> np.ndarray:
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[..., :3]
