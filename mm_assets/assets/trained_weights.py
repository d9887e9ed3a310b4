"""Weights of HIPT that the cohort trains itself: whether it does, and where they are."""

from mm_assets.assets.stage import Workspace
from mm_assets.cohort.config import COHORT_WEIGHTS, CohortConfig
from mm_assets.cohort.folders import mm_home
from mm_assets.files import publish
from mm_assets.resources.store import COHORT, ArtefactRef

TILE_ENCODER, REGION_ENCODER = "tile_encoder", "region_encoder"


def trains_tiles(config: CohortConfig) -> bool:
    """Whether the cohort pre-trains HIPT's transformer of tiles."""
    return config.hipt is not None and config.hipt.tile_weights == COHORT_WEIGHTS


def trains_regions(config: CohortConfig) -> bool:
    """Whether the cohort pre-trains HIPT's transformer of regions."""
    return config.hipt is not None and config.hipt.region_weights == COHORT_WEIGHTS


def weights_path(workspace: Workspace, asset: str, given: str) -> str:
    """Weights for `load_encoder`: those given, or a file of those that the cohort trained.

    The file is named by its digest, which is thus in the stamp of everything made with it.
    """
    if given != COHORT_WEIGHTS:
        return given
    cohort = workspace.config.cohort
    receipt = workspace.receipts.read(cohort, asset, COHORT)
    assert receipt is not None  # The stage that asks has the encoder upstream.
    digest = receipt.outputs["pth"].removeprefix("sha256:")[:12]
    path = mm_home() / "cache" / "weights" / f"{cohort}_{asset}_{digest}.pth"
    if not path.exists():
        publish(path, workspace.store.read_bytes(ArtefactRef(cohort, asset, COHORT, "pth")))
    return str(path)
