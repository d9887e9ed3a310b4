"""`mm promote`: a person makes a version the champion."""

import getpass
from datetime import UTC, datetime
from typing import Annotated

import typer

By = Annotated[str, typer.Option("--by", help="Who decides; by default the user logged in.")]


def promote(
    model: Annotated[str, typer.Argument(help="<cohort>.<task>.<model>:<version>")],
    reason: Annotated[str, typer.Option("--reason", help="Why; kept with the version.")],
    by: By = "",
) -> None:
    """Make a version of a registered model the champion, whatever the comparison says."""
    from mm_assets.assets.promotion import PASSED_OVER
    from mm_assets.cli import out
    from mm_assets.resources.model_run import OUTCOME
    from mm_assets.resources.tracking import Tracking

    name, _, version = model.rpartition(":")
    if not name or not version.isdigit():
        raise ValueError(
            f"{model!r}: write <cohort>.<task>.<model>:<version>, the version a number"
        )
    if not reason.strip():
        raise ValueError("--reason is empty: say why this version becomes champion")
    who = by.strip() or getpass.getuser()
    tracking = Tracking()
    try:
        found = tracking.version(name, int(version))
    except LookupError as error:
        raise ValueError(str(error)) from None
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    facts = {
        OUTCOME: f"promoted by {who}, {now}: {reason.strip()}",
        "mm.promoted_by": who,
        "mm.promoted_at": now,
        "mm.promotion_reason": reason.strip(),
        PASSED_OVER: str(tracking.newest(name)),
    }
    tracking.promote(found, facts)
    out.print(f"{name} version {version} is champion. `mm predict` makes what follows from that.")
