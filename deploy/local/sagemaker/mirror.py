"""A folder and the prefix of S3 that it is brought from or kept at."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


class Mirror:
    """Brings what is under an address to a folder, and what changes in the folder to the address.

    What vanishes from the folder stays at the address.
    """

    def __init__(self, client: Any, uri: str, folder: Path) -> None:
        self.client, self.folder = client, folder
        self.bucket, self.prefix = address(uri)
        self._known: dict[Path, tuple[int, int]] = {}

    def pull(self) -> int:
        """Bring everything; number of files."""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=self.prefix
        )
        keys = [found["Key"] for page in pages for found in page.get("Contents", ())]
        keys = [key for key in keys if not key.endswith("/")]  # the console's marks of folders
        for key in keys:
            name = key.removeprefix(self.prefix).lstrip("/") or key.rpartition("/")[2]
            target = self.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            self.client.download_file(self.bucket, key, str(target))
            self._known[target] = _state(target)
        return len(keys)

    def push(self) -> None:
        """Keep what is new or has changed since the last time."""
        for file in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            try:
                state = _state(file)
                if self._known.get(file) != state:
                    put(self.client, file, self.bucket, self.prefix, file.relative_to(self.folder))
                    self._known[file] = state
            except FileNotFoundError:
                continue  # the job has removed or renamed it meanwhile


def address(uri: str) -> tuple[str, str]:
    """Bucket and key of an ``s3://`` address."""
    parts = urlsplit(uri)
    return parts.netloc, parts.path.lstrip("/")


def put(client: Any, file: Path, bucket: str, prefix: str, name: Path | str) -> None:
    """Upload a file under a prefix."""
    client.upload_file(str(file), bucket, f"{prefix.rstrip('/')}/{name}".lstrip("/"))


def _state(file: Path) -> tuple[int, int]:
    facts = file.stat()
    return facts.st_mtime_ns, facts.st_size
