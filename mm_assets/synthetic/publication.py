"""The demo cohort on S3, where the machines of a deployment find it; without its truth."""

import re
from collections.abc import Callable
from pathlib import Path

import yaml

from mm_assets.cohort.config import NAME_PATTERN
from mm_assets.cohort.loading import FILE_NAME, PACKAGE
from mm_assets.cohort.objects import explained, list_objects, upload_file
from mm_assets.cohort.problems import CohortError, Problem
from mm_assets.cohort.s3 import s3_client
from mm_assets.cohort.sources import is_remote
from mm_assets.synthetic.cohort import MARKER
from mm_assets.synthetic.threads import do_each

_OWN = "demo"
_AT_ONCE = 16
# What a cohort reads beside its slides. The marker goes first: by it a broken upload is known.
_PUBLISHED = (MARKER, "attainable.json", "clinical.csv", "slides.csv", "omics/**/*")


def publish_demo_cohort(
    folder: Path, slides: str, address: str, progress: Callable[[int, int], None] | None = None
) -> None:
    """Put a demo cohort on S3: its slides at one address, YAML and tables at another.

    The YAML is put last, and that of an earlier upload is removed before its tables are replaced:
    an upload that was broken off is no cohort.

    Parameters
    ----------
    folder
        What `create_demo_cohort` wrote.
    slides, address
        ``s3://bucket/prefix``. The last part of `address` is the cohort's name.
    progress
        Called with slides uploaded and slides in all after every slide.

    Raises
    ------
    CohortError
        When an address cannot be used, holds something else, or S3 refuses.
    """
    bucket, prefix = _checked(folder, slides, address)
    name = address.rstrip("/").rpartition("/")[2]
    found = [path for pattern in _PUBLISHED for path in sorted(folder.glob(pattern))]
    files = [path for path in found if path.is_file()]
    keys = {f"{prefix}/{path.relative_to(folder)}": path for path in files}
    definition = f"{prefix}/{FILE_NAME}"
    client = s3_client()
    try:
        with explained(address):
            present = [part.key for part in list_objects(bucket, f"{prefix}/")]
            if present and f"{prefix}/{MARKER}" not in present:
                raise OSError("holds something that is not a demo cohort: give another address")
            _upload_slides(folder / "slides", slides, progress)
            client.delete_object(Bucket=bucket, Key=definition)
            for key, path in keys.items():
                upload_file(path, f"{bucket}/{key}")
            for key in set(present) - keys.keys():
                client.delete_object(Bucket=bucket, Key=key)
            text = _definition(name, slides.rstrip("/"))
            client.put_object(Bucket=bucket, Key=definition, Body=text.encode())
    except OSError as error:
        raise CohortError([Problem("demo cohort", str(error))]) from error


def _checked(folder: Path, slides: str, address: str) -> tuple[str, str]:
    """Bucket and prefix of the address, after a check of all that is given."""
    problems = [
        Problem(place, "is no address of S3", "write s3://bucket/prefix")
        for place in (slides, address)
        if not (is_remote(place) and place.removeprefix("s3://").strip("/"))
    ]
    bucket, _, prefix = address.removeprefix("s3://").strip("/").partition("/")
    name = prefix.rpartition("/")[2]
    if not re.fullmatch(NAME_PATTERN, name) or name == _OWN:
        what = f"its last part names the cohort, and {name!r} cannot"
        fix = f"small letters, digits and _, not {_OWN}, which is the package's own"
        problems.append(Problem(address, what, fix))
    if not (folder / MARKER).is_file():
        problems.append(Problem(str(folder), "holds no demo cohort", "mm demo create makes one"))
    if problems:
        raise CohortError(problems)
    return bucket, prefix


def _upload_slides(folder: Path, address: str, progress: Callable[[int, int], None] | None) -> None:
    below = address.removeprefix("s3://").strip("/")
    slides = sorted(folder.iterdir())
    do_each(lambda path: upload_file(path, f"{below}/{path.name}"), slides, _AT_ONCE, progress)


def _definition(name: str, slides: str) -> str:
    """The package's YAML of the demo cohort, for the tables beside it and slides at an address."""
    text = (PACKAGE / _OWN / FILE_NAME).read_text("utf-8")
    content = yaml.safe_load(text.replace(f"${{MM_HOME}}/cohorts/{_OWN}/", ""))
    attributes = content["attributes"]
    del attributes["optional"]
    attributes["cohort"] = name
    attributes["slides"]["root"] = slides
    return yaml.safe_dump(content, sort_keys=False)
