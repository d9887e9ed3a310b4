"""Tiny cohorts for tests: small painted slides, tables and the YAML."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import dagster as dg
import numpy as np
import pandas as pd
import tifffile
import yaml

from mm_assets.synthetic.tiff import write_pyramid
from mm_assets_tests.daemon import environment

SIDE = 640


def paint_slide(path: Path, seed: int, side: int = SIDE) -> None:
    """A slide with one square of pink, textured, nucleated tissue."""
    rng = np.random.default_rng(seed)
    image = np.full((side, side, 3), 242, np.uint8)
    inside = slice(32, side - 32)
    shape = image[inside, inside].shape
    tissue = np.array([214, 140, 180]) + rng.normal(0, 9, shape)
    dark = rng.random(shape[:2]) < 0.03
    grown = np.logical_or.reduce(
        [np.roll(dark, (dy, dx), (0, 1)) for dy in range(-2, 3) for dx in range(-2, 3)]
    )
    tissue[grown] = np.array([92, 60, 140]) + rng.normal(0, 9, (int(grown.sum()), 3))
    image[inside, inside] = np.clip(tissue, 0, 255).astype(np.uint8)
    write_pyramid(path, image, mpp=0.5)


def spoil_corner(path: Path) -> None:
    """Zero the first compressed tile of level 0: the file opens, but not all of it decodes."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        offset, count = page.dataoffsets[0], page.databytecounts[0]
    with path.open("r+b") as handle:
        handle.seek(offset)
        handle.write(bytes(count))


def truncate(path: Path) -> None:
    """Cut the file in the middle, as an interrupted copy does."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def patient_ids(count: int) -> list[str]:
    """P000, P001 and so on."""
    return [f"P{i:03d}" for i in range(count)]


def slide_name(patient: str) -> str:
    """File name of a patient's slide; its stem is the slide id."""
    return f"{patient}-S1.tiff"


def write_tables(folder: Path, patients: Sequence[str], seed: int = 0) -> None:
    """Clinical table and a wide omics table in which one gene carries the outcome."""
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=len(patients))
    hazard = np.exp(1.2 * signal)
    time = rng.exponential(30 / hazard) + 0.5
    censoring = rng.exponential(60, len(patients)) + 0.5
    clinical = pd.DataFrame(
        {
            "patient_id": patients,
            "age": rng.integers(35, 85, len(patients)),
            "sex": rng.choice(["F", "M"], len(patients)),
            "site": [f"site{i % 4}" for i in range(len(patients))],
            "subtype": np.where(signal + rng.normal(0, 0.5, len(patients)) > 0, "ILC", "IDC"),
            "survival_months": np.minimum(time, censoring).round(3),
            "event": (time <= censoring).astype(int),
        }
    )
    clinical.to_csv(folder / "clinical.csv", index=False)
    genes = {f"G{i}_rnaseq": rng.normal(size=len(patients)) for i in range(20)}
    genes["G0_rnaseq"] = signal + rng.normal(0, 0.3, len(patients))
    genes["G1_cnv"] = rng.integers(-2, 3, len(patients))
    genes["G2_mut"] = rng.integers(0, 2, len(patients))
    pd.DataFrame({"case_id": patients, **genes}).to_csv(folder / "omics.csv", index=False)


def write_yaml(folder: Path, cohort: str = "tiny", **sections: object) -> Path:
    """The cohort's defs.yaml; `sections` replace or, when None, remove attributes."""
    attributes: dict[str, object] = {
        "cohort": cohort,
        "slides": {"root": "slides", "patient_pattern": r"^(P\d+)"},
        "clinical": {"table": "clinical.csv"},
        "omics": {"kind": "wide", "path": "omics.csv"},
        "imaging": {"weights": "random:0"},
        "tasks": [
            {
                "name": "subtype",
                "kind": "classification",
                "column": "subtype",
                "classes": ["IDC", "ILC"],
            },
            {
                "name": "survival",
                "kind": "survival",
                "time": "survival_months",
                "event": "event",
                "horizons": [12.0, 24.0],
            },
        ],
        "evaluation": {"folds": 2, "bootstrap": 100},
        **sections,
    }
    kept = {key: value for key, value in attributes.items() if value is not None}
    path = folder / "defs.yaml"
    path.write_text(
        yaml.safe_dump({"type": "mm_assets.CohortComponent", "attributes": kept}, sort_keys=False)
    )
    return path


def make_cohort(
    folder: Path,
    patients: int,
    slides: int | None = None,
    slides_config: dict[str, object] | None = None,
    **sections: object,
) -> Path:
    """A complete cohort: tables for `patients`, slides for the first `slides` of them."""
    if slides_config:
        sections = {"slides": slides_config, **sections}
    (folder / "slides").mkdir(parents=True)
    names = patient_ids(patients)
    write_tables(folder, names)
    for seed, patient in enumerate(names[: patients if slides is None else slides]):
        paint_slide(folder / "slides" / slide_name(patient), seed)
    return write_yaml(folder, **sections)


def quarantine_list(instance: dg.DagsterInstance) -> dict[str, str]:
    """Slide -> reason, as the web UI shows it on the quarantine asset."""
    event = instance.get_latest_materialization_event(dg.AssetKey(["tiny", "quarantine"]))
    if event is None or event.asset_materialization is None:
        return {}
    table = event.asset_materialization.metadata.get("quarantine")
    if not isinstance(table, dg.TableMetadataValue):
        return {}
    return {str(r.data["slide"]): str(r.data["reason"]) for r in table.records}


class Cohort:
    """A cohort with a home of its own, worked on through the command line."""

    def __init__(self, yaml: Path, home: Path) -> None:
        self.yaml, self.home = yaml, home
        self.environment = environment(home, yaml.parent.parent)

    def mm(self, *arguments: str, expect: int = 0) -> str:
        """Run `mm`; its standard output."""
        done = subprocess.run(
            [sys.executable, "-m", "mm_assets", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout if expect == 0 else done.stdout + done.stderr

    def killed_materialize(self, *assets: str, when: Callable[[], object]) -> None:
        """Materialize assets in a process that gets kill -9, with its children, at a moment."""
        options = [part for asset in assets for part in ("--select", asset)]
        with subprocess.Popen(
            [sys.executable, "-m", "mm_assets", "materialize", str(self.yaml), *options],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            while not when():
                assert process.poll() is None
                time.sleep(0.02)
            os.killpg(process.pid, signal.SIGKILL)
