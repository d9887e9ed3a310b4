"""What `mm` does to bring assets up to date, with live progress in the terminal."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mm_assets.cohort.problems import refuse_errors

if TYPE_CHECKING:
    from mm_assets.assets.stage import Workspace


def walk(
    space: "Workspace", select: Sequence[str] = (), slides: Sequence[str] | None = None
) -> dict[str, str]:
    """Bring assets up to date, with live progress; what failed and why."""
    import dagster as dg

    from mm_assets.assets.walk import Walk
    from mm_assets.cli import err
    from mm_assets.cohort.check import check_cohort
    from mm_assets.component import CohortComponent
    from mm_assets.resources.home import dagster_instance, default_resources

    refuse_errors(check_cohort(space.config))
    definitions = dg.Definitions.merge(
        CohortComponent(space.config).definitions(),
        dg.Definitions(resources=default_resources(), executor=dg.in_process_executor),
    )
    failures: dict[str, str] = {}
    with dagster_instance() as instance, progress_bars():
        for result in Walk(space, definitions, instance).run(select, slides):
            if result.skipped:
                failures[result.stage] = f"not tried: {result.skipped}"
            elif result.computed or result.failures:
                err.print(f"{result.stage}: {result.computed} of {result.total} made")
            else:
                err.print(f"{result.stage}: up to date", style="dim")
            failures |= result.failures
    return failures


@contextmanager
def progress_bars() -> Iterator[None]:
    """Live bars with count, rate and remaining time for everything that reports progress."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from mm_assets.assets.progress import listen
    from mm_assets.cli import err

    tasks: dict[str, TaskID] = {}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bars:

        def advance(label: str, done: int, total: int) -> None:
            if label not in tasks:
                tasks[label] = bars.add_task(label, total=total, rate="")
            task = tasks[label]
            speed = next(t.speed for t in bars.tasks if t.id == task)
            rate = f"{speed:.2f}/s" if speed else ""
            bars.update(task, completed=done, total=total, rate=rate, visible=done < total)

        stop = listen(advance)
        try:
            yield
        finally:
            stop()
