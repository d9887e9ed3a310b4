"""The small setting on whole synthetic cohorts."""

from pathlib import Path

import numpy as np
import pytest

from mm_assets_tests.benchmarks.ssl_probe import AFTER, BEFORE, few_label_gain, show

SEEDS = (4, 5, 6, 7)  # no setting was chosen on them


@pytest.mark.stress
@pytest.mark.timeout(3600)
def test_pretraining_tells_lesions_apart_by_fewer_labels(tmp_path: Path) -> None:
    """By linear probes of 20 labels, mean of four cohorts: more labels leave nothing to gain."""
    studies = [few_label_gain(tmp_path, seed) for seed in SEEDS]
    means = {name: np.mean([s[name] for s in studies], axis=0) for name in (BEFORE, AFTER)}
    low, _ = show("mean of four cohorts, probe of 20 labels", means)
    assert low > 0
