"""`mm`: the command line, for scripts, terminals and tests. The web UI is the main interface."""

import json
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mm_assets.cli_encoders import encoders
from mm_assets.cli_evidence import evidence
from mm_assets.cli_predict import predict
from mm_assets.cli_promote import promote
from mm_assets.cli_reload import reload
from mm_assets.cli_view import opinions, view
from mm_assets.cli_walk import progress_bars, walk
from mm_assets.cohort.problems import CohortError, Problem

if TYPE_CHECKING:
    from mm_assets.assets.stage import Workspace

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
demo_app = typer.Typer(no_args_is_help=True, help="The synthetic demo cohort.")
app.add_typer(demo_app, name="demo")
for command in (encoders, evidence, view, opinions, predict, promote, reload):
    app.command()(command)
FULL_BYTES = 1 << 20
out, err = Console(), Console(stderr=True)

Cohort = Annotated[str, typer.Argument(help="Name of a cohort, or the path of its defs.yaml.")]
Patients = Annotated[int, typer.Option(min=4, help="Number of patients.")]
Json = Annotated[bool, typer.Option("--json", help="Print data for programs.")]


def main() -> None:
    """Entry point; problems of the user's making are printed without a traceback."""
    try:
        app()
    except CohortError as error:
        err.print(f"[red]{len(error.problems)} problem(s)[/red]")
        for problem in error.problems:
            err.print(f"  {problem}", markup=False)
        sys.exit(1)
    except (ValueError, RuntimeError) as error:
        err.print(f"[red]error[/red] {error}")
        sys.exit(1)
    except Exception as error:
        _refuse_full_disk(error)
        raise


def _refuse_full_disk(error: Exception) -> None:
    """Say so where the disk is full: databases only say that something went wrong."""
    from mm_assets.cohort.folders import mm_home

    home = mm_home()
    if not home.exists() or shutil.disk_usage(home).free >= FULL_BYTES:
        return
    reason = str(error).partition("\n")[0]
    err.print(f"[red]error[/red] the disk of MM_HOME is full ({reason}).", soft_wrap=True)
    err.print("Free some space, then run again: finished work is kept.")
    sys.exit(1)


def show(rows: Sequence[dict[str, Any]], as_json: bool, title: str = "") -> None:
    """Print rows as a table, or as JSON."""
    if as_json:
        out.print_json(json.dumps(list(rows), default=str))
        return
    table = Table(title=title or None, title_justify="left")
    for column in rows[0] if rows else ["nothing to show"]:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("" if v is None else str(v) for v in row.values()))
    out.print(table)


def show_results(rows: Sequence[dict[str, Any]], name: str) -> None:
    """Print a task's metrics, one block a metric; how each is computed stands once below."""
    first = rows[0]
    weights = f"; embeddings: {first['weights']}" if first["weights"] else ""
    title = f"{name}: {first['patients']} patients{weights}"
    table = Table("metric", "model", "value", "95 % interval", title=title, title_justify="left")
    for metric in dict.fromkeys(row["metric"] for row in rows):
        table.add_section()
        for place, row in enumerate(row for row in rows if row["metric"] == metric):
            interval = f"{row['low']:.3f} to {row['high']:.3f}"
            label = "" if place else metric
            table.add_row(label, row["model"], f"{row['value']:.3f}", interval)
    out.print(table)
    for metric, protocol in {row["metric"]: row["protocol"] for row in rows}.items():
        out.print(f"{metric}: {protocol}", style="dim", highlight=False)


def workspace(cohort: str) -> "Workspace":
    """Configuration and resources of a cohort.

    Raises
    ------
    CohortError
        When there is no such cohort or its YAML is wrong.
    """
    from mm_assets.assets.stage import Workspace
    from mm_assets.cohort.loading import find_cohorts, load_config
    from mm_assets.resources.home import default_store
    from mm_assets.resources.tracking import Tracking

    path = Path(cohort)
    if path.suffix not in (".yaml", ".yml"):
        known = find_cohorts()
        if cohort not in known:
            raise CohortError(
                [
                    Problem(
                        cohort,
                        f"no such cohort; there are {', '.join(known) or 'none'}",
                        "give the path of its defs.yaml, or list its folder in MM_COHORTS",
                    )
                ]
            )
        path = known[cohort]
    log = logging.getLogger("mm_assets")
    return Workspace(load_config(path), default_store(), Tracking(), log)


@app.command()
def check(cohort: Cohort, as_json: Json = False) -> None:
    """Validate every input, list every problem, start nothing."""
    from mm_assets.assets.graph import check_compute
    from mm_assets.cohort.check import check_cohort

    try:
        config = workspace(cohort).config
        problems = [*check_compute(config), *check_cohort(config)]
    except CohortError as error:
        problems = list(error.problems)
    rows = [
        {"severity": p.severity, "where": p.where, "what": p.what, "fix": p.fix} for p in problems
    ]
    if rows or as_json:
        show(rows, as_json, f"{cohort}: {len(rows)} problem(s)")
    else:
        out.print(f"{cohort}: no problems found")
    if any(p.severity == "error" for p in problems):
        raise typer.Exit(1)


@app.command()
def materialize(
    cohort: Cohort,
    select: Annotated[list[str] | None, typer.Option(help="Asset names, * allowed.")] = None,
    slides: Annotated[list[str] | None, typer.Option(help="Slide ids; all by default.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what it would take.")] = False,
    as_json: Json = False,
) -> None:
    """Bring a cohort's assets up to date, with live progress; exit 1 if anything failed."""
    if plan:
        from mm_assets.assets.plan import plan_rows

        show(plan_rows(workspace(cohort), select or [], slides), as_json, cohort)
        return
    refuse_failures(walk(workspace(cohort), select or [], slides))


def refuse_failures(failures: dict[str, str]) -> None:
    """Print what `walk` could not make, and exit with 1 if there is anything."""
    if failures:
        show([{"what": k, "reason": v} for k, v in failures.items()], False, "failed")
        raise typer.Exit(1)


@app.command()
def status(cohort: Cohort, as_json: Json = False) -> None:
    """Assets with the number of slides done, failed and missing."""
    from mm_assets.assets.overview import asset_states

    show(asset_states(workspace(cohort)), as_json, cohort)


@app.command()
def slides(
    cohort: Cohort,
    failed: Annotated[bool, typer.Option("--failed", help="Only those with a reason.")] = False,
    as_json: Json = False,
) -> None:
    """Slides with their state and, when something is wrong, the reason."""
    from mm_assets.assets.overview import slide_states

    rows = slide_states(workspace(cohort))
    show([r for r in rows if r["reason"] or not failed], as_json, cohort)


@app.command()
def results(
    cohort: Cohort,
    task: Annotated[str | None, typer.Option(help="Only this task.")] = None,
    as_json: Json = False,
) -> None:
    """Out-of-fold metrics of every model, with intervals and protocol."""
    from mm_assets.assets.overview import result_rows

    space = workspace(cohort)
    names = [t.name for t in space.config.tasks]
    if task and task not in names:
        raise ValueError(f"no task is named {task!r}; there are {', '.join(names)}")
    found = {name: result_rows(space, name) for name in ([task] if task else names)}
    if as_json:
        show([row for rows in found.values() for row in rows], as_json)
        return
    for name, rows in found.items():
        show_results(rows, f"{cohort}.{name}")


@app.command()
def lineage(
    ref: Annotated[
        str, typer.Argument(help="cohort.task.model[@alias|:version], or cohort/asset[/slide].")
    ],
    full: Annotated[bool, typer.Option("--full", help="List every slide.")] = False,
    as_json: Json = False,
) -> None:
    """What made a model or an artefact, down to the digests of the slides."""
    from mm_assets.resources.home import default_store
    from mm_assets.resources.lineage import render, resolve, to_json
    from mm_assets.resources.tracking import Tracking

    tree = resolve(ref, default_store(), Tracking())
    if as_json:
        out.print_json(data=to_json(tree))
    else:
        for line in render(tree, full=full):
            out.print(line, markup=False, highlight=False, soft_wrap=True)


@app.command()
def export(
    cohort: Cohort,
    kind: Annotated[str, typer.Option("--format", help="trident, clam, stamp or parquet.")],
    folder: Annotated[Path, typer.Option("--out", help="Local folder.", file_okay=False)],
    slides: Annotated[list[str] | None, typer.Option(help="Slide ids; all by default.")] = None,
    as_json: Json = False,
) -> None:
    """Write tile embeddings for other tools; exit 1 if there was nothing to write."""
    from mm_assets.assets.export import export_slides

    with progress_bars():
        rows = export_slides(workspace(cohort), kind, folder, slides)
    show(rows, as_json, cohort)
    if not any(row["tiles"] for row in rows):
        raise typer.Exit(1)


@app.command()
def repair(cohort: Cohort) -> None:
    """Tell Dagster again what the receipts say is done (after a kill, or with a new home).

    Also removes what killed processes left half-written more than a day ago.
    """
    from mm_assets.assets.repair import repair_events
    from mm_assets.resources.home import dagster_instance

    space = workspace(cohort)
    with dagster_instance() as instance:
        count = repair_events(space, instance)
    out.print(f"{count} events written, {len(space.store.sweep())} leftovers removed")


@app.command()
def doctor(as_json: Json = False) -> None:
    """What this machine has: devices, readers, weights, store, free ports."""
    from mm_assets.doctor import diagnose

    rows = diagnose()
    show(rows, as_json, "doctor")
    if any(row["state"] == "error" for row in rows):
        raise typer.Exit(1)


@app.command()
def ui(
    dagster_port: Annotated[int, typer.Option(help="Port of the Dagster UI.")] = 3000,
    mlflow_port: Annotated[int, typer.Option(help="Port of the MLflow UI.")] = 5000,
    viewer_port: Annotated[int, typer.Option(help="Port of the viewer.")] = 3001,
) -> None:
    """Serve the Dagster UI (with its daemon), the MLflow UI and the viewer until interrupted."""
    from mm_assets.servers import serve

    serve(dagster_port, mlflow_port, viewer_port)


@demo_app.command("create")
def demo_create(
    folder: Annotated[Path, typer.Option("--out", help="Folder to create.")],
    patients: Patients = 120,
    seed: int = 0,
    to: Annotated[str | None, typer.Option(help="Also put it at this s3:// address.")] = None,
    slides_to: Annotated[str | None, typer.Option(help="And its slides at this one.")] = None,
) -> None:
    """Write the synthetic cohort: slides, clinical table, omics and the planted truth.

    With --to s3://BUCKET/cohorts/NAME and --slides-to s3://BUCKET/PREFIX it is put on S3 too, as a
    cohort of that name and without the truth.
    """
    from mm_assets.assets.progress import Progress
    from mm_assets.synthetic.cohort import create_demo_cohort
    from mm_assets.synthetic.publication import publish_demo_cohort

    if bool(to) != bool(slides_to):
        raise ValueError("--to and --slides-to go together: give both or neither")
    log = logging.getLogger("mm_assets")
    with progress_bars():
        made = Progress("demo slides", 0, log)
        create_demo_cohort(folder, patients=patients, seed=seed, progress=made.update)
        if to and slides_to:
            sent = Progress("slides uploaded", 0, log)
            publish_demo_cohort(folder, slides_to, to, sent.update)


@demo_app.command("run")
def demo_run(patients: Patients = 120) -> None:
    """Create the demo cohort, materialize everything and print where to look."""
    from mm_assets.assets.overview import result_rows
    from mm_assets.cohort.folders import mm_home

    demo_create(mm_home() / "cohorts" / "demo", patients)
    space = workspace("demo")
    failures = walk(space)
    for task in space.config.tasks:
        show_results(result_rows(space, task.name), f"demo.{task.name}")
    refuse_failures(failures)
    report = space.store.local_path(_report_ref(space))
    out.print(f"Report: {report}", soft_wrap=True)
    out.print(
        "Web UI: make ui, then http://127.0.0.1:3000 (Dagster), :5000 (MLflow), :3001 (viewer)"
    )


def _report_ref(space: "Workspace") -> Any:
    from mm_assets.resources.store import COHORT, ArtefactRef

    return ArtefactRef(space.config.cohort, "cohort_report", COHORT, "html")
