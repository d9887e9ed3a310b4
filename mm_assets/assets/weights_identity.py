"""Which content a cohort's weights have: others may be put at the same path or address."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from mm_assets.cohort.config import is_path
from mm_assets.cohort.objects import explained, list_objects
from mm_assets.cohort.sources import is_remote
from mm_assets.encoders.catalogue import weights_file
from mm_assets.resources.digest import file_digest

ABSENT = "absent"


def weights_identities(given: Mapping[str, str]) -> dict[str, str]:
    """Setting -> what identifies the content of the file that it names.

    The same on every machine: the SHA-256 of a file, the entity tag of an object. A file is read
    once, until it changes. Weights that are no file (``imagenet``, ``random:0``, ``hub``,
    ``cohort``) are left out: their name, or what made them, says which they are.

    Parameters
    ----------
    given
        Setting -> weights as the YAML has them.

    Raises
    ------
    OSError
        When a file cannot be read or S3 does not say what is there.
    """
    return {setting: _identity(weights) for setting, weights in given.items() if is_path(weights)}


def _identity(weights: str) -> str:
    place = weights_file(weights)
    if is_remote(place):
        return _entity_tag(place)
    path = Path(place)
    if not path.is_file():
        return ABSENT
    facts = path.stat()
    return _digest(path, facts.st_size, facts.st_mtime_ns)


def _entity_tag(address: str) -> str:
    bucket, key = urlsplit(address).netloc, urlsplit(address).path.removeprefix("/")
    with explained(address):
        found = list_objects(bucket, key)
    return next((f"etag:{each.etag}" for each in found if each.key == key), ABSENT)


@cache
def _digest(path: Path, size: int, changed: int) -> str:
    return file_digest(path)
