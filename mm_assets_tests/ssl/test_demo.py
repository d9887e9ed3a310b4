"""The small setting on a whole synthetic cohort: the network learns, and what it learns helps."""

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
def test_pretraining_beats_random_weights_on_sites_it_was_not_probed_on(tmp_path: Path) -> None:
    create_demo_cohort(tmp_path / "demo", seed=3)
    tiles = read_cohort(tmp_path / "demo")
    networks = dict(zip((BEFORE, AFTER), pretrain(tiles, tmp_path), strict=True))
    encoders = {name: load_encoder("hipt", str(path)) for name, path in networks.items()}
    draws = {
        name: probe_draws(tiles, probe(tiles, embed(tiles, encoder)))
        for name, encoder in encoders.items()
    }
    low, _ = show("linear probe, AUROC", draws)
    assert low > 0
