"""Models through an MLflow server whose database is PostgreSQL and whose files are on S3."""

import uuid
from collections.abc import Iterator

import boto3
import pandas as pd
import pytest

from mm_assets.resources.tracking import Tracking
from mm_assets_tests.mlflow_server import LOGIN, running_mlflow
from mm_assets_tests.postgres import find_programs
from mm_assets_tests.resources.models import example, model_run


@pytest.fixture
def tracking(
    s3_environment: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Tracking, str]]:
    """A client that knows the server's address alone, and where the server keeps files."""
    if find_programs() is None:
        pytest.skip("PostgreSQL is not installed")
    prefix = uuid.uuid4().hex
    for name, value in LOGIN.items():
        monkeypatch.setenv(name, value)
    with running_mlflow(f"s3://artefacts/{prefix}") as address:
        yield Tracking(tracking_uri=address), prefix


@pytest.mark.stress
@pytest.mark.timeout(600)
def test_models_are_registered_and_loaded(
    tracking: tuple[Tracking, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, prefix = tracking
    first = client.log_model(model_run("heec", code_version="1"))
    second = client.log_model(model_run("heec", code_version="2"))
    assert (first.aliases, second.aliases) == (("champion",), ("challenger",))
    assert client.log_model(model_run("heec", code_version="1")).version == first.version
    found = client.load(second.name, second.version).predict(example())
    expected = model_run("heec").predictor.predict(example())
    pd.testing.assert_frame_equal(found, expected)
    files = boto3.client("s3").list_objects_v2(Bucket="artefacts", Prefix=prefix)
    assert len(files["Contents"]) > 4
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a guess")
    with pytest.raises(Exception, match=r"401|not authenticated"):
        client.version(first.name, "champion")
