"""The small setting on a whole synthetic cohort."""

from pathlib import Path

import pytest

from mm_assets.encoders.registry import load_encoder
from mm_assets.synthetic.cohort import create_demo_cohort
from mm_assets_tests.benchmarks.ssl_probe import (
    AFTER,
    BEFORE,
    embed,
    pretrain,
    probe,
    probe_draws,
    read_cohort,
    show,
)


@pytest.mark.stress
@pytest.mark.timeout(2400)
def test_pretraining_keeps_what_tells_lesions_apart(tmp_path: Path) -> None:
    """By a linear probe on other sites; that it adds to random weights has not been shown."""
    create_demo_cohort(tmp_path / "demo", seed=3)
    tiles = read_cohort(tmp_path / "demo")
    networks = dict(zip((BEFORE, AFTER), pretrain(tiles, tmp_path), strict=True))
    encoders = {name: load_encoder("hipt", str(path)) for name, path in networks.items()}
    draws = {
        name: probe_draws(tiles, probe(tiles, embed(tiles, encoder)))
        for name, encoder in encoders.items()
    }
    low, _ = show("linear probe, AUROC", draws)
    assert low > -0.01
    assert draws[AFTER][0] > 0.95
