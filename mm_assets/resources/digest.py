"""Digests of content: equal values give equal digests, whatever the file around them looks like."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def canonical_json(value: object) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes.

    Raises
    ------
    TypeError, ValueError
        When `value` holds something JSON cannot, NaN and infinity included.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def bytes_digest(data: bytes) -> str:
    """``sha256:<hex>`` of raw bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def file_digest(path: Path) -> str:
    """``sha256:<hex>`` of a file's bytes, equal to `bytes_digest` of them."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def table_digest(table: pa.Table) -> str:
    """``sha256:<hex>`` over column names, types and values.

    Independent of chunking, slicing, metadata and physical encoding (dictionary or plain, 32- or
    64-bit string offsets, bytes hidden under nulls, bit pattern of NaN).
    """
    hasher = hashlib.sha256()
    _hash_text(hasher, f"table {table.num_columns}")
    for name, column in zip(table.column_names, table.columns, strict=True):
        _hash_text(hasher, name)
        _hash_array(hasher, _one_array(column))
    return f"sha256:{hasher.hexdigest()}"


def _hash_text(hasher: "hashlib._Hash", text: str) -> None:
    data = text.encode()
    hasher.update(len(data).to_bytes(8, "little") + data)


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    if pa.types.is_string(column.type):  # 32-bit offsets might not reach over all chunks
        column = column.cast(pa.large_string())
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks or [pa.array([], column.type)])


def _hash_array(hasher: "hashlib._Hash", array: pa.Array) -> None:
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if isinstance(array, pa.DictionaryArray):
        array = array.dictionary_decode()
    kind = array.type
    _hash_text(hasher, f"{len(array)} values, {array.null_count} null")
    if array.null_count:
        hasher.update(np.packbits(_valid(array)).tobytes())
    if pa.types.is_null(kind):
        _hash_text(hasher, "null")
    elif pa.types.is_struct(kind):
        _hash_text(hasher, f"struct {kind.num_fields}")
        for index, child in enumerate(array.flatten()):
            _hash_text(hasher, kind.field(index).name)
            _hash_array(hasher, child)
    elif pa.types.is_fixed_size_list(kind):
        _hash_text(hasher, f"fixed_size_list {kind.list_size}")
        _hash_array(hasher, array.flatten())
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        _hash_text(hasher, "list")
        _hash_fixed_width(hasher, pc.list_value_length(array).cast(pa.int64()))
        _hash_array(hasher, array.flatten())
    elif _is_text(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        _hash_strings(hasher, array)
    elif pa.types.is_boolean(kind):
        _hash_text(hasher, "bool")
        _hash_fixed_width(hasher, array.cast(pa.uint8()))
    elif pa.types.is_primitive(kind) or pa.types.is_decimal(kind):
        _hash_text(hasher, str(kind))
        _hash_fixed_width(hasher, array)
    else:
        raise TypeError(f"columns of type {kind} cannot be stored: no content digest is defined")


def _valid(array: pa.Array) -> np.ndarray:
    return np.asarray(array.is_valid().to_numpy(zero_copy_only=False), dtype=bool)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _hash_strings(hasher: "hashlib._Hash", array: pa.Array) -> None:
    text = _is_text(array.type)
    _hash_text(hasher, "string" if text else "binary")
    values = array.drop_null().cast(pa.large_string() if text else pa.large_binary())
    _hash_fixed_width(hasher, pc.binary_length(values))
    _, offsets, data = values.buffers()
    if len(values) and data is not None:
        # A slice shares its parent's buffers: take only the bytes between its own offsets.
        ends = np.frombuffer(offsets, np.int64)[[values.offset, values.offset + len(values)]]
        hasher.update(memoryview(data)[ends[0] : ends[1]])


def _hash_fixed_width(hasher: "hashlib._Hash", array: pa.Array) -> None:
    if not len(array):
        return
    width = array.type.bit_width // 8
    raw = np.frombuffer(array.buffers()[1], np.uint8, len(array) * width, array.offset * width)
    if pa.types.is_floating(array.type):
        values = raw.view(f"f{width}")
        unknown = np.isnan(values)
        if unknown.any():
            raw = np.where(unknown, np.array(np.nan, values.dtype), values).view(np.uint8)
    if array.null_count:
        raw = np.where(_valid(array)[:, None], raw.reshape(-1, width), np.uint8(0))
    hasher.update(np.ascontiguousarray(raw).data)
