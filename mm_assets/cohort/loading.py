"""Finding cohorts and reading their YAML, with errors that name file, line and key."""

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from mm_assets.cohort import config as schema
from mm_assets.cohort.config import CohortConfig
from mm_assets.cohort.mirror import mirrored
from mm_assets.cohort.problems import CohortError, Problem
from mm_assets.cohort.sources import is_remote

COMPONENT = "mm_assets.CohortComponent"
COHORTS_VARIABLE = "MM_COHORTS"
FILE_NAME = "defs.yaml"
PACKAGE = Path(__file__).parents[1] / "defs"
_PATH_SEPARATOR = re.compile(rf"{os.pathsep}(?!//)")  # not the colon of an s3:// address
_SHOWN_VALUE = 60


def load_config(path: Path) -> CohortConfig:
    """Read a cohort's YAML; its paths become absolute.

    Raises
    ------
    CohortError
        With every problem found, each naming the file, the line and the key.
    """
    node = _compose(path)
    repeated = [
        Problem(_where(path, key, (key.value,)), "the key is there twice", "keep one of them")
        for key in _repeated_keys(node)
    ]
    if repeated:
        raise CohortError(repeated)
    data = yaml.safe_load(path.read_text("utf-8"))
    if not isinstance(data, dict) or data.get("type") != COMPONENT or "attributes" not in data:
        raise CohortError(
            [Problem(str(path), f"is no cohort: it needs `type: {COMPONENT}` and `attributes:`")]
        )
    surplus = [
        Problem(_where(path, key, (key.value,)), "is not a known key", "use type and attributes")
        for key, _ in node.value
        if key.value not in ("type", "attributes")
    ]
    try:
        config = CohortConfig.model_validate(data["attributes"])
    except ValidationError as error:
        attributes = _child(node, "attributes")
        found = [_problem(path, attributes, dict(detail)) for detail in error.errors()]
        raise CohortError([*surplus, *found]) from error
    if surplus:
        raise CohortError(surplus)
    return config.resolve_paths(path.absolute().parent)


def find_cohorts() -> dict[str, Path]:
    """YAML file of every cohort, by name: those of the package and those in `MM_COHORTS`.

    Every folder or ``s3://`` address of the path list `MM_COHORTS` either is a cohort's (it holds
    ``defs.yaml``), or holds cohorts' folders; what lies at an address is copied (`mirrored`). A
    file that cannot be read goes by the name of its folder, so that reading it says what is wrong.

    Raises
    ------
    CohortError
        When a folder of `MM_COHORTS` does not exist, an address cannot be read or holds nothing,
        or two cohorts have the same name.
    """
    problems: list[Problem] = []
    folders = [PACKAGE]
    for part in _PATH_SEPARATOR.split(os.environ.get(COHORTS_VARIABLE, "")):
        try:
            folders += [_folder(part.strip())] if part.strip() else []
        except OSError as error:
            problems.append(
                Problem(COHORTS_VARIABLE, str(error), "a list of folders and s3:// addresses")
            )
    cohorts: dict[str, Path] = {}
    for path in dict.fromkeys(p for folder in folders for p in _files(folder)):
        name = _cohort_name(path)
        if name in cohorts:
            what = f"cohort {name!r} is also defined in {cohorts[name]}"
            problems.append(Problem(str(path), what, "cohort names must differ"))
        cohorts.setdefault(name, path)
    if problems:
        raise CohortError(problems)
    return cohorts


def _folder(place: str) -> Path:
    """Folder of this machine with what is at a path or ``s3://`` address."""
    if is_remote(place):
        return mirrored(place)
    folder = Path(place).expanduser().absolute()
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    return folder


def _files(folder: Path) -> list[Path]:
    direct = folder / FILE_NAME
    return [direct] if direct.is_file() else sorted(folder.glob(f"*/{FILE_NAME}"))


def _cohort_name(path: Path) -> str:
    try:
        return str(yaml.safe_load(path.read_text("utf-8"))["attributes"]["cohort"])
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return path.parent.name


def _compose(path: Path) -> yaml.Node:
    """The YAML's nodes, which know their lines."""
    try:
        node = yaml.compose(path.read_text("utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise CohortError([Problem(str(path), f"cannot be read: {error}")]) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        what = f"is not valid YAML: {getattr(error, 'problem', None) or error}"
        raise CohortError([Problem(where, what, "mind indentation and colons")]) from error
    if not isinstance(node, yaml.MappingNode):
        raise CohortError([Problem(str(path), "is no mapping", f"it starts: type: {COMPONENT}")])
    return node


def _repeated_keys(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                yield key
            seen.add(key.value)
            yield from _repeated_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated_keys(item)


def _problem(path: Path, attributes: yaml.Node | None, detail: dict[str, Any]) -> Problem:
    """One of pydantic's findings, at its place in the file."""
    node, at = attributes, attributes
    keys: list[str | int] = ["attributes"]
    last = detail["loc"][-1] if detail["loc"] else None
    for part in detail["loc"]:
        child = _child(node, part)
        if child is not None:
            at = _key(node, part) or child
            node = child
        elif part is not last or detail["type"] != "missing":
            continue  # pydantic also names the variant of a union, which the file does not
        keys.append(part)
    where = _where(path, at, keys)
    value = detail["input"]
    if detail["type"] == "missing":
        return Problem(where, "is missing", "add the key")
    if detail["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(keys[-1]), _known_keys(), 1)
        return Problem(where, "is not a known key", f"did you mean {close[0]!r}?" if close else "")
    shown = "" if isinstance(value, dict | list | BaseModel) else f", found {value!r}"
    return Problem(where, detail["msg"].removeprefix("Value error, ") + shown[:_SHOWN_VALUE])


def _where(path: Path, node: yaml.Node | None, keys: Sequence[str | int]) -> str:
    line = f", line {node.start_mark.line + 1}" if node else ""
    name = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return f"{path}{line}, {name.removeprefix('.')}"


def _child(node: yaml.Node | None, part: str | int) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == str(part)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part]
    return None


def _key(node: yaml.Node | None, part: str | int) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        return next((key for key, _ in node.value if key.value == str(part)), None)
    return None


def _known_keys() -> list[str]:
    models = [value for value in vars(schema).values() if isinstance(value, type)]
    return sorted({f for m in models if issubclass(m, BaseModel) for f in m.model_fields})
