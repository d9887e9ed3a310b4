"""Folders of this machine in which the platform keeps things."""

import os
from pathlib import Path

TRAINING_STATE = "MM_TRAINING_STATE"


def mm_home() -> Path:
    """Folder of everything the platform stores: `MM_HOME`, else `.mm` in the working directory."""
    return Path(os.environ.get("MM_HOME", ".mm")).absolute()


def training_folder(cohort: str, asset: str) -> Path:
    """Folder in which a training keeps its state, so that a killed one is found again.

    Below `MM_TRAINING_STATE`, else `training` under `MM_HOME`.
    """
    root = os.environ.get(TRAINING_STATE)
    return (Path(root) if root else mm_home() / "training") / cohort / asset
