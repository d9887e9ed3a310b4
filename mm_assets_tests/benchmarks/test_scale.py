"""What a slide costs beside its pixels, with Dagster's storage on a real PostgreSQL server."""

from pathlib import Path

import pytest

from mm_assets_tests.benchmarks.scale import assert_whole, growth, make_small_cohort, measure
from mm_assets_tests.cohorts import Cohort
from mm_assets_tests.postgres import find_programs, running_postgres

GOAL_MS = 50.0

pytestmark = pytest.mark.skipif(find_programs() is None, reason="PostgreSQL is not installed")


def test_events_of_a_small_cohort_on_postgresql(home: Path, tmp_path: Path) -> None:
    yaml = make_small_cohort(tmp_path / "cohorts" / "small", 12)
    with running_postgres() as postgres:
        postgres.configure(home / "dagster")
        Cohort(yaml, home).mm("materialize", str(yaml), "--select", "slide")
        assert_whole(postgres, 12, ["slide"])


@pytest.mark.stress
@pytest.mark.timeout(7200)
def test_a_thousand_slides() -> None:
    costs = [measure(count, ["slide", "tissue"]) for count in (100, 300, 1000)]
    assert costs[-1].overhead_ms + costs[-1].server_ms < GOAL_MS, costs
    assert growth(costs) < 1.5, costs  # quadratic would be 10
