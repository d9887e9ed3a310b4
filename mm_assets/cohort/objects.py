"""Objects of S3: listed, fetched and put, each whole or not at all."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm_assets.cohort.checksums import matches
from mm_assets.cohort.s3 import s3_client


@dataclass(frozen=True)
class RemoteObject:
    """An object and what identifies its content without reading it."""

    key: str
    size: int
    etag: str


def list_objects(bucket: str, prefix: str) -> list[RemoteObject]:
    """Objects whose key begins with `prefix`; not the empty ones that stand for folders."""
    pages = s3_client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    found = [item for page in pages for item in page.get("Contents", [])]
    return [
        RemoteObject(item["Key"], item["Size"], item["ETag"])
        for item in found
        if not item["Key"].endswith("/")
    ]


def download(bucket: str, part: RemoteObject, target: Path) -> None:
    """Fetch one object in parallel ranges, all of the content that `part` names."""
    from s3transfer.manager import TransferManager
    from s3transfer.subscribers import BaseSubscriber

    class KnownContent(BaseSubscriber):
        """Every range is asked for with If-Match, so that no two contents are mixed."""

        def on_queued(self, future: Any, **_: Any) -> None:
            future.meta.provide_transfer_size(part.size)
            future.meta.provide_object_etag(part.etag)

    client = s3_client()
    with target.open("wb") as copy:
        with TransferManager(client) as transfers:
            transfers.download(bucket, part.key, copy, subscribers=[KnownContent()]).result()
        copy.flush()
        os.fsync(copy.fileno())
    facts = client.head_object(Bucket=bucket, Key=part.key, ChecksumMode="ENABLED")
    if facts["ETag"] != part.etag or target.stat().st_size != part.size:
        raise OSError("it changed while it was copied: try again")
    if not matches(target, facts):
        raise OSError("the copy does not match the checksum that S3 keeps: try again")


def upload_file(path: Path, key: str) -> None:
    """Copy a local file to ``bucket/name``, in parts where it is large; whole or not at all.

    A stream of pyarrow would publish what it has when reading the file fails half-way.

    Raises
    ------
    OSError
        The upload failed; nothing is visible under the name.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, name = key.partition("/")
    try:
        s3_client().upload_file(str(path), bucket, name)
    except (Boto3Error, BotoCoreError, ClientError) as error:
        raise OSError(str(error)) from error


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Errors of S3 and of the disk in words, as `OSError`."""
    from botocore.exceptions import BotoCoreError, ClientError
    from s3transfer.exceptions import RetriesExceededError, S3DownloadFailedError

    try:
        yield
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") == "NoSuchBucket":
            raise FileNotFoundError(f"{name}: no such bucket") from error
        code = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if code == 404:
            raise FileNotFoundError(f"{name}: no such object") from error
        raise OSError(f"{name}: S3 refuses it: {error}. Check credentials and region.") from error
    except S3DownloadFailedError as error:
        raise OSError(f"{name}: it changed while it was copied: try again") from error
    except (BotoCoreError, RetriesExceededError) as error:
        raise OSError(f"{name}: cannot be fetched: {error}. Try again.") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(
                error.errno,
                f"{name}: no space for it in the cache. Free some space, or move MM_HOME, "
                f"then run again: finished work is kept",
            ) from error
        raise OSError(f"{name}: {error}") from error
