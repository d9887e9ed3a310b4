"""`mm encoders`: which encoders there are, and whether their weights are here."""

from typing import Annotated

import typer

WEIGHTS = "weights"


def encoders(
    as_json: Annotated[bool, typer.Option("--json", help="Print data for programs.")] = False,
) -> None:
    """Encoders by name: dimension, input, licence, whether the weights are here."""
    from mm_assets.cli import out, show
    from mm_assets.cohort.folders import mm_home
    from mm_assets.encoders.catalogue import list_encoders

    show(list_encoders(mm_home() / WEIGHTS), as_json, "encoders")
    if not as_json:
        out.print("timm:<model> takes any other network of timm, by name", style="dim")
