"""Work on many things in threads, all of it or an error."""

from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

_Thing = TypeVar("_Thing")


def do_each(
    work: Callable[[_Thing], object],
    things: Collection[_Thing],
    threads: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Do the work on each; after a failure, which is raised, nothing more is begun.

    Parameters
    ----------
    progress
        Called with things done and things in all after every thing.
    """
    with ThreadPoolExecutor(threads) as pool:
        jobs = [pool.submit(work, thing) for thing in things]
        try:
            for done, job in enumerate(as_completed(jobs), start=1):
                job.result()
                if progress:
                    progress(done, len(jobs))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
