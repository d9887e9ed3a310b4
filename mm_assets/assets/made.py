"""What a whole-cohort stage made, and how a job that made something elsewhere tells of it."""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from dagster import MetadataValue
from dagster._core.definitions.metadata import normalize_metadata
from dagster._serdes import deserialize_value, serialize_value

from mm_assets.assets.stage import Check, Produced
from mm_assets.resources.receipts import Receipt


class Made(NamedTuple):
    """What became of a whole-cohort stage.

    Attributes
    ----------
    produced
        What was produced for the receipt; None when an earlier run had done the work.
    billed
        Seconds that a service bills for it; None when it was made here.
    """

    receipt: Receipt
    produced: Produced | None
    billed: float | None = None

    @property
    def paid_seconds(self) -> float:
        """Seconds that a machine was occupied by it."""
        return self.receipt.seconds if self.billed is None else self.billed

    def to_message(self) -> dict[str, Any]:
        """As JSON; pictures and tables among the metadata go with it."""
        message: dict[str, Any] = {"receipt": self.receipt.to_json().decode()}
        if self.produced is not None:
            message["metadata"] = pack(self.produced.metadata)
            message["checks"] = [
                [check.name, check.passed, check.note, pack(check.metadata)]
                for check in self.produced.checks
            ]
        return message

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> "Made":
        """Inverse of `to_message`."""
        receipt = Receipt.from_json(message["receipt"].encode())
        if "metadata" not in message:
            return cls(receipt, None)
        checks = tuple(
            Check(name, passed, note, unpack(metadata))
            for name, passed, note, metadata in message["checks"]
        )
        return cls(receipt, Produced(receipt.outputs, unpack(message["metadata"]), checks))


def pack(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Dagster's metadata as JSON; pictures and tables too."""
    values: dict[str, Any] = dict(normalize_metadata(metadata))
    return {key: serialize_value(value) for key, value in values.items()}


def unpack(metadata: Mapping[str, str]) -> dict[str, MetadataValue[Any]]:
    """Inverse of `pack`."""
    return {
        key: cast(MetadataValue[Any], deserialize_value(value)) for key, value in metadata.items()
    }
