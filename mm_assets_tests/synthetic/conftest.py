"""A small demo cohort with every oddity, made once."""

from pathlib import Path

import pytest

from mm_assets.synthetic.cohort import create_demo_cohort

SMALL = {"patients": 9, "seed": 3, "slides_px": (700, 900)}


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a cohort of nine patients."""
    out = tmp_path_factory.mktemp("demo") / "cohort"
    create_demo_cohort(out, **SMALL)
    return out
