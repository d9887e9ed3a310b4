"""The stages of a cohort, in the order in which they can run."""

import difflib
from collections.abc import Iterator, Sequence

from mm_assets.assets.attention import attention_stages
from mm_assets.assets.evidence import evidence_stage
from mm_assets.assets.extremum import extremum_stage
from mm_assets.assets.heec_settings import heec_settings_stages
from mm_assets.assets.hipt import hipt_stage, region_stage
from mm_assets.assets.hipt_attention import hipt_attention_stage
from mm_assets.assets.learning_curve import learning_curve_stages
from mm_assets.assets.models import model_stages
from mm_assets.assets.nuclei import nucleus_stage
from mm_assets.assets.nucleus_gnn import nucleus_gnn_stage
from mm_assets.assets.omics import CLINICAL, OMICS, table_stages, task_table_stages
from mm_assets.assets.porpoise import porpoise_stages
from mm_assets.assets.predictions import predictions_name, predictions_stage
from mm_assets.assets.reports import cohort_report_stage, evaluation_stage
from mm_assets.assets.selection import tile_scorer_stage
from mm_assets.assets.slides import slide_stage, tissue_stage
from mm_assets.assets.ssl import ssl_stages
from mm_assets.assets.stage import CohortStage, SlideStage, Stage
from mm_assets.assets.tiles import embedding_stage
from mm_assets.cohort.config import CohortConfig
from mm_assets.cohort.problems import Problem


def cohort_stages(config: CohortConfig) -> list[SlideStage | CohortStage]:
    """Every stage the cohort's inputs allow, upstream before downstream."""
    stages: list[SlideStage | CohortStage] = []
    if config.slides:
        stages += [slide_stage(config), tissue_stage(config), embedding_stage(config)]
    if config.slides and config.nuclei is not None:
        stages.append(nucleus_stage(config))
    stages += table_stages(config)
    for task in config.tasks:
        stages += task_table_stages(config, task)
    if config.slides and config.hipt is not None:
        stages += [*ssl_stages(config), region_stage(config)]
    models: dict[str, list[str]] = {}
    for task in config.tasks:
        if config.slides and config.nuclei is not None:
            stages.append(nucleus_gnn_stage(config, task))
        if config.slides:
            if config.selection.method != "none":
                stages.append(tile_scorer_stage(config, task))
            stages.append(extremum_stage(config, task))
        stages += heec_settings_stages(config, task)
        task_models = [*model_stages(config, task), *porpoise_stages(config, task)]
        if config.slides and config.hipt is not None:
            task_models.append(hipt_stage(config, task))
        stages += task_models
        models[task.name] = [stage.name for stage in task_models]
        stages += learning_curve_stages(config, task)
        evaluation = evaluation_stage(config, task, models[task.name])
        stages.append(evaluation)
        if task_models:
            stages.append(predictions_stage(config, task, evaluation.name))
        if config.slides:
            stages.append(evidence_stage(config, task, evaluation.name))
            stages += attention_stages(config, task, evaluation.name)
            if config.hipt is not None:
                stages.append(hipt_attention_stage(config, task, evaluation.name))
    stages.append(cohort_report_stage(config, models))
    return stages


def check_compute(config: CohortConfig) -> Iterator[Problem]:
    """Keys of `compute` that name no stage of the cohort."""
    makers = {asset: stage.name for stage in cohort_stages(config) for asset in stage.outputs}
    for key in config.compute:
        where, maker = f"compute.{key}", makers.get(key)
        if maker is None:
            close = difflib.get_close_matches(key, makers, 1)
            fix = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(makers)}"
            yield Problem(where, "the cohort has no asset of this name", fix)
        elif maker != key:
            yield Problem(where, f"it is made together with {maker}", f"use compute.{maker}")


def inference_assets(config: CohortConfig) -> list[str]:
    """Assets between new patients and their predictions and evidence; none of them is trained."""
    tables = {CLINICAL, OMICS, *map(predictions_name, config.tasks)}
    return [
        asset
        for stage in cohort_stages(config)
        if isinstance(stage, SlideStage) or stage.name in tables
        for asset in stage.outputs
    ]


def refresh_phases(stages: Sequence[Stage]) -> list[list[Stage]]:
    """Stages of the refresh, grouped into what one run can hold.

    A per-slide stage runs alone, because a slide that fails would make later steps of the same
    run skip; consecutive whole-cohort stages run together.
    """
    waiting = [stage for stage in stages if stage.on_refresh]
    ordered = sorted(
        waiting, key=lambda stage: (_depth(stage, stages), not isinstance(stage, SlideStage))
    )
    phases: list[list[Stage]] = []
    for stage in ordered:
        alone = isinstance(stage, SlideStage)
        if phases and not alone and not isinstance(phases[-1][-1], SlideStage):
            phases[-1].append(stage)
        else:
            phases.append([stage])
    return phases


def _depth(stage: Stage, stages: Sequence[Stage]) -> int:
    """How often slide and cohort stages alternate on the longest way to `stage`."""
    makers = {asset: maker for maker in stages for asset in maker.outputs}
    level = 0
    for asset in (*stage.upstream, *stage.after):
        maker = makers[asset]
        if maker.on_refresh:
            alternates = isinstance(maker, SlideStage) or isinstance(stage, SlideStage)
            level = max(level, _depth(maker, stages) + alternates)
    return level
