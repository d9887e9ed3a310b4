import os
import subprocess
import sys
import tempfile
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path

import boto3
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm_assets.cohort.cache import local_copy
from mm_assets.resources.digest import bytes_digest, table_digest
from mm_assets.resources.store import (
    ArtefactRef,
    ArtefactStore,
    MissingArtefact,
    Provenance,
    StoreError,
)
from mm_assets_tests.resources.writers import (
    DIMENSION,
    MADE,
    embeddings,
    numbered,
    write_for_ever,
    write_too_much,
)

ARROW = ArtefactRef("demo", "tile_embeddings", "TCGA-3C.a_1", "arrow")
TABLE = ArtefactRef("demo", "extremum_vectors_subtype", "S1", "parquet")
REPORT = ArtefactRef("demo", "cohort_report", "cohort", "html")


class TestArtefactStore:
    def test_arrow_round_trip(self, store: ArtefactStore):
        table = embeddings()
        digest = store.write_arrow(ARROW, table, MADE)
        assert digest == table_digest(table) == table_digest(store.read_arrow(ARROW))
        assert store.read_arrow(ARROW).equals(table)
        assert store.provenance(ARROW) == MADE

    def test_arrow_file_is_one_batch_whatever_came_in(self, store: ArtefactStore):
        chunked = pa.concat_tables([embeddings(3), embeddings(4, seed=1)])
        store.write_arrow(ARROW, chunked, MADE)
        assert store.read_arrow(ARROW)["embedding"].num_chunks == 1
        assert store.read_arrow(ARROW).equals(chunked)

    def test_table_keeps_named_index_and_types(self, store: ArtefactStore):
        frame = pd.DataFrame(
            {"risk": [0.5, np.nan], "site": ["A", None], "n": np.array([1, 2], np.int32)},
            index=pd.Index(["P1", "P2"], name="patient_id"),
        )
        store.write_table(TABLE, frame, MADE)
        pd.testing.assert_frame_equal(store.read_table(TABLE), frame)
        assert store.provenance(TABLE) == MADE

    def test_unnamed_index_is_not_stored(self, store: ArtefactStore):
        store.write_table(TABLE, pd.DataFrame({"a": [1, 2]}, index=[7, 9]), MADE)
        assert list(store.read_table(TABLE).index) == [0, 1]

    def test_bytes_and_their_provenance(self, store: ArtefactStore):
        assert store.write_bytes(REPORT, b"<p>1</p>", MADE) == bytes_digest(b"<p>1</p>")
        assert store.read_bytes(REPORT) == b"<p>1</p>"
        assert store.provenance(REPORT) == MADE

    def test_a_file_appears_when_it_is_whole(
        self, store: ArtefactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        drafts = tmp_path / "drafts"
        drafts.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(drafts))
        data = np.random.default_rng(0).bytes(9 << 20)  # more than one part of an upload
        assert store.write_file(REPORT, lambda path: path.write_bytes(data)) == bytes_digest(data)
        assert store.read_bytes(REPORT) == data
        with local_copy(store.address(REPORT), tmp_path / "cache") as local:
            assert local.read_bytes() == data

        def interrupted(path: Path) -> None:
            path.write_bytes(b"half")
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            store.write_file(ARROW, interrupted)
        assert not store.exists(ARROW)
        assert not list(drafts.iterdir())
        local = store.local_path(ARROW)
        assert local is None or not list(local.parent.iterdir())

    def test_provenance_of_other_bytes_is_not_believed(self, store: ArtefactStore):
        store.write_bytes(REPORT, b"old", MADE)
        store.put(REPORT.key, b"new")
        assert store.provenance(REPORT) is None

    def test_rewriting_replaces(self, store: ArtefactStore):
        first = store.write_arrow(ARROW, embeddings(seed=1), MADE)
        second = store.write_arrow(ARROW, embeddings(5, seed=2), MADE)
        assert first != second == table_digest(store.read_arrow(ARROW))

    def test_exists_list_delete(self, store: ArtefactStore):
        refs = [ArtefactRef("demo", "slide", name, "json") for name in (".hidden", "a.b", "c")]
        assert store.list("demo", "slide") == ()
        for ref in refs:
            store.write_bytes(ref, b"{}", MADE)
        store.write_bytes(ArtefactRef("other", "slide", "x", "json"), b"{}")
        assert store.list("demo", "slide") == tuple(refs)
        store.delete(refs[0])
        store.delete(refs[0])
        assert [store.exists(ref) for ref in refs] == [False, True, True]
        store.put("demo/slide/.DS_Store", b"")
        assert store.list("demo", "slide") == tuple(refs[1:])

    def test_missing_artefact_is_named(self, store: ArtefactStore):
        for read in (store.read_arrow, store.read_bytes, store.provenance):
            with pytest.raises(MissingArtefact, match=r"tile_embeddings/TCGA-3C\.a_1\.arrow"):
                read(ARROW)
        with pytest.raises(MissingArtefact, match=r"materialize the asset that makes it"):
            store.read_table(TABLE)

    def test_damaged_artefact_is_named(self, store: ArtefactStore):
        store.write_arrow(ARROW, embeddings(), MADE)
        store.write_table(TABLE, pd.DataFrame({"a": [1]}), MADE)
        for ref in (ARROW, TABLE):
            store.put(ref.key, store.get(ref.key)[:-20])
        for read, ref in [(store.read_arrow, ARROW), (store.read_table, TABLE)]:
            with pytest.raises(StoreError, match=rf"{ref.key}: damaged.*materialize it again"):
                read(ref)
            with pytest.raises(StoreError, match=rf"{ref.key}: damaged"):
                store.provenance(ref)

    def test_empty_table(self, store: ArtefactStore):
        empty = embeddings(0)
        assert store.write_arrow(ARROW, empty, MADE) == table_digest(store.read_arrow(ARROW))
        assert store.read_arrow(ARROW).schema.equals(empty.schema)

    def test_larger_than_one_upload_part(self, store: ArtefactStore):
        table = embeddings(20_000, dimension=512)
        assert store.write_arrow(ARROW, table, MADE) == table_digest(store.read_arrow(ARROW))


class TestS3:
    def test_no_such_bucket(self, s3_environment: str):
        store = ArtefactStore(uri="s3://absent-bucket/x")
        with pytest.raises(StoreError, match=r"cannot write it in s3://absent-bucket/x"):
            store.write_file(REPORT, lambda path: path.write_bytes(b"<p>"))
        with pytest.raises(StoreError, match=r"a/b.json: cannot write it in s3://absent-bucket/x"):
            ArtefactStore(uri="s3://absent-bucket/x").put("a/b.json", b"{}")

    def test_report_opens_in_a_browser(self, s3_environment: str):
        ArtefactStore(uri="s3://artefacts/web").write_bytes(REPORT, b"<p>")
        head = boto3.client("s3").head_object(Bucket="artefacts", Key=f"web/{REPORT.key}")
        assert head["ContentType"] == "text/html"
        assert ArtefactStore(uri="s3://artefacts/web").local_path(REPORT) is None


class TestLocal:
    def test_reading_copies_nothing(self, local_store: ArtefactStore):
        local_store.write_arrow(ARROW, embeddings(50_000), MADE)
        before = pa.total_allocated_bytes()
        column = local_store.read_arrow(ARROW)["embedding"].chunk(0)
        array = column.flatten().to_numpy(zero_copy_only=True).reshape(-1, DIMENSION)
        assert pa.total_allocated_bytes() == before
        assert np.array_equal(array.ravel(), embeddings(50_000)["embedding"].chunk(0).flatten())

    def test_others_read_the_table(self, local_store: ArtefactStore):
        import duckdb

        frame = pd.DataFrame({"risk": [1.5, 2.5]}, index=pd.Index(["P1", "P2"], name="patient_id"))
        local_store.write_table(TABLE, frame, MADE)
        path = local_store.local_path(TABLE)
        query = f"select patient_id, risk from '{path}' order by risk"
        assert duckdb.sql(query).fetchall() == [("P1", 1.5), ("P2", 2.5)]

    def test_failed_write_leaves_nothing(self, local_store: ArtefactStore):
        local_store.write_bytes(REPORT, b"first")
        with pytest.raises(TypeError, match="no content digest"):
            table_digest(pa.table({"m": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int8()))}))
        with pytest.raises(ZeroDivisionError):
            local_store._publish(REPORT.key, lambda sink: sink.write(b"half") / 0, lambda _: True)
        assert _files(local_store) == [REPORT.key]
        assert local_store.read_bytes(REPORT) == b"first"

    def test_damage_on_the_way_is_noticed(self, local_store: ArtefactStore):
        with pytest.raises(StoreError, match="read back differs"):
            local_store._publish(REPORT.key, lambda sink: sink.write(b"x"), lambda _: False)
        assert _files(local_store) == []

    def test_sweep_takes_only_old_leftovers(self, local_store: ArtefactStore):
        local_store.write_bytes(REPORT, b"x")
        folder = local_store.local_path(REPORT).parent
        old, young = folder / ".1.tmp", folder / ".2.tmp"
        for path in (old, young):
            path.write_bytes(b"half")
        os.utime(old, (time.time() - 90_000,) * 2)
        assert local_store.list("demo", "cohort_report") == (REPORT,)
        assert local_store.sweep() == (str(old),)
        assert young.exists()
        assert local_store.exists(REPORT)

    @pytest.mark.parametrize(
        ("part", "value"),
        [
            ("name", "../x"),
            ("name", ""),
            ("name", "a,b"),
            ("cohort", ".."),
            ("asset", "a/b"),
            ("extension", "tmp"),
            ("extension", "tar.gz"),
        ],
    )
    def test_names_that_would_leave_the_folder(self, part: str, value: str):
        parts = {"cohort": "demo", "asset": "a", "name": "S", "extension": "json", part: value}
        with pytest.raises(ValueError, match=part):
            ArtefactRef(**parts)

    def test_importing_is_cheap(self):
        modules = ("store", "receipts", "tracking", "lineage")
        code = "import sys\n" + "\n".join(f"import mm_assets.resources.{m}" for m in modules)
        code += "\nprint([m for m in ('torch', 'mlflow', 'pandas', 'sklearn') if m in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (done.returncode, done.stdout.strip()) == (0, "[]")


def _files(store: ArtefactStore) -> list[str]:
    root = Path(store.uri)
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


def test_kill_9_leaves_only_whole_files(processes: ForkServerContext, local_store: ArtefactStore):
    leftovers = 0
    for attempt in range(6):
        receiver, sender = processes.Pipe(duplex=False)
        child = processes.Process(target=write_for_ever, args=(local_store.uri, sender))
        child.start()
        receiver.recv()
        start = time.perf_counter()
        for _ in range(3):
            receiver.recv()
        time.sleep((time.perf_counter() - start) / 3 * (0.1 + 0.13 * attempt))
        child.kill()
        child.join()
        assert child.exitcode == -9
        leftovers = sum(name.endswith(".tmp") for name in _files(local_store))
        for ref in local_store.list("c", "n"):
            table, provenance = numbered(int(local_store.provenance(ref).code_version))
            assert local_store.read_arrow(ref).equals(table)
            assert local_store.provenance(ref) == provenance
    assert len(local_store.list("c", "n")) == 3
    assert leftovers > 0, "no child was killed in the middle of a write: this test tests nothing"
    assert len(local_store.sweep(older_than_hours=-1)) == leftovers
    assert len(_files(local_store)) == 3


def test_file_too_large_for_the_place(processes: ForkServerContext, local_store: ArtefactStore):
    receiver, sender = processes.Pipe(duplex=False)
    child = processes.Process(target=write_too_much, args=(local_store.uri, 100_000, sender))
    child.start()
    message = receiver.recv()
    child.join()
    assert "c/n/big.arrow: cannot write it" in message
    assert "Free some space" in message
    assert _files(local_store) == ["c/n/small.arrow"]


def test_disk_full(tmp_path: Path):
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)])
    if mount.returncode:
        pytest.skip("only root may mount a small disk to fill")
    try:
        store = ArtefactStore(uri=str(tmp_path))
        store.write_arrow(ARROW, embeddings(10), MADE)
        with pytest.raises(StoreError, match=r"full\.bin.*No space left.*Free some space"):
            store.put("demo/full.bin", bytes(2_000_000))
        with pytest.raises(StoreError, match="Free some space"):
            store.write_table(TABLE, pd.DataFrame({"a": np.random.rand(300_000)}), MADE)
        assert _files(store) == [ARROW.key]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


# Provenance

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


class TestProvenance:
    @given(st.dictionaries(st.text(max_size=4), JSON_VALUES, max_size=4))
    def test_round_trip(self, parameters: dict):
        made = Provenance("a", "S1", "1", parameters, {"slide": {"S1": "sha256:0"}})
        again = Provenance.from_json(made.to_json())
        assert again == made
        assert again.fingerprint() == made.fingerprint()

    def test_fingerprint_ignores_order_and_name_only(self):
        made = Provenance("a", "S1", "1", {"x": 1, "y": 2}, {"slide": {"S1": "d"}})
        same = Provenance("a", "S2", "1", {"y": 2, "x": 1}, {"slide": {"S1": "d"}})
        others = [
            Provenance("b", "S1", "1", {"x": 1, "y": 2}, {"slide": {"S1": "d"}}),
            Provenance("a", "S1", "2", {"x": 1, "y": 2}, {"slide": {"S1": "d"}}),
            Provenance("a", "S1", "1", {"x": 1, "y": 3}, {"slide": {"S1": "d"}}),
            Provenance("a", "S1", "1", {"x": 1, "y": 2}, {"slide": {"S1": "e"}}),
        ]
        assert made.fingerprint() == same.fingerprint()
        assert made.fingerprint() not in {other.fingerprint() for other in others}

    def test_nan_is_refused(self):
        with pytest.raises(ValueError, match="JSON"):
            Provenance("a", "S1", "1", {"x": float("nan")})
