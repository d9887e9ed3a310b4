"""Files that appear whole or not at all."""

import os
import uuid
from pathlib import Path


def publish(path: Path, content: bytes | memoryview) -> None:
    """Write a file under a temporary name, synchronise it and rename it; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
