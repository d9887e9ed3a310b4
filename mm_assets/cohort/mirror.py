"""Cohorts below an `s3://` address: their YAML and tables, on this machine too.

A folder for the address has each object once, named by what identifies it, and a tree of links to
them; the link `current` is moved to the tree of the latest state by one rename. A process that is
killed on the way leaves nothing that is taken for whole.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath

from mm_assets.cohort.cache import locked
from mm_assets.cohort.folders import mm_home
from mm_assets.cohort.objects import RemoteObject, download, explained, list_objects
from mm_assets.cohort.sources import SLIDE_EXTENSIONS

_FOLDER = "cache/cohorts"
_OBJECTS, _CURRENT, _DRAFT = "objects", "current", "draft"


def mirrored(address: str) -> Path:
    """Folder with what lies below an address, slides and hidden files excepted.

    S3 is asked once in a process, which sees one state of a cohort for as long as it lives or
    until another process asks. What has not changed is not fetched again, and what is gone from S3
    is gone here.

    Raises
    ------
    OSError
        When there is nothing, S3 refuses, or a name would lead out of the folder.
    """
    return _mirrored(address.rstrip("/"), mm_home())


@cache
def _mirrored(address: str, home: Path) -> Path:
    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    prefix = f"{prefix}/" if prefix else ""
    folder = home / _FOLDER / _digest(address)
    with explained(address):
        (folder / _OBJECTS).mkdir(parents=True, exist_ok=True)
        # The listing is inside: no earlier one may be put in the place of a later one.
        with locked(folder):
            files = _wanted(list_objects(bucket, prefix), prefix)
            _show(folder, _fetch(folder / _OBJECTS, bucket, files))
        if not files:
            raise OSError("nothing is there: put the folder of a cohort there")
    return folder / _CURRENT


def _wanted(objects: Sequence[RemoteObject], prefix: str) -> dict[PurePosixPath, RemoteObject]:
    """Path below the address -> object, of those that are brought."""
    names = {part.key.removeprefix(prefix): part for part in objects}
    for name in names:
        if {"", ".", ".."} & set(name.split("/")):
            raise OSError(f"the name {name!r} would lead out of the folder: rename it")
    files = {PurePosixPath(name): part for name, part in names.items()}
    slides = {path for path in files if path.suffix.lower() in SLIDE_EXTENSIONS}
    # A MIRAX slide has a folder of its own name.
    slides |= {path.with_suffix("") for path in slides if path.suffix.lower() == ".mrxs"}
    return {
        path: part
        for path, part in files.items()
        if not slides & {path, *path.parents} and not any(n.startswith(".") for n in path.parts)
    }


def _fetch(
    kept: Path, bucket: str, files: Mapping[PurePosixPath, RemoteObject]
) -> dict[PurePosixPath, Path]:
    """Path below the address -> file in the folder `kept`, which then holds no other."""
    places = {path: kept / _digest(f"{o.key} {o.size} {o.etag}") for path, o in files.items()}
    for path, place in places.items():
        if not place.exists():
            draft = kept / _DRAFT
            download(bucket, files[path], draft)
            draft.rename(place)
    for place in set(kept.iterdir()) - set(places.values()):
        place.unlink()
    return places


def _show(folder: Path, places: Mapping[PurePosixPath, Path]) -> None:
    """Make a tree of these files what the folder shows, and remove all others."""
    tree = folder / _digest("\n".join(f"{path} {places[path].name}" for path in sorted(places)))
    draft, link = folder / _DRAFT, folder / f"{_DRAFT}.{_CURRENT}"
    if not tree.exists():
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        for path, place in places.items():
            (draft / path).parent.mkdir(parents=True, exist_ok=True)
            os.link(place, draft / path)
        draft.rename(tree)
    link.unlink(missing_ok=True)
    link.symlink_to(tree.name)
    link.rename(folder / _CURRENT)
    for other in {*folder.iterdir()} - {tree, folder / _CURRENT, folder / _OBJECTS}:
        shutil.rmtree(other)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]
