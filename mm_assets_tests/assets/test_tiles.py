"""Several encoders in one pass, each with an asset of its own."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import yaml

from mm_assets.encoders.weights import blank_network
from mm_assets_tests.cohorts import Cohort, make_cohort, write_yaml

TINY = {"name": "tiny", "encoder": "timm:vit_tiny_patch16_224", "weights": "random:1"}
CHOICE = ("--select", "slide", "--select", "tissue", "--select", "tile_embeddings")


def states(cohort: Cohort) -> dict[str, int]:
    rows = json.loads(cohort.mm("status", "tiny", "--json"))
    return {row["asset"]: row["done"] for row in rows}


def test_a_further_encoder_computes_only_its_own_asset(tmp_path: Path) -> None:
    definition = make_cohort(tmp_path / "cohorts" / "tiny", 4, slides=2, omics=None)
    (tmp_path / "mm").mkdir()
    cohort = Cohort(definition, tmp_path / "mm")
    cohort.mm("materialize", "tiny", *CHOICE)
    before = states(cohort)
    assert before["tile_embeddings"] == 2
    assert "tile_embeddings_tiny" not in before

    attributes = yaml.safe_load(definition.read_text())["attributes"]
    imaging = {**attributes["imaging"], "also": [TINY]}
    write_yaml(definition.parent, omics=None, imaging=imaging)
    cohort.mm("materialize", "tiny", *CHOICE)
    after = states(cohort)
    assert after["tile_embeddings"] == after["tile_embeddings_tiny"] == 2

    folder = cohort.home / "store" / "tiny"
    tables = [
        pa.ipc.open_file(folder / asset / "P000-S1.arrow").read_all()
        for asset in ("tile_embeddings", "tile_embeddings_tiny")
    ]
    first, second = tables
    assert first.drop(["embedding"]) == second.drop(["embedding"])
    assert second.schema.field("embedding").type.list_size == 192
    assert second.schema.metadata[b"encoder"] == b"timm:vit_tiny_patch16_224"
    assert second.schema.metadata[b"reader"].startswith(b"imagecodecs ")
    made = (folder / "tile_embeddings_tiny" / "P000-S1.arrow").stat().st_mtime
    assert (folder / "tile_embeddings" / "P000-S1.arrow").stat().st_mtime < made - 1


def test_other_weights_at_the_same_path_are_noticed(tmp_path: Path) -> None:
    """And make nothing again that other weights made."""
    weights = tmp_path / "tiny.pth"
    state = dict(blank_network(TINY["encoder"]).state_dict())
    torch.save(state, weights)
    given = {**TINY, "weights": str(weights)}
    imaging = {"encoder": TINY["encoder"], "weights": "random:0", "also": [given]}
    definition = make_cohort(
        tmp_path / "cohorts" / "tiny", 4, slides=1, omics=None, imaging=imaging
    )
    (tmp_path / "mm").mkdir()
    cohort = Cohort(definition, tmp_path / "mm")
    cohort.mm("materialize", "tiny", *CHOICE)
    before = receipts(cohort)
    torch.save({name: tensor + 1 for name, tensor in state.items()}, weights)
    cohort.mm("materialize", "tiny", *CHOICE)
    after = receipts(cohort)

    assert after["tile_embeddings"] == before["tile_embeddings"]
    further = [made["tile_embeddings_tiny"] for made in (before, after)]
    assert further[0]["outputs"] != further[1]["outputs"]
    sources = [receipt["provenance"]["inputs"]["source"] for receipt in further]
    assert sources[1] == {"weights": "sha256:" + hashlib.sha256(weights.read_bytes()).hexdigest()}
    assert sources[0] != sources[1]


def receipts(cohort: Cohort) -> dict[str, Any]:
    folder = cohort.home / "store" / "tiny" / "_receipts"
    assets = ("tile_embeddings", "tile_embeddings_tiny")
    return {asset: json.loads((folder / asset / "P000-S1.json").read_text()) for asset in assets}
