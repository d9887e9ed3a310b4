"""Slides in a process of their own: what one does to a decoder befalls neither run nor neighbours.

A decoder that crashes, never returns or devours memory takes its process down. The slides that
were open in it are then tried once more, each alone in a fresh process; the one that ends that
too is lost, with the reason, and the others go on.

Memory is watched from outside, as resident size: a limit of the kernel would count what CUDA and
thread stacks merely reserve.
"""

import multiprocessing
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from threading import Lock, Thread
from typing import Any, Protocol

from mm_assets.assets.log import Log

# One call into a decoder reads a few tiles: seconds at most. Twice this is the end of a slide.
HANG_SECONDS = 30.0
POLL_SECONDS = 0.2
JOIN_SECONDS = 10.0

# Never a fork of this process: Dagster's have threads. Children are forked off a process that has
# imported Dagster and nothing else, which takes each of them some seconds otherwise.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["mm_assets.assets.partitions"])
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Report(Log, Protocol):
    """What work on slides tells of itself."""

    def started(self, slide: str) -> None:
        """From now on until `finished` the slide is open to decoders."""

    def finished(self, slide: str, outcome: Any) -> None:
        """The slide is done; `outcome` reaches the caller of `run_isolated`."""


Work = Callable[[Sequence[str], Report], None]


@dataclass(frozen=True)
class Loss:
    """Why a slide ended its process.

    Attributes
    ----------
    own_fault
        False when the machine may be at fault: storage that does not answer, a kill from outside.
    """

    reason: str
    own_fault: bool


def run_isolated(
    work: Work,
    slides: Sequence[str],
    finished: Callable[[str, Any], None],
    log: Log,
    memory_gib: float,
) -> dict[str, Loss]:
    """Do `work` on `slides` in a child process, in as many as it takes.

    Parameters
    ----------
    work
        Picklable. Called in the child with the slides and a report; outcomes are picklable.
    finished
        Called here with each slide and its outcome.
    memory_gib
        Resident memory that the child may take.

    Returns
    -------
    Slides that have no outcome.

    Raises
    ------
    RuntimeError
        The child ended before it opened any slide.
    Exception
        What `work` raised.
    """
    waiting, suspects, lost = list(slides), list[str](), dict[str, Loss]()
    while waiting or suspects:
        batch = [suspects.pop(0)] if suspects else waiting
        child = _Child(work, batch, memory_gib)
        loss = child.watch(finished, log)
        if loss and not child.open and not child.done:
            raise RuntimeError(f"the process for slides ended before it opened one: {loss.reason}")
        if loss and len(batch) == 1:
            lost |= dict.fromkeys(child.open, loss)
        elif loss:
            log.warning(f"{', '.join(child.open)}: {loss.reason}; each is tried once more, alone")
            suspects += child.open
        waiting = [slide for slide in waiting if slide not in child.done.union(child.open)]
    return lost


def run_here(
    work: Work, slides: Sequence[str], finished: Callable[[str, Any], None], log: Log
) -> None:
    """Do `work` on `slides` in this process."""
    work(slides, _Here(finished, log))


class _Here:
    """The report of work in this process."""

    def __init__(self, finished: Callable[[str, Any], None], log: Log) -> None:
        self.finished, self.info, self.warning = finished, log.info, log.warning

    def started(self, slide: str) -> None:
        pass


@dataclass
class _Child:
    """One child process, and what is known of its slides."""

    work: Work
    slides: Sequence[str]
    memory_gib: float
    done: set[str] = field(default_factory=set)
    open: list[str] = field(default_factory=list)

    def watch(self, finished: Callable[[str, Any], None], log: Log) -> Loss | None:
        """Run to the end; why it came too early, if it did."""
        receiver, sender = _CONTEXT.Pipe(duplex=False)
        decoding = _CONTEXT.RawValue("d", 0.0)
        process = _CONTEXT.Process(
            target=_main,
            args=(sender, decoding, dict(os.environ), self.work, list(self.slides)),
        )
        process.start()
        sender.close()  # so that the child's end is the only one, and its death ends the pipe
        watch = _Watch(process, decoding, self.memory_gib)
        try:
            with receiver:
                return self._follow(receiver, process, watch, finished, log)
        finally:
            process.kill()
            process.join(JOIN_SECONDS)  # what waits for dead storage cannot be killed

    def _follow(
        self,
        receiver: Connection,
        process: BaseProcess,
        watch: "_Watch",
        finished: Callable[[str, Any], None],
        log: Log,
    ) -> Loss | None:
        while True:
            loss = watch.look()
            if loss:
                return loss
            if not receiver.poll(POLL_SECONDS):
                continue
            try:
                kind, *content = receiver.recv()
            except (EOFError, OSError):
                process.join()
                return _death(process.exitcode or 0)
            if kind == "started":
                self.open.append(content[0])
            elif kind == "finished":
                self.open.remove(content[0])
                self.done.add(content[0])
                finished(*content)
            elif kind == "raised":
                raise content[0]
            elif kind == "ended":
                return None
            else:
                getattr(log, kind)(*content)


class _Watch:
    """Looks at a child from outside: is it stuck in a decoder, has it taken too much memory?"""

    def __init__(self, process: BaseProcess, decoding: Any, memory_gib: float) -> None:
        import psutil

        self._child = psutil.Process(process.pid)
        self._decoding, self._memory_gib = decoding, memory_gib
        self._since, self._cpu_before, self._looked = 0.0, 0.0, 0.0

    def look(self) -> Loss | None:
        """Why the child must be ended, or None."""
        import psutil

        now = time.monotonic()
        if now - self._looked < POLL_SECONDS:
            return None
        self._looked = now
        try:
            with self._child.oneshot():
                times, memory = self._child.cpu_times(), self._child.memory_info().rss
        except psutil.Error:  # it is dead; the pipe says so
            return None
        if memory > self._memory_gib * 2**30:
            return Loss(
                f"reading it takes more than the {self._memory_gib:g} GiB of memory that the stage "
                "may take; if the slide is good, raise memory_gib of the stage under compute in "
                "the cohort's YAML and touch the file",
                True,
            )
        return self._hang(now, times.user + times.system)

    def _hang(self, now: float, cpu: float) -> Loss | None:
        if self._decoding.value != self._since:
            self._since, self._cpu_before = self._decoding.value, cpu
        if not self._since or now - self._since < HANG_SECONDS:
            return None
        # A decoder that hangs computes, if only a little on a busy machine; one that waits for its
        # file does not at all.
        if cpu - self._cpu_before < HANG_SECONDS / 20:
            return Loss(f"its storage did not answer for {HANG_SECONDS:g} s", False)
        return Loss(f"no pixel came out of the decoder for {HANG_SECONDS:g} s", True)


def _death(exit_code: int) -> Loss:
    if exit_code >= 0:
        return Loss(f"reading it ended the process (exit code {exit_code})", True)
    name = signal.Signals(-exit_code).name
    if -exit_code in _FROM_OUTSIDE:
        return Loss(f"the process was killed ({name}) from outside, as when memory runs out", False)
    return Loss(f"the decoder crashed ({name}) while reading it", True)


# In the child


class _Pipe:
    """The report of a child."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, Lock()

    def send(self, *message: Any) -> None:
        with self._lock:
            self._connection.send(message)

    def started(self, slide: str) -> None:
        self.send("started", slide)

    def finished(self, slide: str, outcome: Any) -> None:
        self.send("finished", slide, outcome)

    def info(self, msg: str, /) -> None:
        self.send("info", msg)

    def warning(self, msg: str, /) -> None:
        self.send("warning", msg)


def _main(
    connection: Connection,
    decoding: Any,
    environment: Mapping[str, str],
    work: Work,
    slides: list[str],
) -> None:
    from mm_assets.wsi.watch import report_to

    # That of the forking process is as old as the first child.
    os.environ.clear()
    os.environ.update(environment)
    # Ctrl-C reaches the whole group: the parent decides, and ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()
    report_to(lambda since: setattr(decoding, "value", since))
    pipe = _Pipe(connection)
    try:
        work(slides, pipe)
    except Exception as error:
        pipe.send("raised", _portable(error))
    else:
        pipe.send("ended")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)


def _portable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error
