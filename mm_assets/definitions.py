"""The code location: every cohort's graph and the resources they share."""

import dagster as dg

from mm_assets.assets.automation import eager_sensor
from mm_assets.cohort.loading import find_cohorts
from mm_assets.component import CohortComponent
from mm_assets.resources.engine import step_executor
from mm_assets.resources.home import default_resources


@dg.definitions
def defs() -> dg.Definitions:
    """All cohorts of the package and of the folders in `MM_COHORTS`."""
    cohorts = [CohortComponent.from_file(path) for path in find_cohorts().values()]
    return dg.Definitions.merge(
        *(cohort.definitions() for cohort in cohorts),
        dg.Definitions(
            resources=default_resources(),
            sensors=[eager_sensor()],
            executor=step_executor(),
        ),
    )
