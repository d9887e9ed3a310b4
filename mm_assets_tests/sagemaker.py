"""Jobs on the local SageMaker server: how tests start them."""

import sys
import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import boto3
import dagster as dg

from mm_assets.assets.compute import Compute
from mm_assets.assets.stage import Workspace
from mm_assets.resources.sagemaker import Context, PipesSageMakerClient
from mm_assets.resources.sagemaker_request import SageMakerSettings, job_name
from mm_assets_tests.cohorts import (
    make_cohort,
    patient_ids,
    spoil_corner,
    write_tables,
    write_yaml,
)

ROLE = "arn:aws:iam::123456789012:role/mm-assets-jobs"
IMAGE = "123456789012.dkr.ecr.eu-west-2.amazonaws.com/mm-assets-worker:1"
WORKER = Path(__file__).parent / "resources" / "pipes_worker.py"


SURVIVAL = {
    "name": "survival", "kind": "survival", "time": "survival_months", "event": "event",
    "horizons": [12.0],
}  # fmt: skip


def keys(prefix: str) -> list[str]:
    """Keys of the tests' bucket."""
    found = boto3.client("s3").list_objects_v2(Bucket="artefacts", Prefix=prefix)
    return [item["Key"] for item in found.get("Contents", [])]


def wait_for(done: Callable[[], object], seconds: float = 120) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def tables_only(folder: Path, **sections: object) -> Path:
    """YAML of a cohort of 36 patients without slides, and one task, survival."""
    folder.mkdir()
    write_tables(folder, patient_ids(36))
    return write_yaml(folder, slides=None, tasks=[SURVIVAL], **sections)


def client(root: str, **settings: Any) -> PipesSageMakerClient:
    """A client that looks often."""
    settings = {"poll_seconds": 0.1, "capacity_seconds": 0.1, **settings}
    return PipesSageMakerClient(SageMakerSettings(ROLE, IMAGE, **settings), root)


def in_asset(work: Callable[[Context], Any]) -> Any:
    """What `work` gives or raises when an asset's body calls it."""
    told: list[Any] = []

    @dg.asset
    def work_on_slides(context: dg.AssetExecutionContext) -> None:
        told.append(work(context))

    dg.materialize([work_on_slides], instance=dg.DagsterInstance.ephemeral())
    return told[0]


def run_worker(
    client: PipesSageMakerClient, context: Context, behaviour: str, name: str = "", **more: Any
) -> list[Any]:
    """Messages of a job that behaves as told."""
    messages: list[Any] = []
    names = (job_name("mm", name or behaviour, digest="0f3a", attempt=n) for n in count(1))
    arguments = {"names": names, "compute": Compute(), "on_message": messages.append, **more}
    client.run(
        context=context,
        order={"behaviour": behaviour},
        command=("python", str(WORKER)),
        **arguments,
    )
    return messages


def worked(client: PipesSageMakerClient, behaviour: str, **more: Any) -> list[Any]:
    """`run_worker` in an asset of its own."""
    messages: list[Any] = in_asset(partial(_swapped, client, behaviour, more))
    return messages


def _swapped(
    client: PipesSageMakerClient, behaviour: str, more: dict[str, Any], context: Context
) -> list[Any]:
    return run_worker(client, context, behaviour, **more)


if __name__ == "__main__":
    root, behaviour = sys.argv[1:]
    print(worked(client(root), behaviour))


def remote_cohort(
    folder: Path, slides: int, spoilt: str | None = None, **sections: object
) -> tuple[Path, str]:
    """YAML of a cohort whose slides are on S3, and the prefix they share with its stores."""
    prefix = uuid.uuid4().hex
    yaml = make_cohort(
        folder / "tiny",
        patients=12,
        slides=slides,
        omics=None,
        slides_config={
            "root": f"s3://artefacts/{prefix}/slides",
            "patient_pattern": r"^(P\d+)",
        },
        compute={"tile_embeddings": {"launcher": "sagemaker", "gpu": 0}},
        prices={"ml.m5.xlarge": 3600.0},
        **sections,
    )
    if spoilt:
        spoil_corner(yaml.parent / "slides" / spoilt)
    client = boto3.client("s3")
    for slide in sorted((yaml.parent / "slides").iterdir()):
        client.upload_file(str(slide), "artefacts", f"{prefix}/slides/{slide.name}")
        slide.unlink()
    return yaml, prefix


def forget(space: Workspace, receipts: Mapping[str, Mapping[str, object]]) -> None:
    """Remove what was made of these assets."""
    for asset, slides in receipts.items():
        for ref in space.store.list("tiny", asset):
            space.store.delete(ref)
        for slide in slides:
            space.receipts.delete("tiny", asset, slide)


def logged() -> list[str]:
    """What the last run has logged."""
    from mm_assets.resources.home import dagster_instance

    with dagster_instance() as instance:
        (run,) = instance.get_runs(limit=1)
        return [entry.user_message for entry in instance.all_logs(run.run_id)]
