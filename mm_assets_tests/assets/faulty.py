"""Work that goes wrong in the ways decoders do; a slide's name says how."""

import faulthandler
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mm_assets.wsi.watch import watched

if TYPE_CHECKING:
    from mm_assets.assets.isolation import Report
    from mm_assets.assets.stage import Job, Produced, SlideWorker, Workspace


@watched
def compute_for_ever() -> None:
    while True:
        pass


@watched
def wait_for_ever() -> None:
    time.sleep(3600)


def take_memory() -> None:
    taken = []
    while True:
        taken.append(b"x" * (32 << 20))
        time.sleep(0.01)


def decode(slide: str) -> None:
    """Do to this process what the slide's name says; other names do nothing."""
    match slide.split("-")[0]:
        case "crash":
            faulthandler._sigsegv()
        case "abort":
            os.abort()
        case "exit":
            os._exit(3)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            compute_for_ever()
        case "stall":
            wait_for_ever()
        case "memory":
            take_memory()
        case "slow":
            time.sleep(2)
        case "error":
            raise ValueError("not a decoder's fault")


def work(slides: Sequence[str], report: "Report") -> None:
    """Slide by slide."""
    for slide in slides:
        report.started(slide)
        decode(slide)
        report.info(f"{slide} in process {os.getpid()}")
        report.finished(slide, os.getpid())


def give_up(slides: Sequence[str], report: "Report") -> None:
    """End before any slide is opened."""
    os._exit(1)


@contextmanager
def faulty_worker(workspace: "Workspace") -> "Iterator[SlideWorker]":
    """A stage's worker that writes a small file for each asset of a slide."""
    from mm_assets.assets.stage import Produced

    def one(job: "Job") -> "Mapping[str, Produced]":
        decode(job.name)
        store = job.workspace.store
        digests = {
            asset: store.write_bytes(job.ref(asset, "txt"), b"done", provenance)
            for asset, provenance in job.provenance.items()
        }
        return {asset: Produced({"txt": digest}) for asset, digest in digests.items()}

    yield one
