"""Slide files in a folder or under an `s3://` prefix: listing and identity."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import pyarrow.fs as pafs

from mm_assets.cohort.s3 import s3_filesystem

SLIDE_EXTENSIONS = frozenset(
    {".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".dcm"}
)
_S3 = "s3://"


@dataclass(frozen=True)
class SlideFile:
    """A file and what identifies its present content without reading it.

    Attributes
    ----------
    path
        Absolute path or ``s3://`` address.
    size
        Bytes.
    stamp
        Time of the last change, nanoseconds since 1970.
    """

    path: str
    size: int
    stamp: str


def is_remote(path: str) -> bool:
    """Whether `path` is an ``s3://`` address."""
    return path.startswith(_S3)


def list_files(root: str) -> list[SlideFile]:
    """All files under a folder or ``s3://`` prefix, by path; hidden ones are left out.

    Links to folders are not followed, links to files are.

    Raises
    ------
    OSError
        When the folder or bucket does not exist or may not be read.
    """
    found = _list_remote(root) if is_remote(root) else _list_local(Path(root))
    return sorted(found, key=lambda file: file.path)


def list_slides(root: str) -> list[SlideFile]:
    """The files of `list_files` that have the extension of a slide format."""
    return [f for f in list_files(root) if PurePosixPath(f.path).suffix.lower() in SLIDE_EXTENSIONS]


def stamps(paths: Iterable[str]) -> dict[str, str]:
    """Size and time of the last change of each file, as text; ``absent`` where there is none.

    Raises
    ------
    OSError
        When an S3 bucket cannot be listed.
    """
    wanted = list(paths)
    remote = [path for path in wanted if is_remote(path)]
    known: dict[str, SlideFile] = {}
    for bucket in {urlsplit(path).netloc for path in remote}:
        inside = [path for path in remote if urlsplit(path).netloc == bucket]
        # One listing is a request per 1,000 objects; asking for each would be one per object.
        prefix = os.path.commonpath([str(PurePosixPath(p[len(_S3) :]).parent) for p in inside])
        known |= {file.path: file for file in _list_remote(_S3 + prefix)}
    for path in wanted:
        if not is_remote(path) and os.path.isfile(path):
            known[path] = _local_file(Path(path))
    return {
        path: f"{known[path].size} bytes, {known[path].stamp}" if path in known else "absent"
        for path in wanted
    }


def is_file(path: str) -> bool:
    """Whether there is a file at a path or ``s3://`` address.

    Raises
    ------
    OSError
        When S3 does not say.
    """
    if not is_remote(path):
        return os.path.isfile(path)
    filesystem, key = _opened(path)
    return bool(filesystem.get_file_info(key).type == pafs.FileType.File)


def leads_outside(root: str, path: str) -> bool:
    """Whether `path` (absolute, or relative to `root`) is not under `root`, links resolved."""
    if is_remote(root):
        inside = path.removeprefix(root.rstrip("/") + "/")
        return is_remote(inside) or inside.startswith("/") or ".." in PurePosixPath(inside).parts
    return is_remote(path) or not (Path(root) / path).resolve().is_relative_to(Path(root).resolve())


def absolute(root: str, path: str) -> str:
    """`path` under `root` as an absolute path or ``s3://`` address."""
    if is_remote(root):
        return path if is_remote(path) else f"{root.rstrip('/')}/{PurePosixPath(path)}"
    return os.path.normpath(Path(root).absolute() / path)


def _list_local(root: Path) -> Iterator[SlideFile]:
    def refuse(error: OSError) -> None:
        raise error

    for folder, folders, names in os.walk(root.absolute(), onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(folder, name) for name in names if not name.startswith(".")):
            if path.is_file():
                yield _local_file(path)


def _local_file(path: Path) -> SlideFile:
    facts = path.stat()
    return SlideFile(str(path), facts.st_size, str(facts.st_mtime_ns))


def _list_remote(root: str) -> Iterator[SlideFile]:
    filesystem, key = _opened(root)
    bucket = key.partition("/")[0]
    selector = pafs.FileSelector(key.rstrip("/"), recursive=True, allow_not_found=True)
    found = filesystem.get_file_info(selector)
    if not found and filesystem.get_file_info(bucket).type == pafs.FileType.NotFound:
        raise FileNotFoundError(f"no such bucket: {bucket}")
    for info in found:
        if info.type == pafs.FileType.File and not info.base_name.startswith("."):
            yield SlideFile(_S3 + info.path, info.size, str(info.mtime_ns))


def _opened(path: str) -> tuple[pafs.S3FileSystem, str]:
    """File system and key (``bucket/name``) of an address."""
    key = path.removeprefix(_S3)
    return s3_filesystem(key.partition("/")[0]), key
