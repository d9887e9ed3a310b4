import dataclasses
import json

import pytest

from mm_assets.resources.digest import bytes_digest
from mm_assets.resources.lineage import (
    LineageError,
    LineageNode,
    from_json,
    lineage_of_artefact,
    lineage_of_provenance,
    render,
    resolve,
    to_json,
)
from mm_assets.resources.receipts import Receipt, Receipts
from mm_assets.resources.store import ArtefactStore, Provenance
from mm_assets.resources.tracking import Tracking
from mm_assets_tests.resources.models import model_run


def make(store: ArtefactStore, asset: str, name: str, inputs: dict[str, dict[str, str]]) -> str:
    """Write the receipt of an artefact; return its data version."""
    made = Provenance(asset, name, "1", {"mpp": 0.5}, inputs)
    outputs = {"parquet": bytes_digest(f"{asset}/{name}/{made.fingerprint()}".encode())}
    receipt = Receipt("demo", asset, name, "done", made, outputs)
    Receipts(store).write(receipt)
    return receipt.digest


def make_slide(store: ArtefactStore, name: str) -> str:
    """One slide up to its extremum vectors; the file's digest is ``sha256:<name>``."""
    slide = {name: make(store, "slide", name, {"slide": {name: f"sha256:{name}"}})}
    tissue = {name: make(store, "tissue", name, {"slide": slide})}
    tiles = {name: make(store, "tile_embeddings", name, {"slide": slide, "tissue": tissue})}
    return make(store, "extremum_vectors_survival", name, {"tile_embeddings": tiles})


def make_cohort(store: ArtefactStore, slides: int, models: int) -> None:
    vectors = {f"S{i:03d}": make_slide(store, f"S{i:03d}") for i in range(slides)}
    splits = {"cohort": make(store, "splits_survival", "cohort", {})}
    inputs = {"extremum_vectors_survival": vectors, "splits_survival": splits}
    made = {f"m{i}": {"cohort": make(store, f"m{i}", "cohort", inputs)} for i in range(models)}
    make(store, "evaluation_survival", "cohort", made)


def walk(node: LineageNode) -> list[LineageNode]:
    return [node, *(below for upstream in node.inputs for below in walk(upstream))]


def test_artefact_leads_to_slide_files(store: ArtefactStore):
    make_cohort(store, slides=3, models=1)
    tree = lineage_of_artefact(store, "demo", "evaluation_survival")
    leaves = {node.digest for node in walk(tree) if node.asset == "slide" and not node.inputs}
    assert leaves == {"sha256:S000", "sha256:S001", "sha256:S002"}
    tissue = next(node for node in walk(tree) if node.asset == "tissue")
    assert (tissue.code_version, tissue.parameters) == ("1", {"mpp": 0.5})
    assert not any(node.stale for node in walk(tree))


def test_large_cohort_is_walked_once(local_store: ArtefactStore, monkeypatch: pytest.MonkeyPatch):
    make_cohort(local_store, slides=130, models=6)
    get, read = ArtefactStore.get, list[str]()

    def noted(store: ArtefactStore, key: str) -> bytes:
        read.append(key)
        return get(store, key)

    monkeypatch.setattr(ArtefactStore, "get", noted)
    tree = lineage_of_artefact(local_store, "demo", "evaluation_survival")
    assert len(read) == len(set(read)) > 130 * 4
    flat = to_json(tree)
    lines = render(tree)
    assert len(flat["nodes"]) == 130 * 5 + 1 + 6 + 1
    assert from_json(json.loads(json.dumps(flat))) == tree
    assert len(lines) < 30
    assert any("extremum_vectors_survival x 130  S000 to S129" in line for line in lines)
    full = render(tree, full=True)
    assert sum("sha256:S077" in line for line in full) == 1


def test_upstream_made_again_is_marked(local_store: ArtefactStore):
    make_cohort(local_store, slides=20, models=1)
    receipts = Receipts(local_store)
    old = receipts.read("demo", "tile_embeddings", "S007")
    receipts.write(dataclasses.replace(old, outputs={"parquet": "sha256:new"}))
    tree = lineage_of_artefact(local_store, "demo", "evaluation_survival")
    stale = [node for node in walk(tree) if node.stale]
    assert [(n.asset, n.name, n.digest, n.current) for n in stale] == [
        ("tile_embeddings", "S007", old.digest, "sha256:new")
    ]
    assert [line for line in render(tree) if "STALE: 1 of them" in line]
    assert [line for line in render(tree, limit=20) if "STALE: now sha256:new" in line]
    assert from_json(to_json(tree)) == tree


def test_digest_of_one_of_several_outputs_is_not_stale(local_store: ArtefactStore):
    made = Provenance("tissue", "S1", "1")
    outputs = {"geojson": "sha256:g", "png": "sha256:p"}
    Receipts(local_store).write(Receipt("demo", "tissue", "S1", "done", made, outputs))
    inputs = {"tissue": {"S1": "sha256:g"}}
    tree = lineage_of_provenance(local_store, "demo", Provenance("t", "S1", "1", inputs=inputs))
    assert not tree.inputs[0].stale


def test_slide_whose_version_is_its_files_digest(local_store: ArtefactStore):
    made = Provenance("slide", "S1", "1", {}, {"slide": {"S1": "sha256:f"}})
    outputs = {"json": "sha256:f"}
    Receipts(local_store).write(Receipt("demo", "slide", "S1", "done", made, outputs))
    tree = lineage_of_artefact(local_store, "demo", "slide", "S1")
    assert from_json(to_json(tree)) == tree
    assert render(tree) == ["slide S1  sha256:f  code 1"]


def test_registered_model_keeps_the_tree_it_was_made_from(
    local_store: ArtefactStore, tracking: Tracking
):
    make_cohort(local_store, slides=2, models=1)
    made = Receipts(local_store).read("demo", "m0", "cohort").provenance
    tree = lineage_of_provenance(local_store, "demo", made)
    tracking.log_model(model_run("lineage", lineage=to_json(tree)))
    make_slide(local_store, "S002")
    Receipts(local_store).delete("demo", "tissue", "S000")
    for ref in ("", "@champion", ":1"):
        model = resolve(f"demo.survival.lineage{ref}", local_store, tracking)
        assert (model.asset, model.name) == ("registered_model", "demo.survival.lineage:1")
        assert model.inputs == (tree,)
        files = [line for line in render(model) if "sha256:S00" in line]
        assert len(files) == 2


def test_references(local_store: ArtefactStore, tracking: Tracking):
    make_cohort(local_store, slides=2, models=1)
    Receipts(local_store).write(
        Receipt("demo", "slide", "bad", "failed", Provenance("slide", "bad", "1"), reason="no mpp")
    )
    one = resolve("demo/tissue/S001", local_store, tracking)
    assert (one.asset, one.name, one.inputs[0].asset) == ("tissue", "S001", "slide")
    assert resolve("demo/m0", local_store, tracking).name == "cohort"
    every = resolve("demo/slide", local_store, tracking)
    assert [node.name for node in every.inputs] == ["S000", "S001"]
    refusals = {
        "demo/slide/bad": "no mpp",
        "demo/slide/S9": "not made yet",
        "demo/nothing": "nothing of it was made yet",
        "demo/": "write <cohort>/<asset>",
        "a/b/c/d": "write <cohort>/<asset>",
        "demo.survival": "write <cohort>.<task>.<model>",
        "demo.survival.absent": "absent",
    }
    for ref, message in refusals.items():
        with pytest.raises(LineageError, match=message):
            resolve(ref, local_store, tracking)
    tracking.log_model(model_run("untold"))
    with pytest.raises(LineageError, match="without its lineage"):
        resolve("demo.survival.untold", local_store, tracking)


def test_drawing(local_store: ArtefactStore):
    make_slide(local_store, "S1")
    tree = lineage_of_artefact(local_store, "demo", "tile_embeddings", "S1")
    shapes = [line.split("  sha256")[0] for line in render(tree)]
    assert shapes == [
        "tile_embeddings S1",
        "├─ slide S1",
        "│  └─ slide S1",
        "└─ tissue S1",
        "   └─ slide S1",
    ]
    assert render(tree)[-1].endswith("(shown above)")
