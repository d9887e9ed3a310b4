"""State of a training that can be killed, in a file that is replaced atomically."""

import io
from pathlib import Path
from typing import Any

import torch

from mm_assets.files import publish


class Checkpoint:
    """A training's state after its last whole epoch.

    Parameters
    ----------
    path
        Of the file. What the data are is not part of its key: name it by their versions.
    key
        Digest of what determines the training; a file with another key is ignored.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path, self._key = path, key

    def load(self) -> dict[str, Any] | None:
        """The stored state, on the CPU, where there is one of this training."""
        if not self._path.exists():
            return None
        saved = torch.load(self._path, map_location="cpu", weights_only=True)
        return dict(saved["state"]) if saved["key"] == self._key else None

    def save(self, state: dict[str, Any]) -> None:
        """Replace the file."""
        buffer = io.BytesIO()
        torch.save({"key": self._key, "state": state}, buffer)
        publish(self._path, buffer.getbuffer())
