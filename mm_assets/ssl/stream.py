"""Pictures for a pre-training, read from slides (or stored tokens) while it runs.

An epoch draws some pictures of every slide. They pass through a pool from which batches are drawn,
so that a batch mixes slides, while memory holds the pool and no file of tiles is written. What an
epoch gives depends on the seed and its number alone.
"""

import itertools
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mm_assets.wsi.errors import SlideError

Pictures = NDArray[Any]


class Source(Protocol):
    """Pictures of one slide, all of one shape and dtype."""

    @property
    def name(self) -> str:
        """What messages call it."""

    def __len__(self) -> int:
        """How many pictures it has."""

    def read(self, chosen: NDArray[np.int64]) -> Iterator[Pictures]:
        """The chosen pictures, ascending numbers in their order; raises SlideError."""


class Stream:
    """Batches of pictures.

    Parameters
    ----------
    each
        Pictures drawn of a source in an epoch, at most.
    batch
        Pictures of a step, over all processes.
    pool
        Pictures from which those of a batch are drawn.

    Attributes
    ----------
    batch
        As given.
    lost
        Name of each source that could not be read, and why; the others make up for it.

    Raises
    ------
    ValueError
        When the sources have fewer pictures than a batch.
    """

    def __init__(
        self, sources: Sequence[Source], each: int, batch: int, pool: int, seed: int
    ) -> None:
        self._sources, self._each, self.batch = sources, each, batch
        self._pool, self._seed = pool, seed
        self.lost: dict[str, str] = {}
        self.drawn = sum(min(len(source), each) for source in sources)
        if self.drawn < batch:
            raise ValueError(
                f"{self.drawn} pictures in {len(sources)} slides are fewer than a batch of {batch}"
            )

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return self.drawn // self.batch

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a picture."""
        return next(self._endless(np.random.default_rng(0), 0, 1)).shape

    def epoch(self, epoch: int, rank: int = 0, world: int = 1) -> Generator[Pictures]:
        """The batches of an epoch, or of a process's share in each; one is read ahead.

        Raises
        ------
        SlideError
            When none of the process's sources can be read.
        """
        rng = np.random.default_rng([self._seed, epoch, rank])
        with ThreadPoolExecutor(1, "pictures") as thread:
            batches = self._batches(rng, rank, world)
            waiting = thread.submit(next, batches)
            for step in range(self.steps):
                ready = waiting.result()
                if step + 1 < self.steps:
                    waiting = thread.submit(next, batches)
                yield ready

    def _batches(self, rng: np.random.Generator, rank: int, world: int) -> Iterator[Pictures]:
        size = self.batch // world
        with closing(self._mixed(rng, rank, world, self.steps * size)) as pictures:
            for _ in range(self.steps):
                yield np.stack(list(itertools.islice(pictures, size)))

    def _mixed(
        self, rng: np.random.Generator, rank: int, world: int, count: int
    ) -> Generator[Pictures]:
        pool: list[Pictures] = []
        for picture in itertools.islice(self._endless(rng, rank, world), count):
            pool.append(picture)
            if len(pool) == self._pool:
                yield _drawn(pool, rng)
        while pool:
            yield _drawn(pool, rng)

    def _endless(self, rng: np.random.Generator, rank: int, world: int) -> Iterator[Pictures]:
        """Pictures slide by slide in random orders; the shares of processes differ in size."""
        while True:
            own = rng.permutation(np.arange(rank, len(self._sources), world))
            readable = [at for at in own if self._sources[at].name not in self.lost]
            if not readable:
                raise SlideError("none of the slides can be read")
            for at in readable:
                yield from self._read(self._sources[at], rng)

    def _read(self, source: Source, rng: np.random.Generator) -> Iterator[Pictures]:
        count = len(source)
        chosen = np.sort(rng.permutation(count)[: self._each])
        try:
            yield from source.read(chosen)
        except SlideError as error:
            self.lost[source.name] = str(error)


def _drawn(pool: list[Pictures], rng: np.random.Generator) -> Pictures:
    at = int(rng.integers(len(pool)))
    pool[at], pool[-1] = pool[-1], pool[at]
    return pool.pop()
