"""One pre-training in several processes, a device each."""

import tempfile
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import distributed, multiprocessing

LAST_WORDS_SECONDS = 10.0

T = TypeVar("T")
Train = Callable[[int, int], T]


def run_together(train: Train[T], world: int) -> T:
    """What `train(rank, world)` gives in this process, which is rank 0, while others do their part.

    Parameters
    ----------
    train
        Picklable where `world` is more than one.
    world
        Number of processes; their group is torch's default one while they run.

    Raises
    ------
    torch.multiprocessing.ProcessRaisedException
        When another process failed, with its traceback.
    """
    if world == 1:
        return train(0, 1)
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/meeting"
        others = multiprocessing.spawn(
            _other, (train, world, meeting), nprocs=world - 1, join=False
        )
        try:
            made = _in_group(train, 0, world, meeting)
        except Exception:
            # Another's error, where there is one, is the cause of ours.
            others.join(timeout=LAST_WORDS_SECONDS)
            for process in others.processes:
                process.terminate()
            raise
        others.join()
        return made


def _other(number: int, train: Train[T], world: int, meeting: str) -> None:
    _in_group(train, number + 1, world, meeting)


def _in_group(train: Train[T], rank: int, world: int, meeting: str) -> T:
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "nccl"
        torch.cuda.set_device(rank)  # NCCL exchanges objects on the process's present device.
    distributed.init_process_group(backend, init_method=meeting, rank=rank, world_size=world)
    try:
        return train(rank, world)
    finally:
        distributed.destroy_process_group()
