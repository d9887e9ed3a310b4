"""What requests for jobs take from the environment."""

import pytest

from mm_assets.resources.sagemaker_request import SageMakerSettings


def test_links_that_jobs_write_lead_to_the_same_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {
        f"MM_{page}_URL": f"https://{page.lower()}.example.org"
        for page in ("DAGSTER", "MLFLOW", "VIEWER")
    }
    settings = {"MM_SAGEMAKER_ROLE": "role", "MM_SAGEMAKER_IMAGE": "image", "MM_OTHER": "here"}
    for name, value in {**pages, **settings}.items():
        monkeypatch.setenv(name, value)
    given = SageMakerSettings.from_environment().environment
    assert pages.items() <= given.items()
    assert not {"MM_OTHER", *settings} & set(given)
