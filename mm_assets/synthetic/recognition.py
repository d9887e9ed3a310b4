"""Whether a cohort's inputs are what the generator writes, by writing them again."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mm_assets.cohort.config import CohortConfig
from mm_assets.synthetic.cohort import GENERATOR_VERSION, MARKER, write_tables


def foreign_inputs(config: CohortConfig) -> dict[str, str]:
    """Inputs of a cohort that the generator did not write: key of the YAML -> what is wrong.

    Tables are compared byte by byte with what the generator makes of the parameters in the folder
    of the clinical table. Slides are those of the manifest; their pixels are not compared.
    """
    marker = Path(config.clinical.table).parent / MARKER
    if not marker.is_file():
        return {"clinical.table": f"there is no {MARKER} of a synthetic cohort beside it"}
    made = json.loads(marker.read_text())
    if made["generator"] != GENERATOR_VERSION:
        return {"clinical.table": f"written by version {made['generator']} of the generator"}
    with tempfile.TemporaryDirectory() as name:
        expected = Path(name)
        write_tables(expected, made["patients"], made["seed"], made["oddities"])
        return dict(_differences(config, expected))


def _differences(config: CohortConfig, expected: Path) -> Iterator[tuple[str, str]]:
    compared = {"clinical.table": (config.clinical.table, expected / "clinical.csv")}
    if config.slides:
        if config.slides.manifest is None:
            yield "slides.manifest", "slides without a manifest may be anybody's"
        else:
            compared["slides.manifest"] = (config.slides.manifest, expected / "slides.csv")
    if config.omics:
        compared["omics.path"] = (config.omics.path, expected / "omics")
    for key, (given, written) in compared.items():
        if _content(Path(given)) != _content(written):
            yield key, f"{given} is not what the generator writes"


def _content(path: Path) -> dict[str, bytes]:
    """Files of a folder, or the file itself, by name below it."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}
