import dataclasses
import json
from threading import Barrier

import pytest

from mm_assets.resources.receipts import Receipt, Receipts
from mm_assets.resources.store import ArtefactRef, ArtefactStore, Provenance

KEY = "demo/_receipts/tissue/S1.json"


def made(name: str = "S1", mpp: float = 0.5) -> Provenance:
    return Provenance("tissue", name, "1", {"mpp": mpp}, {"slide": {name: "sha256:0"}})


def finished(store: ArtefactStore, name: str = "S1", **changes: object) -> Receipt:
    digest = store.write_bytes(ArtefactRef("demo", "tissue", name, "geojson"), b"{}")
    receipt = Receipt("demo", "tissue", name, "done", made(name), {"geojson": digest})
    return dataclasses.replace(receipt, **changes)


class TestReceipts:
    def test_round_trip(self, store: ArtefactStore):
        receipts = Receipts(store)
        receipt = finished(store, metadata={"tissue": 0.4, "vendor": "x"}, seconds=1.5)
        assert receipts.read("demo", "tissue", "S1") is None
        receipts.write(receipt)
        assert receipts.read("demo", "tissue", "S1") == receipt
        assert receipts.valid("demo", "tissue", "S1", made().fingerprint()) == receipt

    def test_failure_keeps_its_reason_and_is_never_valid(self, store: ArtefactStore):
        receipts = Receipts(store)
        receipts.write(Receipt("demo", "tissue", "S1", "failed", made(), reason="blank slide"))
        assert receipts.read("demo", "tissue", "S1").reason == "blank slide"
        assert receipts.valid("demo", "tissue", "S1", made().fingerprint()) is None

    def test_read_all_and_delete(self, store: ArtefactStore):
        receipts = Receipts(store)
        assert receipts.read_all("demo", "tissue") == {}
        written = {name: finished(store, name) for name in ("S3", "S1", "S2")}
        for receipt in written.values():
            receipts.write(receipt)
        store.put("demo/_receipts/tissue/S0.json", b"{")
        assert list(receipts.read_all("demo", "tissue")) == ["S1", "S2", "S3"]
        assert receipts.read_all("demo", "tissue") == written
        receipts.delete("demo", "tissue", "S2")
        assert list(receipts.read_all("demo", "tissue")) == ["S1", "S3"]
        assert store.exists(ArtefactRef("demo", "tissue", "S2", "geojson"))

    def test_what_no_longer_holds_is_not_valid(self, store: ArtefactStore):
        receipts = Receipts(store)
        names = ("kept", "changed", "failed", "lost", "never")
        for name in names[:4]:
            receipts.write(finished(store, name, state="failed" if name == "failed" else "done"))
        store.delete(ArtefactRef("demo", "tissue", "lost", "geojson"))
        wanted = {
            name: made(name, mpp=0.25 if name == "changed" else 0.5).fingerprint() for name in names
        }
        assert list(receipts.valid_many("demo", "tissue", wanted)) == ["kept"]
        one_by_one = {n: receipts.valid("demo", "tissue", n, f) for n, f in wanted.items()}
        assert [name for name, receipt in one_by_one.items() if receipt] == ["kept"]

    def test_parts_are_artefacts_too(self, store: ArtefactStore):
        receipts = Receipts(store)
        part = ArtefactRef("demo", "tissue", "S1.thumbnail", "png")
        outputs = {"thumbnail.png": store.write_bytes(part, b"png")}
        receipts.write(finished(store, outputs=outputs))
        assert receipts.valid("demo", "tissue", "S1", made().fingerprint()) is not None
        store.delete(part)
        assert receipts.valid("demo", "tissue", "S1", made().fingerprint()) is None


@pytest.mark.parametrize("damage", ["cut", "list", "text", "binary", "other input", "no asset"])
def test_damaged_receipt_counts_as_absent(local_store: ArtefactStore, damage: str):
    receipts = Receipts(local_store)
    receipts.write(finished(local_store))
    whole = local_store.get(KEY)
    fields = json.loads(whole)
    changed = {**fields, "provenance": {**fields["provenance"], "inputs": {}}}
    local_store.put(
        KEY,
        {
            "cut": whole[:-20],
            "list": b"[]",
            "text": b'"done"',
            "binary": bytes(range(200, 256)),
            "other input": json.dumps(changed).encode(),
            "no asset": json.dumps({k: v for k, v in fields.items() if k != "asset"}).encode(),
        }[damage],
    )
    assert receipts.read("demo", "tissue", "S1") is None
    local_store.put(KEY, whole)
    assert receipts.read("demo", "tissue", "S1") is not None


def test_thousand_receipts_are_read_side_by_side(
    local_store: ArtefactStore, monkeypatch: pytest.MonkeyPatch
):
    folder = local_store.local_path(ArtefactRef("demo", "_receipts", "x", "json")).parent / "tissue"
    folder.mkdir(parents=True)
    for index in range(1000):
        receipt = Receipt("demo", "tissue", f"S{index}", "done", made(f"S{index}"), {"json": "d"})
        (folder / f"S{index}.json").write_bytes(receipt.to_json())
    get, pairs = ArtefactStore.get, Barrier(2)

    def get_beside_another(store: ArtefactStore, key: str) -> bytes:
        pairs.wait(30)
        return get(store, key)

    monkeypatch.setattr(ArtefactStore, "get", get_beside_another)
    assert len(Receipts(local_store).read_all("demo", "tissue")) == 1000


def test_digest_follows_the_outputs():
    def digest(**outputs: str) -> str:
        return Receipt("demo", "tissue", "S1", "done", made(), outputs).digest

    assert digest(arrow="sha256:1") == "sha256:1"
    assert digest(a="sha256:1", b="sha256:2") == digest(b="sha256:2", a="sha256:1")
    assert digest(a="sha256:1", b="sha256:2") != digest(a="sha256:2", b="sha256:1")
    assert digest() == made().fingerprint()
