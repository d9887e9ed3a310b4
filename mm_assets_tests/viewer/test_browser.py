"""The viewer in a real browser: evidence lies on the pixels it speaks of, at every zoom."""

import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mm_assets_tests.assets.test_browser import CHROMIUM, FLAGS
from mm_assets_tests.viewer.conftest import RED, SLIDE, SQUARE
from mm_assets_tests.viewer.server import running_viewer

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
PLACE = f'main [data-place="tile:{SQUARE[0]}:{SQUARE[1]}"]'


@pytest.fixture(scope="module")
def page(cohort: tuple[Path, Path]) -> Iterator[tuple[Any, str]]:
    from playwright.sync_api import sync_playwright

    with running_viewer(*cohort) as port, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        opened = browser.new_page(viewport={"width": 1300, "height": 800})
        errors: list[str] = []
        opened.on("pageerror", lambda error: errors.append(str(error)))
        yield opened, f"http://127.0.0.1:{port}"
        browser.close()
        assert not errors


def _screenshot(page: Any, name: str, tmp_path: Path) -> np.ndarray:
    data = page.screenshot()
    folder = Path(os.environ.get("MM_SCREENSHOTS", tmp_path))
    (folder / f"{name}.png").write_bytes(data)
    return np.asarray(Image.open(BytesIO(data)).convert("RGB")).astype(int)


def _red_box(picture: np.ndarray) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of what has the square's colour, within the slide's part."""
    red = (np.abs(picture - RED).max(axis=2) < 12)[:, :870]
    rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


@pytest.mark.parametrize("zoom", [0.5, 1.0, 3.0])
def test_the_overlay_lies_on_the_square(page: tuple[Any, str], zoom: float, tmp_path: Path) -> None:
    tab, address = page
    tab.goto(f"{address}/tiny/slides/{SLIDE}?show=evidence_subtype")
    tab.wait_for_selector(PLACE)
    x, y, edge = SQUARE
    centre = f"viewer.viewport.imageToViewportCoordinates({x + edge / 2}, {y + edge / 2})"
    tab.evaluate(f"viewer.viewport.zoomTo(viewer.viewport.imageToViewportZoom({zoom}), null, true)")
    tab.evaluate(f"viewer.viewport.panTo({centre}, true)")
    tab.wait_for_function("() => viewer.world.getItemAt(0).getFullyLoaded()")
    tab.wait_for_timeout(300)
    overlay = tab.locator(PLACE).bounding_box()
    # Borders hide the square's own edge.
    tab.add_style_tag(content=".place { border: 0 !important } .place b { display: none }")
    shown = _red_box(_screenshot(tab, f"viewer-zoom-{zoom}", tmp_path))
    lies = (
        overlay["x"],
        overlay["y"],
        overlay["x"] + overlay["width"],
        overlay["y"] + overlay["height"],
    )
    assert overlay["width"] == pytest.approx(edge * zoom, abs=1)
    assert shown == pytest.approx(lies, abs=2)


def test_a_feature_is_flown_to_and_judged(page: tuple[Any, str], tmp_path: Path) -> None:
    tab, address = page
    tab.goto(address)
    tab.get_by_role("link", name="0.850 towards ILC").click()
    tab.wait_for_selector(PLACE)
    assert tab.locator("#omics li").inner_text().startswith("TP53_mut")
    assert "missing" in tab.locator("#clinical li").inner_text()
    assert "no forecast" in tab.locator("#prediction").inner_text()
    assert tab.get_by_role("link", name="tile:max:0009 on P000-S2").count() == 1
    tab.get_by_role("button", name="tile:max:0007").click()
    tab.wait_for_timeout(1500)
    zoom = tab.evaluate("viewer.viewport.viewportToImageZoom(viewer.viewport.getZoom())")
    assert 0.7 < zoom < 1.6
    centre = "viewer.viewport.viewportToImageCoordinates(viewer.viewport.getCenter())"
    middle = [tab.evaluate(f"{centre}.{axis}") for axis in "xy"]
    assert middle == pytest.approx([SQUARE[0] + 128, SQUARE[1] + 128], abs=3)
    row = tab.locator("#imaging li").first
    row.locator("summary").click()
    tab.locator("#user").fill("Dr Ana")
    row.get_by_label("Comment").fill("mitoses")
    row.get_by_role("button", name="disagree").click()
    tab.get_by_text("Recorded.").wait_for()
    assert "Dr Ana" in row.inner_text()
    _screenshot(tab, "viewer-judged", tmp_path)
    tab.reload()
    tab.wait_for_selector(PLACE)
    assert "disagree mitoses" in tab.locator("#imaging li").first.inner_text()
    assert tab.locator("#user").input_value() == "Dr Ana"


def test_levels_are_shown_one_by_one(page: tuple[Any, str], tmp_path: Path) -> None:
    tab, address = page
    tab.goto(f"{address}/tiny/slides/{SLIDE}?show=evidence_subtype")
    tab.wait_for_selector(PLACE)
    assert tab.locator("main .place").count() == 4
    tab.locator("#level").select_option("patch")
    places = tab.locator("main .place")
    assert places.count() == 2
    assert places.locator("b").count() == 0
    assert tab.locator("#imaging ol > li").count() == 0
    centre = "viewer.viewport.imageToViewportCoordinates(272, 520)"
    tab.evaluate("viewer.viewport.zoomTo(viewer.viewport.imageToViewportZoom(8), null, true)")
    tab.evaluate(f"viewer.viewport.panTo({centre}, true)")
    tab.wait_for_function("() => viewer.world.getItemAt(0).getFullyLoaded()")
    tab.wait_for_timeout(300)
    picture = _screenshot(tab, "viewer-patches", tmp_path)
    tint = []
    for place in ("patch:256:512", "patch:272:512"):
        box = tab.locator(f'main [data-place="{place}"]').bounding_box()
        assert box["width"] == pytest.approx(16 * 8, abs=1)
        y, x = round(box["y"] + box["height"] / 2), round(box["x"] + box["width"] / 2)
        red, green, _ = picture[y, x]
        tint.append(red - green)
    assert tint[0] > tint[1] + 30 > 60
    tab.locator("#level").select_option("tile")
    assert tab.locator("main .place").count() == 2
    assert tab.locator("#imaging ol > li").count() == 2


def test_absent_evidence_is_explained(page: tuple[Any, str]) -> None:
    tab, address = page
    tab.goto(f"{address}/tiny/slides/{SLIDE}?show=evidence_survival")
    tab.get_by_text("Run `mm materialize tiny`").wait_for()
    tab.goto(f"{address}/tiny/slides/P001-S1")
    tab.get_by_text("the file is cut off").wait_for()
