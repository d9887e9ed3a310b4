"""What lies on S3 for one job: its order, and the messages it sends.

The prefix is the job's own, and there from before the job is created until its outcome is known, so
that after a crash of the orchestrator it tells which job to look for.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from dagster import PipesMessageReader
from dagster._core.pipes.context import PipesMessageHandler

ORDER = "order.json"


@dataclass(frozen=True)
class JobFolder:
    """The S3 prefix of one job: its order, and the messages it sends."""

    s3: Any = field(repr=False)
    bucket: str
    prefix: str

    @property
    def address(self) -> str:
        """Address of the prefix."""
        return f"s3://{self.bucket}/{self.prefix}"

    @property
    def inputs(self) -> str:
        """Address of what the job is given."""
        return f"{self.address}/input"

    @property
    def outputs(self) -> str:
        """Address of what the service keeps of a job."""
        return f"{self.address}/output"

    @property
    def messages(self) -> str:
        """Prefix of the keys of its messages."""
        return f"{self.prefix}/messages"

    def put(self, name: str, content: bytes) -> None:
        """Give the job a file."""
        self.s3.put_object(Bucket=self.bucket, Key=f"{self.prefix}/input/{name}", Body=content)

    def get(self, key: str) -> bytes | None:
        """Content of a key below the prefix, or None."""
        try:
            answer = self.s3.get_object(Bucket=self.bucket, Key=f"{self.prefix}/{key}")
        except self.s3.exceptions.NoSuchKey:
            return None
        return bytes(answer["Body"].read())

    def order(self) -> dict[str, Any] | None:
        """What the job was told, if it is still there."""
        content = self.get(f"input/{ORDER}")
        return json.loads(content) if content else None

    def age(self) -> float:
        """Seconds since the order was put; 0 where there is none."""
        pages = self._pages(f"{self.prefix}/input/{ORDER}")
        put = [found["LastModified"] for page in pages for found in page.get("Contents", ())]
        return (datetime.now(UTC) - put[0]).total_seconds() if put else 0.0

    def clear(self) -> None:
        """Remove everything of the job."""
        for page in self._pages(f"{self.prefix}/"):
            keys = [{"Key": found["Key"]} for found in page.get("Contents", ())]
            # The order goes last: as long as it is there, the job is looked for.
            keys.sort(key=lambda found: found["Key"].startswith(f"{self.prefix}/input/"))
            if keys:
                self.s3.delete_objects(Bucket=self.bucket, Delete={"Objects": keys})

    def _pages(self, prefix: str) -> Iterable[dict[str, Any]]:
        pages: Iterable[dict[str, Any]] = self.s3.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=prefix
        )
        return pages


def jobs_root(store: str, cohort: str, stage: str) -> str:
    """Address below which the jobs of a stage have their folders."""
    return f"{store.rstrip('/')}/{cohort}/_jobs/{stage}"


def job_folders(s3: Any, bucket: str, prefix: str) -> dict[str, JobFolder]:
    """Folders of jobs whose outcome nobody has taken yet: name -> folder below the prefix."""
    pages = s3.get_paginator("list_objects_v2").paginate(
        Bucket=bucket, Prefix=f"{prefix}/", Delimiter="/"
    )
    found = [part["Prefix"] for page in pages for part in page.get("CommonPrefixes", ())]
    names = [below.rstrip("/").rpartition("/")[2] for below in found]
    return {name: JobFolder(s3, bucket, f"{prefix}/{name}") for name in names}


class FolderMessageReader(PipesMessageReader):
    """Reads a job's messages from its folder, whenever asked to."""

    def __init__(self, folder: JobFolder) -> None:
        self.folder = folder
        self.exception: Mapping[str, Any] | None = None
        self._next = 1
        self._handler: PipesMessageHandler | None = None

    @contextmanager
    def read_messages(self, handler: PipesMessageHandler) -> Iterator[dict[str, Any]]:
        """Where the job is to write its messages."""
        self._handler = handler
        yield {"bucket": self.folder.bucket, "key_prefix": self.folder.messages}

    @property
    def expected_writer_count(self) -> int:
        """One process writes; Dagster's own default warns that it may change."""
        return 1

    def poll(self) -> None:
        """Hand on the messages that have come since."""
        assert self._handler is not None
        while (content := self.folder.get(f"messages/{self._next}.json")) is not None:
            self._next += 1
            for line in content.decode().splitlines():
                message = json.loads(line)
                if message["method"] == "closed":
                    self.exception = (message["params"] or {}).get("exception")
                self._handler.handle_message(message)

    def no_messages_debug_text(self) -> str:
        """Where messages were looked for."""
        return f"Messages were looked for under s3://{self.folder.bucket}/{self.folder.messages}."
