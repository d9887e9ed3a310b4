"""Processing jobs: a process, its inputs and its outputs."""

from collections.abc import Iterator, Sequence
from typing import Any

from deploy.local.sagemaker.process import ProcessJob, lies_under

PROCESSING = "/opt/ml/processing"


class ProcessingJob(ProcessJob):
    """One processing job."""

    kind = "Processing"
    unknown = ("ValidationException", "Could not find requested job with name: {name}")

    @classmethod
    def objections(cls, request: dict[str, Any]) -> Iterator[str]:
        """No entry point, places that nothing is mounted on, inputs and outputs of other kinds."""
        if "ContainerEntrypoint" not in request["AppSpecification"]:
            yield "ContainerEntrypoint must be given: the image has none"
        outputs = request.get("ProcessingOutputConfig", {}).get("Outputs", ())
        for item in request.get("ProcessingInputs", ()):
            yield from _objections(item["InputName"], item.get("S3Input"))
        for item in outputs:
            yield from _objections(item["OutputName"], item.get("S3Output"))

    def _command(self) -> Sequence[str]:
        application = self.request["AppSpecification"]
        return [*application["ContainerEntrypoint"], *application.get("ContainerArguments", ())]

    def _fetch(self) -> None:
        for item in self.request.get("ProcessingInputs", ()):
            source = item["S3Input"]
            self.mirror(source["S3Uri"], source["LocalPath"]).pull()

    def _keep(self, end: str) -> None:
        for item in self.request.get("ProcessingOutputConfig", {}).get("Outputs", ()):
            target = item["S3Output"]
            self.mirror(target["S3Uri"], target["LocalPath"]).push()

    def _facts(self) -> dict[str, Any]:
        return {**super()._facts(), "ExitMessage": self.read("/opt/ml/output/message")[:1024]}


def _objections(name: str, place: dict[str, Any] | None) -> Iterator[str]:
    if place is None:
        yield f"{name}: only inputs and outputs on S3 are moved here"
    elif not lies_under(place.get("LocalPath", ""), PROCESSING):
        yield f"{name}: LocalPath must be an absolute path that begins with {PROCESSING}"
