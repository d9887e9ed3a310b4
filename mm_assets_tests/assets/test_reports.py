"""What a report says of a cohort that has one modality only."""

import logging
from pathlib import Path

from mm_assets.assets.cohort_level import run_cohort_stage
from mm_assets.assets.models import model_stages
from mm_assets.assets.omics import table_stages, task_table_stages
from mm_assets.assets.porpoise import porpoise_stages
from mm_assets.assets.reports import evaluation_stage
from mm_assets.assets.stage import Workspace
from mm_assets.cohort.loading import load_config
from mm_assets.resources.store import ArtefactRef, ArtefactStore
from mm_assets.resources.tracking import Tracking
from mm_assets_tests.cohorts import patient_ids, write_tables, write_yaml


def test_one_modality_is_not_called_all_nor_its_rival_the_single_one(
    home: Path, tmp_path: Path
) -> None:
    write_tables(tmp_path, patient_ids(24))
    clinical = {"table": "clinical.csv", "covariates": []}
    quick = {"evaluation": {"folds": 2, "bootstrap": 100, "omics_features": 5}}
    quick["compute"] = {"heec_subtype": {"cpu": 1}}
    sections = {"slides": None, "imaging": None, "clinical": clinical, **quick}
    asked = {"models": ["snn"], "epochs": 1}
    config = load_config(write_yaml(tmp_path, porpoise=asked, **sections))
    store, task = ArtefactStore(uri=str(home / "store")), config.tasks[0]
    space = Workspace(config, store, Tracking(), logging.getLogger())
    trained = [*model_stages(config, task), *porpoise_stages(config, task)]
    models = [stage.name for stage in trained]
    assert models == ["heec_subtype", "porpoise_snn_subtype"]
    judged = evaluation_stage(config, task, models)
    for stage in [*table_stages(config), *task_table_stages(config, task), *trained, judged]:
        run_cohort_stage(stage, space, "")
    page = store.read_bytes(ArtefactRef("tiny", judged.name, "cohort", "html")).decode()
    assert "HEEC, omics alone (ROC AUC" in page
    assert "the best other model, PORPOISE, omics alone" in page
    assert "all modalities" not in page
    assert "single-modality" not in page
