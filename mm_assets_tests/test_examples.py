"""Examples of docstrings do what they say."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "mm_assets"
MARK = ">>> "
WITH_EXAMPLES = sorted(file for file in PACKAGE.rglob("*.py") if MARK in file.read_text("utf-8"))


@pytest.mark.parametrize("file", WITH_EXAMPLES, ids=lambda file: file.stem)
def test_examples(file: Path) -> None:
    module = ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
    done = doctest.testmod(import_module(module))
    assert done.attempted == file.read_text("utf-8").count(MARK)
    assert not done.failed
