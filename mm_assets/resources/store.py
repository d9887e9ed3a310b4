"""Artefact store: one output of one asset, for one slide or one cohort, whole or not there at all.

Local folder or S3 prefix through the same `pyarrow.fs` calls. Nothing half-written is ever visible:
locally a file is written under a temporary name, checked, synchronised and renamed; on S3 an object
appears only when its upload is complete. Every write returns the digest of the *content*, so that
recomputing the same numbers gives the same data version whatever the file around them looks like.
"""

from __future__ import annotations

import errno
import json
import mimetypes
import os
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import dagster as dg
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from pydantic import Field

from mm_assets.cohort.objects import upload_file
from mm_assets.cohort.s3 import s3_filesystem
from mm_assets.resources.digest import bytes_digest, canonical_json, file_digest, table_digest
from mm_assets.resources.provenance import JSON as JSON
from mm_assets.resources.provenance import Provenance as Provenance

if TYPE_CHECKING:
    import pandas as pd

Sink: TypeAlias = IO[bytes] | pa.NativeFile

METADATA_KEY = b"mm_assets"
COHORT = "cohort"  # the artefact name of assets that have one output for the whole cohort

_NAME = re.compile(r"[A-Za-z0-9._-]+")
_TEMPORARY = ".tmp"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StoreError(RuntimeError):
    """An artefact cannot be read or written; the message names its key and what to do."""


class StoreFullError(StoreError):
    """There is no space left in the store."""


class MissingArtefact(StoreError):
    """The artefact is not in the store."""


@dataclass(frozen=True)
class ArtefactRef:
    """Address of an artefact; `name` is a slide id or ``cohort``."""

    cohort: str
    asset: str
    name: str
    extension: str

    def __post_init__(self) -> None:
        for attribute in ("cohort", "asset", "name", "extension"):
            value = getattr(self, attribute)
            if not _NAME.fullmatch(value) or value in {".", ".."}:
                raise ValueError(f"{attribute} {value!r}: use letters, digits, '.', '_' and '-'")
        if "." in self.extension or f".{self.extension}" == _TEMPORARY:
            raise ValueError(f"extension {self.extension!r}: no dot, and not 'tmp'")

    @property
    def key(self) -> str:
        """``<cohort>/<asset>/<name>.<extension>``."""
        return f"{self.cohort}/{self.asset}/{self.name}.{self.extension}"


class ArtefactStore(dg.ConfigurableResource):
    """Local folder or S3 prefix that holds every artefact of every cohort.

    See `mm_assets.cohort.s3` for where S3's credentials, region and address come from.

    Examples
    --------
    >>> import tempfile
    >>> store = ArtefactStore(uri=tempfile.mkdtemp())
    >>> ref = ArtefactRef("demo", "cohort_report", "cohort", "html")
    >>> store.write_bytes(ref, b"<p>done</p>")[:19]
    'sha256:3f5f01045d88'
    >>> store.read_bytes(ref)
    b'<p>done</p>'
    """

    uri: str = Field(description="Folder, or s3://bucket/prefix.")

    def write_arrow(self, ref: ArtefactRef, table: pa.Table, provenance: Provenance) -> str:
        """Write an uncompressed Arrow IPC file of one record batch; return the content digest."""
        table = _stamped(table.combine_chunks(), provenance)

        def write(sink: Sink) -> None:
            with pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)

        def rows(path: Path) -> int:
            return _open_arrow(pa.memory_map(str(path))).num_rows

        self._publish(ref.key, write, lambda path: rows(path) == table.num_rows)
        return table_digest(table)

    def write_table(
        self, ref: ArtefactRef, frame: pa.Table | pd.DataFrame, provenance: Provenance
    ) -> str:
        """Write a Parquet file (zstd); return the content digest. A named index is kept."""
        if not isinstance(frame, pa.Table):
            named = any(name is not None for name in frame.index.names)
            frame = pa.Table.from_pandas(frame, preserve_index=named)
        table = _stamped(frame, provenance)
        self._publish(
            ref.key,
            lambda sink: pq.write_table(table, sink, compression="zstd"),
            lambda path: pq.read_metadata(path).num_rows == table.num_rows,
        )
        return table_digest(table)

    def write_bytes(
        self, ref: ArtefactRef, data: bytes, provenance: Provenance | None = None
    ) -> str:
        """Write a file as it is (HTML, PNG, JSON); return the digest of its bytes.

        Such files have no room for provenance, so it goes into a small file beside the asset.
        """
        digest = bytes_digest(data)
        if provenance is not None:
            beside = {"digest": digest, "provenance": asdict(provenance)}
            self.put(_provenance_key(ref), canonical_json(beside))
        self.put(ref.key, data)
        return digest

    def write_file(self, ref: ArtefactRef, make: Callable[[Path], Any]) -> str:
        """Let `make` write a file of any size to a path; return the digest of its bytes.

        Nothing is published when `make` raises. The file has no provenance of its own: write an
        artefact that has one beside it.
        """
        with self._explained(ref.key, "write"), self._draft(ref.key) as draft:
            make(draft)
            digest = file_digest(draft)
            if self._is_local:
                _synchronise(draft)
                os.replace(draft, self._path(ref.key))
            else:
                upload_file(draft, self._path(ref.key))
        return digest

    def read_arrow(self, ref: ArtefactRef) -> pa.Table:
        """Arrow table; memory-mapped without a copy where the store is a local folder."""
        with self._opened(ref.key) as source:
            return _open_arrow(source)

    def read_table(self, ref: ArtefactRef) -> pd.DataFrame:
        """Table as written, its named index restored."""
        with self._opened(ref.key) as source:
            return pq.ParquetFile(source).read().to_pandas()

    def read_bytes(self, ref: ArtefactRef) -> bytes:
        """Content of the file."""
        return self.get(ref.key)

    def provenance(self, ref: ArtefactRef) -> Provenance | None:
        """What made the artefact; None when it was written without, or by somebody else."""
        if ref.extension not in ("arrow", "parquet"):
            return self._provenance_beside(ref)
        with self._opened(ref.key) as source:
            if ref.extension == "arrow":
                metadata = pa.ipc.open_file(source).schema.metadata
            else:
                metadata = pq.read_metadata(source).metadata
        stamp = (metadata or {}).get(METADATA_KEY)
        return Provenance.from_json(stamp) if stamp else None

    def exists(self, ref: ArtefactRef) -> bool:
        """Whether the artefact is in the store."""
        return self.has(ref.key)

    def delete(self, ref: ArtefactRef) -> None:
        """Remove the artefact and its provenance; nothing happens when it is not there."""
        for key in (ref.key, _provenance_key(ref)):
            self.remove(key)

    def address(self, ref: ArtefactRef) -> str:
        """Absolute path or ``s3://`` address of the artefact, whether or not it exists."""
        path = self._path(ref.key)
        return path if self._is_local else f"s3://{path}"

    def local_path(self, ref: ArtefactRef) -> Path | None:
        """File of the artefact, whether or not it exists; None on S3."""
        return Path(self._path(ref.key)) if self._is_local else None

    def sweep(self, older_than_hours: float = 24.0) -> tuple[str, ...]:
        """Remove what killed processes left half-written; return the paths.

        On S3 nothing half-written is visible; a bucket lifecycle rule ends broken uploads.
        """
        if not self._is_local:
            return ()
        oldest = time.time() - older_than_hours * 3600
        swept = []
        for path in Path(self._root).rglob(f".*{_TEMPORARY}"):
            if path.stat().st_mtime < oldest:
                path.unlink(missing_ok=True)
                swept.append(str(path))
        return tuple(swept)

    # Keys without meaning to the store, for receipts and other small records.

    def put(self, key: str, data: bytes) -> None:
        """Write bytes under a key of the caller's making, atomically."""
        self._publish(key, lambda sink: sink.write(data), lambda path: True)

    def get(self, key: str) -> bytes:
        """Bytes under a key.

        Raises
        ------
        MissingArtefact
            When nothing is there.
        """
        with self._explained(key, "read"):
            return bytes(self._filesystem.open_input_file(self._path(key)).read())

    def has(self, key: str) -> bool:
        """Whether there is a file under a key."""
        with self._explained(key, "look for"):
            return bool(self._filesystem.get_file_info(self._path(key)).is_file)

    def remove(self, key: str) -> None:
        """Remove the file under a key, if it is there."""
        with self._explained(key, "delete"):
            if self.has(key):
                self._filesystem.delete_file(self._path(key))

    def files(self, folder: str) -> tuple[str, ...]:
        """Sorted names of the files directly in a folder; empty when there is no such folder."""
        selector = pafs.FileSelector(self._path(folder), allow_not_found=True)
        with self._explained(folder, "list"):
            found = self._filesystem.get_file_info(selector)
        return tuple(sorted(i.base_name for i in found if i.is_file and not _is_temporary(i)))

    def list(self, cohort: str, asset: str) -> tuple[ArtefactRef, ...]:
        """Every artefact of an asset, sorted by file name."""
        parts = (file.rpartition(".") for file in self.files(f"{cohort}/{asset}"))
        # Some file managers leave files of their own, such as .DS_Store.
        return tuple(ArtefactRef(cohort, asset, name, ext) for name, _, ext in parts if name)

    @cached_property
    def _is_local(self) -> bool:
        return not self.uri.startswith("s3://")

    @cached_property
    def _root(self) -> str:
        if self._is_local:
            return str(Path(self.uri.removeprefix("file://")).expanduser().absolute())
        return self.uri.removeprefix("s3://").rstrip("/")

    @cached_property
    def _filesystem(self) -> pafs.FileSystem:
        return pafs.LocalFileSystem() if self._is_local else s3_filesystem(self._root.split("/")[0])

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    @contextmanager
    def _opened(self, key: str) -> Iterator[pa.NativeFile]:
        with self._explained(key, "read"):
            try:
                local = self._is_local
                yield pa.memory_map(self._path(key)) if local else pa.BufferReader(self.get(key))
            except pa.ArrowInvalid as error:
                raise StoreError(
                    f"{key}: damaged in {self.uri}: {error}. Delete it and materialize it again."
                ) from error

    def _provenance_beside(self, ref: ArtefactRef) -> Provenance | None:
        if not self.has(_provenance_key(ref)):
            return None
        beside = json.loads(self.get(_provenance_key(ref)))
        # A process killed between the two writes leaves the note of a file that never came.
        if beside["digest"] != bytes_digest(self.read_bytes(ref)):
            return None
        return Provenance(**beside["provenance"])

    def _publish(
        self, key: str, write: Callable[[Sink], Any], verify: Callable[[Path], bool]
    ) -> None:
        with self._explained(key, "write"):
            if self._is_local:
                self._publish_file(key, write, verify)
            else:
                self._publish_object(key, write)

    def _publish_file(
        self, key: str, write: Callable[[Sink], Any], verify: Callable[[Path], bool]
    ) -> None:
        with self._draft(key) as temporary:
            with open(temporary, "wb") as sink:
                write(sink)
                sink.flush()
                length = sink.tell()
                os.fsync(sink.fileno())
            if temporary.stat().st_size != length or not verify(temporary):
                raise StoreError(f"{key}: the file read back differs from what was written")
            os.replace(temporary, self._path(key))

    @contextmanager
    def _draft(self, key: str) -> Iterator[Path]:
        """Path of a local file that is gone afterwards, unless it was renamed."""
        # Short and in the same folder: the longest slide id still fits, and renaming is atomic.
        folder = Path(self._path(key)).parent if self._is_local else Path(tempfile.gettempdir())
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f".{uuid.uuid4().hex}{_TEMPORARY}"
        try:
            yield draft
        finally:
            draft.unlink(missing_ok=True)

    def _publish_object(self, key: str, write: Callable[[Sink], Any]) -> None:
        buffer = pa.BufferOutputStream()
        write(buffer)
        data = buffer.getvalue()  # whole before the upload starts: closing a stream publishes it
        kind = mimetypes.guess_type(key)[0] or "application/octet-stream"
        path = self._path(key)
        with self._filesystem.open_output_stream(path, metadata={"Content-Type": kind}) as sink:
            sink.write(data)
        if self._filesystem.get_file_info(path).size != data.size:
            raise StoreError(f"{key}: the object read back differs in length from what was written")

    @contextmanager
    def _explained(self, key: str, verb: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise MissingArtefact(
                f"{key}: not in the store {self.uri}; materialize the asset that makes it"
            ) from error
        except OSError as error:
            kind = StoreFullError if error.errno in _FULL else StoreError
            raise kind(
                f"{key}: cannot {verb} it in {self.uri}: {error}. {_advice(error)}"
            ) from error


def _stamped(table: pa.Table, provenance: Provenance) -> pa.Table:
    metadata: Mapping[bytes, bytes] = table.schema.metadata or {}
    return table.replace_schema_metadata({**metadata, METADATA_KEY: provenance.to_json().encode()})


def _open_arrow(source: pa.NativeFile) -> pa.Table:
    return pa.ipc.open_file(source).read_all()


def _synchronise(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _provenance_key(ref: ArtefactRef) -> str:
    return f"{ref.cohort}/_provenance/{ref.asset}/{ref.name}.{ref.extension}.json"


def _is_temporary(info: pafs.FileInfo) -> bool:
    return info.base_name.startswith(".") and info.base_name.endswith(_TEMPORARY)


def _advice(error: OSError) -> str:
    match error.errno:
        case number if number in _FULL:
            return "Free some space or move the store, then run again: finished work is kept."
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return "Give this user the right to write there."
    return "Check that the place can be reached with these credentials, then run again."
