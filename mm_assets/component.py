"""CohortComponent: one YAML file becomes the whole asset graph of a cohort."""

from pathlib import Path

import dagster as dg
from pydantic import BaseModel

from mm_assets.assets.automation import cohort_sensors, eager
from mm_assets.assets.cohort_level import cohort_asset
from mm_assets.assets.graph import check_compute, cohort_stages
from mm_assets.assets.intake import quarantine_spec
from mm_assets.assets.slide_asset import slide_asset
from mm_assets.assets.stage import CohortStage, SlideStage
from mm_assets.cohort.check import check_cohort
from mm_assets.cohort.config import CohortConfig
from mm_assets.cohort.loading import load_config
from mm_assets.cohort.problems import refuse_errors


class CohortComponent(dg.Component):
    """A cohort: its slides, tables, tasks and how results are evaluated.

    The attributes are those of `mm_assets.cohort.config.CohortConfig`. A cohort may lack slides
    or omics: the graph then has only the assets that make sense.

    Raises
    ------
    CohortError
        On building the definitions, with every problem of the YAML and of the tables.
    """

    def __init__(self, config: CohortConfig) -> None:
        self.config = config

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """The YAML schema."""
        return CohortConfig

    @classmethod
    def load(
        cls, attributes: BaseModel | None, context: dg.ComponentLoadContext
    ) -> "CohortComponent":
        """Build from attributes that Dagster has read from a component YAML."""
        assert isinstance(attributes, CohortConfig)
        return cls(attributes.resolve_paths(Path(context.path)))

    @classmethod
    def from_file(cls, path: Path) -> "CohortComponent":
        """Build from a cohort's `defs.yaml`; problems name file, key and line."""
        return cls(load_config(path))

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The cohort's definitions, for a project of components."""
        return self.definitions()

    def definitions(self) -> dg.Definitions:
        """The cohort's assets, checks and sensors."""
        if self.config.absent:
            return dg.Definitions()
        refuse_errors([*check_compute(self.config), *check_cohort(self.config)])
        stages = cohort_stages(self.config)
        assets: list[dg.AssetsDefinition | dg.AssetSpec] = []
        for ordinal, stage in enumerate(stages):
            at_once = self.config.refresh.sensor and not stage.on_refresh
            automation = eager() if at_once else None
            if isinstance(stage, SlideStage):
                assets.append(slide_asset(self.config, stage, ordinal, automation))
            elif isinstance(stage, CohortStage):
                assets.append(cohort_asset(self.config, stage, automation))
        if self.config.slides:
            assets.append(quarantine_spec(self.config))
        return dg.Definitions(assets=assets, sensors=cohort_sensors(self.config, stages))
