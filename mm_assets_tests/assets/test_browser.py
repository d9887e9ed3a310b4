"""The web UI in a real browser: the lineage page, and one slide materialized by clicking."""

import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest

from mm_assets_tests.cohorts import make_cohort
from mm_assets_tests.daemon import environment, free_port, running_daemon, wait_for

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def webserver(home: Path, cohorts: Path, port: int) -> Iterator[str]:
    """Dagster's webserver on a port of its own; yields its address."""
    command = [sys.executable, "-m", "dagster_webserver", "-m", "mm_assets.definitions"]
    process = subprocess.Popen(
        [*command, "-h", "127.0.0.1", "-p", str(port)],
        env=environment(home, cohorts),
        stdout=(home / "webserver.log").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        log = home / "webserver.log"
        wait_for("the web server", lambda: _answers(address), 90, log, process.pid)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=30)


def _answers(address: str) -> bool:
    with urllib.request.urlopen(f"{address}/server_info", timeout=10) as reply:
        return bool(reply.status == 200)


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_lineage_page_and_one_slide_by_clicking(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from playwright.sync_api import sync_playwright

    from mm_assets.assets.intake import take_in
    from mm_assets.cli import workspace
    from mm_assets.resources.home import dagster_instance

    cohorts = tmp_path / "cohorts"
    yaml = make_cohort(cohorts / "tiny", patients=8, slides=3)
    monkeypatch.setenv("MM_COHORTS", str(cohorts))
    space = workspace(str(yaml))
    pictures = Path(os.environ.get("MM_SCREENSHOTS", tmp_path))
    with dagster_instance() as instance:
        take_in(space, instance)
        port = free_port()
        with (
            running_daemon(home, cohorts) as log,
            webserver(home, cohorts, port) as address,
            sync_playwright() as play,
        ):
            browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            page = browser.new_page(viewport={"width": 1600, "height": 1000})
            page.goto(
                f"{address}/locations/mm_assets.definitions/asset-groups/tiny_imaging/lineage"
            )
            for asset in ("slide", "tissue", "tile_embeddings", "quarantine"):
                page.get_by_text(asset, exact=True).first.wait_for(timeout=60_000)
            page.screenshot(path=pictures / "lineage.png")

            page.goto(f"{address}/assets/tiny/slide")
            page.get_by_role("button", name="Materialize").first.click()
            dialog = page.get_by_role("dialog")
            dialog.wait_for()
            page.screenshot(path=pictures / "dialog.png")
            dialog.get_by_text("Select a partition or create one").click()
            page.locator("text=P001-S1 >> visible=true").first.click()
            page.keyboard.press("Escape")
            page.screenshot(path=pictures / "chosen.png")
            dialog.get_by_role("button", name="Launch").click()
            wait_for("the slide", lambda: _materialized(instance), 120, log)
            browser.close()
        assert _materialized(instance) == {"P001-S1"}


def _materialized(instance: dg.DagsterInstance) -> set[str]:
    return set(instance.get_materialized_partitions(dg.AssetKey(["tiny", "slide"])))
