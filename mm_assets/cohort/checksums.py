"""Checksums that S3 keeps of its objects, computed of a local copy."""

import base64
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_CHUNK_BYTES = 8 << 20


def matches(copy: Path, facts: Mapping[str, Any]) -> bool:
    """Whether a local file has the checksum of the object it was copied from.

    True where S3 keeps none of the whole object: none at all, or only one of the checksums of the
    parts it was uploaded in.

    Parameters
    ----------
    facts
        Answer to ``HeadObject`` with ``ChecksumMode=ENABLED``.
    """
    # Some servers mark neither the checksum nor its type, but the ETag of an upload in parts.
    in_parts = "-" in facts.get("ETag", "")
    if in_parts and facts.get("ChecksumType") != "FULL_OBJECT":
        return True
    for name, compute in (("SHA256", _sha256), *_cyclic().items()):
        expected = facts.get(f"Checksum{name}")
        if expected and "-" not in expected:
            return compute(copy) == base64.b64decode(expected)
    return True


def _sha256(path: Path) -> bytes:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").digest()


def _cyclic() -> dict[str, Callable[[Path], bytes]]:
    """S3's name of each cyclic redundancy check -> what computes its digest of a file."""
    from awscrt import checksums

    def digest(function: Callable[[bytes, int], int], size: int) -> Callable[[Path], bytes]:
        def compute(path: Path) -> bytes:
            value = 0
            with path.open("rb") as handle:
                while chunk := handle.read(_CHUNK_BYTES):
                    value = function(chunk, value)
            return value.to_bytes(size, "big")

        return compute

    return {
        "CRC64NVME": digest(checksums.crc64nvme, 8),
        "CRC32C": digest(checksums.crc32c, 4),
        "CRC32": digest(checksums.crc32, 4),
    }
