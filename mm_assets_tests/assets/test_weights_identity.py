"""Which weights a cohort has: by content, wherever the file lies and whenever it was written."""

import hashlib
import os
import shutil
import uuid
from pathlib import Path

import boto3
import pytest

from mm_assets.assets.weights_identity import weights_identities


def identity(weights: str | Path) -> str:
    return weights_identities({"weights": str(weights)})["weights"]


def test_files_by_content(tmp_path: Path) -> None:
    file, copy = tmp_path / "vit.pth", tmp_path / "elsewhere.pth"
    file.write_bytes(b"some")
    shutil.copy(file, copy)
    os.utime(copy, (1, 1))
    assert identity(file) == identity(copy) == "sha256:" + hashlib.sha256(b"some").hexdigest()
    file.write_bytes(b"more")
    assert identity(file) != identity(copy)


def test_a_folder_is_the_file_in_it(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"some")
    assert identity(tmp_path) == identity(tmp_path / "pytorch_model.bin")


def test_a_file_that_is_missing_is_no_error(tmp_path: Path) -> None:
    file = tmp_path / "late.pth"
    assert identity(file) == "absent"
    file.write_bytes(b"some")
    assert identity(file).startswith("sha256:")


def test_names_speak_for_themselves() -> None:
    given = ["imagenet", "random:0", "hub", "cohort"]
    assert weights_identities({name: name for name in given}) == {}


def test_objects_by_entity_tag(home: Path, s3_environment: str) -> None:
    client, key = boto3.client("s3"), f"{uuid.uuid4().hex}/vit.pth"
    address = f"s3://artefacts/{key}"
    assert identity(address) == "absent"
    seen = []
    for content in (b"some", b"more", b"some"):
        client.put_object(Bucket="artefacts", Key=key, Body=content)
        client.put_object(Bucket="artefacts", Key=f"{key}.old", Body=b"others")
        seen.append(identity(address))
    assert seen[0] == seen[2] != seen[1]
    assert all(each.startswith("etag:") for each in seen)


def test_a_bucket_that_is_missing_is_an_error(home: Path, s3_environment: str) -> None:
    with pytest.raises(OSError, match="no such bucket"):
        identity("s3://no-such-bucket/vit.pth")
