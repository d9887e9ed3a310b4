"""Findings that are as they should be, each with its reason and the day it was looked at."""

import csv
from dataclasses import dataclass
from pathlib import Path

from aws_cdk import Acknowledgment, App, Validations

TABLE = Path(__file__).with_name("acknowledged.csv")


@dataclass(frozen=True)
class Acknowledgement:
    """One finding of one tool.

    Attributes
    ----------
    constructs
        Paths it is acknowledged at; none means everywhere. A place that only one stage has is
        left out in the other.
    """

    tool: str
    finding: str
    constructs: tuple[str, ...]
    reason: str
    date: str


def acknowledgements(tool: str) -> list[Acknowledgement]:
    """Those of a tool."""
    with TABLE.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["tool"] == tool]
    return [
        Acknowledgement(**{**row, "constructs": tuple(row["constructs"].split())}) for row in rows
    ]


def acknowledge(app: App, account: str) -> None:
    """Tell cdk-nag."""
    paths = {construct.node.path: construct for construct in app.node.find_all()}
    for known in acknowledgements("cdk-nag"):
        finding = known.finding.replace("{account}", account)
        for path in filter(paths.__contains__, known.constructs):
            Validations.of(paths[path]).acknowledge(
                Acknowledgment(
                    id=f"AwsSolutions::{finding}", reason=f"{known.date}: {known.reason}"
                )
            )
