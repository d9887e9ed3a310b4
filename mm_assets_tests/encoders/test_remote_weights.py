"""Weights at `s3://` addresses: the same as those of a file, fetched once."""

import uuid
from pathlib import Path

import boto3
import pytest
import torch

from mm_assets.encoders.hipt import HIPT_REGIONS, load_region_encoder
from mm_assets.encoders.weights import WeightsError, blank_network, load_weights
from mm_assets_tests.slow_s3 import slow_s3


@pytest.fixture
def prefix(home: Path, s3_environment: str) -> str:
    """Prefix of the tests' bucket that nobody else uses."""
    return uuid.uuid4().hex


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Weights of HIPT's transformer of regions."""
    path = tmp_path / "vit4k.pth"
    torch.save(blank_network(HIPT_REGIONS).state_dict(), path)
    return path


def test_they_are_those_of_the_file(
    file: Path, prefix: str, s3_environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"s3://artefacts/{prefix}/vit4k.pth"
    boto3.client("s3").upload_file(str(file), "artefacts", f"{prefix}/vit4k.pth")
    given = load_weights(HIPT_REGIONS, str(file))
    with slow_s3(s3_environment) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        for _ in range(2):
            fetched = load_weights(HIPT_REGIONS, address)
            assert (fetched.stamp, fetched.sha256) == (given.stamp, given.sha256)
        assert set(proxy.names()) == {"vit4k.pth"}
        fetches = len(proxy.names())
        assert load_region_encoder(address, "cpu").weights_sha256 == given.sha256
        assert len(proxy.names()) == fetches


def test_a_folder_as_published(file: Path, prefix: str) -> None:
    address = f"s3://artefacts/{prefix}/hipt"
    boto3.client("s3").upload_file(str(file), "artefacts", f"{prefix}/hipt/pytorch_model.bin")
    fetched = load_weights(HIPT_REGIONS, address)
    assert fetched.stamp == "pytorch_model.bin"
    assert fetched.sha256 == load_weights(HIPT_REGIONS, str(file)).sha256


def test_others_replace_them(file: Path, prefix: str) -> None:
    address, client = f"s3://artefacts/{prefix}/vit4k.pth", boto3.client("s3")
    client.upload_file(str(file), "artefacts", f"{prefix}/vit4k.pth")
    before = load_weights(HIPT_REGIONS, address)
    state = torch.load(file, weights_only=True)
    torch.save({name: tensor + 1 for name, tensor in state.items()}, file)
    client.upload_file(str(file), "artefacts", f"{prefix}/vit4k.pth")
    assert load_weights(HIPT_REGIONS, address).sha256 != before.sha256


@pytest.mark.parametrize("bucket", ["artefacts", "no-such-bucket"])
def test_none_are_never_replaced(prefix: str, bucket: str) -> None:
    address = f"s3://{bucket}/{prefix}/none.pth"
    with pytest.raises(WeightsError, match=rf"no weights at {address}: none\.pth"):
        load_weights(HIPT_REGIONS, address)
