"""What a whole-cohort stage made, and how a job that made it elsewhere tells of it."""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from dagster import MetadataValue
from dagster._core.definitions.metadata import normalize_metadata
from dagster._serdes import deserialize_value, serialize_value

from mm_assets.assets.stage import Check, Produced
from mm_assets.resources.receipts import Receipt


class Made(NamedTuple):
    """A receipt, and what was produced for it; None when an earlier run had done the work."""

    receipt: Receipt
    produced: Produced | None

    def to_message(self) -> dict[str, Any]:
        """As JSON; pictures and tables among the metadata go with it."""
        message: dict[str, Any] = {"receipt": self.receipt.to_json().decode()}
        if self.produced is not None:
            message["metadata"] = _packed(self.produced.metadata)
            message["checks"] = [
                [check.name, check.passed, check.note, _packed(check.metadata)]
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
            Check(name, passed, note, _unpacked(metadata))
            for name, passed, note, metadata in message["checks"]
        )
        return cls(receipt, Produced(receipt.outputs, _unpacked(message["metadata"]), checks))


def _packed(metadata: Mapping[str, Any]) -> dict[str, str]:
    values: dict[str, Any] = dict(normalize_metadata(metadata))
    return {key: serialize_value(value) for key, value in values.items()}


def _unpacked(metadata: Mapping[str, str]) -> dict[str, MetadataValue[Any]]:
    return {
        key: cast(MetadataValue[Any], deserialize_value(value)) for key, value in metadata.items()
    }
