"""Local copies of slides that lie under `s3://`: bounded in size, shared by threads and processes.

Weights of encoders are kept in the same way, in a folder of their own.

One folder for each content, ``<digest of address and entity tags>.<bytes>``. Who fetches or uses a
slide holds a shared lock on its folder, who removes it an exclusive one, and who fetches it also
one on the folder it is fetched into, from which a rename makes it visible. The kernel frees the
locks of a process that dies, however it dies.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from mm_assets.cohort.objects import RemoteObject, download, explained, list_objects
from mm_assets.cohort.s3 import s3_client
from mm_assets.cohort.sources import is_remote

LIMIT_VARIABLE, DEFAULT_LIMIT_GB = "MM_SLIDE_CACHE_GB", 50.0
_WHOLE, _FETCH = "whole", "fetch"


@dataclass(frozen=True)
class _RemoteSlide:
    """Objects of one slide, the one that is opened first."""

    bucket: str
    objects: tuple[RemoteObject, ...]

    @cached_property
    def size(self) -> int:
        return sum(part.size for part in self.objects)

    @cached_property
    def entry(self) -> str:
        """Folder name in the cache."""
        facts = "\n".join(f"{self.bucket}/{o.key} {o.size} {o.etag}" for o in self.objects)
        return f"{hashlib.sha256(facts.encode()).hexdigest()[:24]}.{self.size}"

    def place(self, part: RemoteObject) -> PurePosixPath:
        """Path of a part within the slide's folder."""
        return PurePosixPath(part.key).relative_to(PurePosixPath(self.objects[0].key).parent)


def cache_limit() -> int:
    """Bytes the cache may hold: `MM_SLIDE_CACHE_GB`, by default 50 GB.

    Raises
    ------
    ValueError
        When the variable is not a number of gigabytes.
    """
    text = os.environ.get(LIMIT_VARIABLE, str(DEFAULT_LIMIT_GB))
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = -1.0
    if not 0 <= gigabytes < 1e9:
        raise ValueError(f"{LIMIT_VARIABLE}={text!r}: give a number of gigabytes, such as 50")
    return int(gigabytes * 1e9)


@contextmanager
def local_copy(path: str, folder: Path) -> Iterator[Path]:
    """A local file with the content, there for as long as the context is open.

    A local path is given as it is. An S3 object is fetched into the cache in `folder`, by one
    thread of one process however many ask for it; a ``.mrxs`` brings its folder. To keep the
    limit the slides used longest ago are removed, never one in use: those may exceed the limit
    until they are closed, and so may a slide that is larger than the limit.

    Raises
    ------
    FileNotFoundError
        When the object is missing.
    OSError
        When it cannot be read, changes while it is fetched, does not match the checksum that S3
        has of it, or there is no space. Nothing of it is left then.
    ValueError
        When the cache's limit is not a number.
    """
    if not is_remote(path):
        yield Path(path)
        return
    with explained(PurePosixPath(path).name):
        slide = _describe(path)
        handle = _hold(slide, folder)
    try:
        yield folder / slide.entry / _WHOLE / slide.place(slide.objects[0])
    finally:
        os.close(handle)
        with locked(folder) as present:
            if present:
                _make_room(folder, 0)


def _describe(path: str) -> _RemoteSlide:
    address = urlsplit(path)
    bucket, key = address.netloc, path.removeprefix(f"s3://{address.netloc}/")
    facts = s3_client().head_object(Bucket=bucket, Key=key)
    objects = [RemoteObject(key, facts["ContentLength"], facts["ETag"])]
    if key.lower().endswith(".mrxs"):
        prefix = str(PurePosixPath(key).with_suffix("")) + "/"
        objects += list_objects(bucket, prefix)
    if any(".." in PurePosixPath(part.key).parts for part in objects):
        raise OSError("a part of it is named '..', which would leave the cache: rename it")
    return _RemoteSlide(bucket, tuple(objects))


def _hold(slide: _RemoteSlide, folder: Path) -> int:
    """Shared lock on the slide's folder in the cache, which is filled first where it is not."""
    entry = folder / slide.entry
    handle = _pin(entry, slide.size)
    try:
        (entry / _FETCH).mkdir(exist_ok=True)
        with locked(entry / _FETCH):
            if not (entry / _WHOLE).exists():
                _fetch(slide, entry)
    except BaseException:
        os.close(handle)
        _discard(entry)
        raise
    return handle


def _pin(entry: Path, size: int) -> int:
    """Shared lock on a slide's folder, made where there is none, with room for the slide."""
    folder = entry.parent
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        if not entry.exists():
            with locked(folder):
                _make_room(folder, size)
                entry.mkdir(exist_ok=True)
        handle = _lock(entry, fcntl.LOCK_SH)
        if handle is not None:
            os.utime(entry)  # the time of last use
            return handle


def _make_room(folder: Path, wanted: int) -> None:
    """Remove the slides used longest ago until `wanted` bytes more fit; those in use stay."""
    entries = {e: int(e.suffix[1:]) for e in folder.iterdir() if e.suffix[1:].isdigit()}
    excess = sum(entries.values()) + wanted - cache_limit()
    excess = max(excess, wanted - shutil.disk_usage(folder).free if wanted else 0)
    if excess <= 0:
        return
    for entry in sorted(entries, key=_last_use):
        if _discard(entry):
            excess -= entries[entry]
        if excess <= 0:
            return


def _last_use(entry: Path) -> int:
    try:
        return entry.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _discard(entry: Path) -> bool:
    """Remove a slide, unless somebody uses it."""
    handle = _lock(entry, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if handle is None:
        return False
    try:
        # First by one rename, for a kill must not leave half a slide that looks whole.
        with suppress(FileNotFoundError):
            (entry / _WHOLE).rename(entry / _FETCH / _WHOLE)
        shutil.rmtree(entry)
    finally:
        os.close(handle)
    return True


def _fetch(slide: _RemoteSlide, entry: Path) -> None:
    """Download all of a slide, or leave nothing."""
    draft = entry / _FETCH / _WHOLE
    shutil.rmtree(draft, ignore_errors=True)  # what a killed process left
    try:
        for part in slide.objects:
            target = draft / slide.place(part)
            target.parent.mkdir(parents=True, exist_ok=True)
            download(slide.bucket, part, target)
        draft.rename(entry / _WHOLE)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Alone among threads and processes with a folder; False when there is none."""
    handle = _lock(folder, fcntl.LOCK_EX)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            os.close(handle)


def _lock(folder: Path, how: int) -> int | None:
    """Handle that holds a lock on a folder; None when it is gone, or locked and not waited for."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, how)
        if _is(handle, folder):
            return handle
    except BlockingIOError:
        pass
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None


def _is(handle: int, folder: Path) -> bool:
    """Whether the open folder is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(handle), folder.stat())
    except FileNotFoundError:
        return False
