"""The pictures show what the truth says."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from shapely import contains_xy
from shapely.geometry import MultiPolygon

from mm_assets.synthetic.artefacts import PEN_COLOURS
from mm_assets.synthetic.oddities import SlidePlan, plan_slides
from mm_assets.synthetic.slides import write_slide
from mm_assets.synthetic.truth import SlideTruth, read_slide_plans, read_slide_truth

PLAN = SlidePlan("S", patient=0, section=0, state="good")


def draw(
    tmp_path: Path, plan: SlidePlan = PLAN, latent: float = 0.0, site: int = 0
) -> tuple[np.ndarray, SlideTruth]:
    path = tmp_path / "slide.tiff"
    truth = write_slide(path, plan, latent, site, seed=0, slides_px=(1100, 1300))
    return tifffile.imread(path, level=0), truth


def mask(shape: tuple[int, ...], polygons: MultiPolygon) -> np.ndarray:
    filled = np.zeros(shape[:2], np.uint8)
    for part in polygons.geoms:
        cv2.fillPoly(filled, [np.round(part.exterior.coords).astype(np.int32)], 1)
    return filled.astype(bool)


def grown(region: np.ndarray, pixels: int) -> np.ndarray:
    kernel = np.ones((2 * pixels + 1, 2 * pixels + 1), np.uint8)
    return cv2.dilate(region.astype(np.uint8), kernel).astype(bool)


def test_truth_agrees_with_the_picture(demo: Path) -> None:
    for slide_id in read_slide_plans(demo).query("state == 'good'").index:
        image = tifffile.imread(demo / "slides" / f"{slide_id}.tiff", level=0)
        truth = read_slide_truth(demo, slide_id)
        red = image[..., 0].astype(int)  # haematoxylin absorbs red, eosin hardly does
        tissue, lesions = mask(image.shape, truth.tissue), mask(image.shape, truth.lesions)
        x, y = (truth.nuclei[axis].round().astype(int) for axis in "xy")
        beyond = (truth.nuclei["radius"] * 1.9 + 4).round().astype(int)
        outside = np.clip(x + beyond, 0, image.shape[1] - 1)
        assert (red[y, x] < red[y, outside]).mean() > 0.75
        assert red[y, x].mean() < red[tissue].mean() - 30
        assert np.ptp(image[tissue], axis=1).mean() > 30
        assert np.ptp(image[~grown(tissue, 30)], axis=1).mean() < 25
        assert red[lesions].mean() < red[tissue & ~lesions].mean()


def test_lesions_lie_in_the_tissue_and_hold_the_tumour_nuclei(demo: Path) -> None:
    for slide_id in read_slide_plans(demo).query("state == 'good'").index:
        truth = read_slide_truth(demo, slide_id)
        assert truth.tissue.buffer(1).contains(truth.lesions)
        assert 0.15 < truth.lesions.area / truth.tissue.area < 0.65
        tumour = truth.nuclei[truth.nuclei["in_lesion"]]
        assert contains_xy(truth.lesions, tumour["x"], tumour["y"]).all()
        assert contains_xy(truth.tissue, truth.nuclei["x"], truth.nuclei["y"]).all()
        assert 0.2 < len(tumour) / len(truth.nuclei) < 0.98


def test_unreadable_and_blank_slides_have_no_truth(demo: Path) -> None:
    for slide_id in read_slide_plans(demo).query("state in ['truncated', 'blank']").index:
        truth = read_slide_truth(demo, slide_id)
        assert truth.tissue.is_empty
        assert truth.lesions.is_empty
        assert truth.nuclei.empty


def test_latent_shows_in_lesions_only_and_more_than_the_site(tmp_path: Path) -> None:
    def grey(latent: float, site: int) -> tuple[float, float]:
        image, truth = draw(tmp_path, latent=latent, site=site)
        tissue, lesions = mask(image.shape, truth.tissue), mask(image.shape, truth.lesions)
        healthy = ~grown(~tissue, 30) & ~grown(lesions, 45)
        return image[lesions].mean(), image[healthy].mean()

    by_latent = np.array([grey(latent, site=0) for latent in (-1.5, 0, 1.5)])
    by_site = np.array([grey(0, site=site) for site in range(6)])
    in_lesion, outside = by_latent.T
    assert in_lesion[0] > in_lesion[1] > in_lesion[2]
    assert np.ptp(in_lesion) > 2 * np.ptp(outside)
    assert np.ptp(in_lesion) > np.ptp(by_site[:, 0])
    assert np.ptp(by_site[:, 1]) > 3


def test_latent_shows_in_nuclei(tmp_path: Path) -> None:
    radius, count = [], []
    for latent in (-1.5, 1.5):
        _, truth = draw(tmp_path, latent=latent)
        tumour = truth.nuclei[truth.nuclei["in_lesion"]]
        radius.append(tumour["radius"].median())
        count.append(len(tumour) / truth.lesions.area)
    assert radius[1] > 1.4 * radius[0]
    assert count[1] > count[0]


@pytest.mark.parametrize("colour", PEN_COLOURS)
def test_pen_marks_the_slide(tmp_path: Path, colour: str) -> None:
    clean, _ = draw(tmp_path)
    marked, _ = draw(tmp_path, replace(PLAN, pen=colour))
    touched = np.abs(marked.astype(int) - clean).max(axis=2) > 60
    assert 0.002 < touched.mean() < 0.05
    assert np.abs(np.median(marked[touched], axis=0) - PEN_COLOURS[colour]).max() < 45


def test_fold_is_dark_and_blur_is_blurred(tmp_path: Path) -> None:
    clean, _ = draw(tmp_path)
    folded, _ = draw(tmp_path, replace(PLAN, folded=True))
    darker = clean.astype(int).mean(axis=2) - folded.mean(axis=2) > 25
    assert 0.001 < darker.mean() < 0.1
    blurred, _ = draw(tmp_path, replace(PLAN, blurred=True))
    changed = cv2.GaussianBlur(np.abs(blurred.astype(np.float32) - clean).mean(2), (0, 0), 15) > 3
    assert 0.01 < changed.mean() < 0.5
    sharpness = [np.abs(cv2.Laplacian(im, cv2.CV_32F))[changed].mean() for im in (clean, blurred)]
    assert sharpness[1] < 0.5 * sharpness[0]


def test_default_cohort_has_the_promised_slides() -> None:
    plans = plan_slides([f"DEMO-{number:04d}" for number in range(120)], oddities=True)
    assert len(plans) == 130
    assert {plan.pen for plan in plans} == {None, *PEN_COLOURS}
    assert any(plan.folded for plan in plans)
    assert any(plan.blurred for plan in plans)
    assert len({plan.slide_id for plan in plans}) == 130
