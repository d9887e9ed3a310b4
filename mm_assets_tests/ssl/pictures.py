"""Pictures in memory, in the place of slides."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Generator, Tensor

from mm_assets.encoders.vit import RegionTransformer
from mm_assets.models.checkpoint import Checkpoint
from mm_assets.ssl.stream import Pictures, Stream
from mm_assets.ssl.training import DinoParameters, Pretraining
from mm_assets.wsi.errors import SlideError

TOKENS, SIDE = 6, 4
SMALL = DinoParameters(epochs=3, prototypes=16, hidden=24, momentum=0.9, rate=0.02, warmup=0.0)


class Memory:
    """A source whose pictures are given; a broken one fails after its first picture."""

    def __init__(self, name: str, pictures: Pictures, broken: bool = False) -> None:
        self.name, self.pictures, self.broken = name, pictures, broken
        self.reads = 0

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, chosen: np.ndarray) -> Iterator[Pictures]:
        self.reads += 1
        assert (np.diff(chosen) > 0).all()
        yield self.pictures[chosen[0]]
        if self.broken:
            raise SlideError(f"{self.name} is broken")
        yield from self.pictures[chosen[1:]]


def numbered(count: int, each: int, broken: tuple[int, ...] = ()) -> list[Memory]:
    """Sources whose pictures say who they are: value 100 * source + number."""
    return [
        Memory(f"s{at}", 100 * at + np.arange(each)[:, None], at in broken) for at in range(count)
    ]


def grids(count: int = 4, each: int = 8, seed: int = 0) -> list[Memory]:
    """Sources of grids of random tokens."""
    rng = np.random.default_rng(seed)
    shape = (each, SIDE, SIDE, TOKENS)
    return [Memory(f"s{at}", rng.normal(size=shape).astype(np.float32)) for at in range(count)]


def corners(pictures: Tensor, generator: Generator) -> list[Tensor]:
    """Crops without chance: two large ones and a small one."""
    channels_first = pictures.permute(0, 3, 1, 2)
    return [channels_first[..., :3, :3], channels_first[..., 1:, 1:], channels_first[..., :2, :2]]


def small_network() -> RegionTransformer:
    """Of width 12 and depth 1."""
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        return RegionTransformer(TOKENS, 12, 1)


def small_training(
    rank: int = 0,
    world: int = 1,
    batch: int = 8,
    crops=corners,
    parameters: DinoParameters = SMALL,
    checkpoint: Checkpoint | None = None,
    on_epoch=None,
) -> Pretraining:
    """On 32 grids."""
    stream = Stream(grids(), each=8, batch=batch, pool=8, seed=3)
    return Pretraining(
        small_network(), crops, stream, parameters, checkpoint, on_epoch, rank, world
    )
