"""The store and the slide cache on an S3 that refuses, breaks off and stalls."""

import random
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import boto3
import numpy as np
import pandas as pd
import pytest

from mm_assets.cohort.cache import local_copy
from mm_assets.cohort.s3 import SILENCE_SECONDS
from mm_assets.resources.digest import bytes_digest
from mm_assets.resources.provenance import Provenance
from mm_assets.resources.store import ArtefactRef, ArtefactStore, MissingArtefact
from mm_assets_tests.faulty_s3 import SHARES, FaultyS3, faulty_s3
from mm_assets_tests.s3_proxy import ask, proxy, send_head

THREADS = 16
LARGE = random.Random(0).randbytes(20 << 20)  # several parts of an upload, ranges of a download


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("requests", [600, pytest.param(10_000, marks=pytest.mark.stress)])
def test_every_digest_is_exact(
    requests: int, s3_environment: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = uuid.uuid4().hex
    reference, calm = ArtefactStore(uri=str(tmp_path / "store")), ArtefactStore(uri=_uri(name))
    with faulty_s3(s3_environment, SILENCE_SECONDS + 2) as faulty:
        monkeypatch.setenv("AWS_ENDPOINT_URL", faulty.address)
        store = ArtefactStore(uri=_uri(name))
        _copy_slide(faulty, name, tmp_path)
        ref = ArtefactRef("c", "large", "cohort", "bin")
        assert store.write_file(ref, lambda path: path.write_bytes(LARGE)) == bytes_digest(LARGE)
        count = _exercise(store, reference, faulty, requests)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_environment)
    print(f"{faulty.met.total()} requests: {dict(faulty.met)}")
    assert all(faulty.met[kind] > 0.3 * share * requests for kind, share in SHARES.items())
    assert calm.read_bytes(ref) == LARGE
    for asset in ("table", "page"):
        kept = {f"s{seed}" for seed in range(count) if _is_kept(seed)}
        assert {ref.name for ref in calm.list("c", asset)} == kept
    for table in calm.list("c", "table"):
        pd.testing.assert_frame_equal(calm.read_table(table), _frame(int(table.name[1:])))


def test_uploads_carry_a_checksum_for_the_server(
    s3_environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unchecked, puts = [], []

    def relay(request: BaseHTTPRequestHandler) -> None:
        if request.command == "PUT":
            puts.append(request.path)
            told = (request.headers.get("x-amz-trailer", ""), *request.headers)
            if not any(name.startswith("x-amz-checksum-") for name in told):
                unchecked.append(request.path)
        answer = ask(s3_environment, request)
        send_head(request, answer)
        request.wfile.write(answer.content)

    with proxy(relay) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        store = ArtefactStore(uri=_uri(uuid.uuid4().hex))
        ref = ArtefactRef("c", "page", "cohort", "html")
        store.write_bytes(ref, b"risk", Provenance("page", "cohort", "1"))
        store.write_file(replace(ref, asset="large"), lambda path: path.write_bytes(LARGE))
    assert len(puts) > 3
    assert not unchecked


def _uri(name: str) -> str:
    return f"s3://artefacts/{name}"


def _copy_slide(faulty: FaultyS3, name: str, folder: Path) -> None:
    boto3.client("s3", endpoint_url=faulty.server).put_object(
        Bucket="artefacts", Key=f"{name}/slide.svs", Body=LARGE
    )
    with local_copy(f"{_uri(name)}/slide.svs", folder / "cache") as copy:
        assert copy.read_bytes() == LARGE


def _exercise(
    store: ArtefactStore, reference: ArtefactStore, faulty: FaultyS3, requests: int
) -> int:
    """Write and read in many threads until so many requests were made; how many artefacts."""
    count = 0
    with ThreadPoolExecutor(THREADS) as threads:
        while faulty.met.total() < requests:
            seeds = range(count, count + 2 * THREADS)
            list(threads.map(lambda seed: _write_and_read(store, reference, seed), seeds))
            count = seeds.stop
    return count


def _write_and_read(store: ArtefactStore, reference: ArtefactStore, seed: int) -> None:
    table = ArtefactRef("c", "table", f"s{seed}", "parquet")
    page = ArtefactRef("c", "page", f"s{seed}", "html")
    frame, body = _frame(seed), random.Random(seed).randbytes(20_000)
    made = Provenance("table", table.name, "1")
    assert store.write_table(table, frame, made) == reference.write_table(table, frame, made)
    assert store.write_bytes(page, body, made) == bytes_digest(body)
    pd.testing.assert_frame_equal(store.read_table(table), frame)
    assert store.read_bytes(page) == body
    assert store.provenance(table) == made
    if not _is_kept(seed):
        store.delete(table)
        store.delete(page)
        with pytest.raises(MissingArtefact):
            store.read_bytes(page)


def _is_kept(seed: int) -> bool:
    return seed % 4 > 0


def _frame(seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame({"risk": rng.normal(size=100), "patient": np.arange(100)})
