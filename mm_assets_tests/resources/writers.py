"""What child processes of the store's tests do; imports little, so that they start at once."""

import resource
from multiprocessing.connection import Connection

import numpy as np
import pandas as pd  # noqa: F401  (PyArrow imports it with the first table)
import pyarrow as pa

from mm_assets.resources.store import ArtefactRef, ArtefactStore, Provenance, StoreError

DIMENSION = 8
ROWS = 1_000_000
MADE = Provenance(
    "tile_embeddings", "S1", "1", {"mpp": 0.5, "sizes": (1, 2)}, {"slide": {"S1": "sha256:0"}}
)


def embeddings(rows: int = 100, seed: int = 0, dimension: int = DIMENSION) -> pa.Table:
    values = np.random.default_rng(seed).standard_normal(rows * dimension).astype(np.float16)
    columns = {
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(values), dimension),
        **{name: pa.array(np.arange(rows, dtype=np.int32)) for name in ("x", "y", "size0")},
    }
    return pa.table(columns)


def numbered(number: int) -> tuple[pa.Table, Provenance]:
    table = pa.table({"n": np.full(ROWS, number, np.int32)})
    return table, Provenance("n", "S", str(number))


def write_for_ever(uri: str, written: Connection) -> None:
    store = ArtefactStore(uri=uri)
    for number in range(1_000_000):
        store.write_arrow(ArtefactRef("c", "n", f"S{number % 3}", "arrow"), *numbered(number))
        written.send(number)


def write_too_much(uri: str, limit: int, result: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    store = ArtefactStore(uri=uri)
    refs = [ArtefactRef("c", "n", name, "arrow") for name in ("small", "big")]
    store.write_arrow(refs[0], embeddings(10), MADE)
    try:
        store.write_arrow(refs[1], embeddings(100_000), MADE)
    except StoreError as error:
        result.send(str(error))
