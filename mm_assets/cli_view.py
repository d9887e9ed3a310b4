"""`mm view` and `mm opinions`: evidence in a browser, and what people said of it."""

import webbrowser
from collections.abc import Iterable
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mm_assets.assets.stage import Workspace

Cohort = Annotated[str, typer.Argument(help="Name of a cohort, or the path of its defs.yaml.")]


def view(
    cohort: Annotated[
        list[str] | None, typer.Argument(help="Names of cohorts, or paths; none: all.")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 3001,
    browser: Annotated[bool, typer.Option(help="Open a browser window.")] = True,
) -> None:
    """Look at slides with the evidence behind predictions, and record opinions, on 127.0.0.1."""
    import uvicorn

    from mm_assets.cli import out, workspace
    from mm_assets.cohort.loading import find_cohorts
    from mm_assets.servers import HOST, port_is_free
    from mm_assets.viewer.app import viewer_app
    from mm_assets.viewer.catalogue import Catalogue
    from mm_assets.viewer.opinions import Opinions

    spaces = [workspace(name) for name in cohort] if cohort else _readable(find_cohorts())
    if not port_is_free(port):
        raise RuntimeError(f"port {port} is in use: choose another with --port")
    shown = {space.config.cohort: Catalogue(space) for space in spaces}
    said = {space.config.cohort: Opinions(space.store, space.config.cohort) for space in spaces}
    page = f"http://{HOST}:{port}"
    out.print(f"Viewer: {page}")
    if browser:
        # Once it listens.
        Timer(1.0, webbrowser.open, [page]).start()
    uvicorn.run(viewer_app(shown, said), host=HOST, port=port, log_level="warning")


def _readable(cohorts: Iterable[str]) -> "list[Workspace]":
    """Those cohorts that are there; what is wrong with a YAML is printed."""
    from mm_assets.cli import err, workspace
    from mm_assets.cohort.problems import CohortError

    spaces = []
    for name in cohorts:
        try:
            spaces.append(workspace(name))
        except CohortError as error:
            err.print(f"{name} is left out: {'; '.join(map(str, error.problems))}", markup=False)
    return [space for space in spaces if not space.config.absent]


def opinions(
    cohort: Cohort,
    table: Annotated[Path | None, typer.Option("--out", help="CSV file to write.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print data for programs.")] = False,
) -> None:
    """What people said of the evidence in the viewer, the oldest first."""
    from mm_assets.cli import out, show, workspace
    from mm_assets.files import publish
    from mm_assets.viewer.opinions import Opinions

    space = workspace(cohort)
    found = Opinions(space.store, space.config.cohort)
    if table is None:
        show(found.rows(), as_json, f"opinions on {space.config.cohort}")
        return
    publish(table, found.csv().encode())
    out.print(f"{len(found.rows())} opinions: {table}", soft_wrap=True)
