"""The one exception of the imaging stages."""

import re
from pathlib import Path

_FOLDERS = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?(?:[/\\][^\s/\\:'\"]+)*[/\\](?=[^\s/\\:'\"]+)")


class SlideError(ValueError):
    """A slide cannot be used; the message is one sentence for people, without folder names."""


def without_folders(message: str, path: Path) -> str:
    """`message` of a library with every folder taken out; file names stay.

    Folders name users, hospitals and mounts, and messages end in reports and the UI.
    """
    plain = message.replace(f"{path.absolute().parent}/", "").replace(f"{path.parent}/", "")
    return _FOLDERS.sub("", plain)
