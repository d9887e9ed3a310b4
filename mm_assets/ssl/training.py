"""Pre-training of a transformer by DINO: steps, checkpoints, and signs of collapse.

Settings default to those of Caron et al. (ICCV 2021) for ViT-S/16, which HIPT (Chen et al., CVPR
2022) keeps, without stochastic depth. Randomness depends on the seed, the epoch and the process
alone, so a training that was killed and resumed gives the same curve as one that was not.
"""

import copy
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Generator, Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from mm_assets.models.checkpoint import Checkpoint
from mm_assets.ssl.dino import Head, Loss, entropy_of, follow_student
from mm_assets.ssl.schedules import Cosine
from mm_assets.ssl.stream import Pictures, Stream

T = TypeVar("T", bound=nn.Module)
Crops = Callable[[Tensor, Generator], list[Tensor]]
OnEpoch = Callable[["Epoch"], None]
GLOBAL_CROPS = 2
REFERENCE_BATCH = 256
LARGEST_GRADIENT = 3.0
LEAST_SPREAD, LEAST_INFORMATION = 0.05, 0.01
CPU = torch.device("cpu")


@dataclass(frozen=True)
class DinoParameters:
    """Settings of a pre-training.

    Attributes
    ----------
    accumulate
        Parts in which a process computes its pictures of a step, to fit its memory.
    rate
        Learning rate for 256 pictures a step; it grows with their number.
    warmup
        Share of the training over which the rate rises.
    momentum
        Of the teacher at the start; 1 at the end.
    prototypes, hidden
        Sizes of the head.
    temperature
        Of the teacher.
    """

    epochs: int = 100
    accumulate: int = 1
    rate: float = 5e-4
    warmup: float = 0.1
    momentum: float = 0.996
    prototypes: int = 65_536
    hidden: int = 2048
    temperature: float = 0.04
    seed: int = 0


@dataclass(frozen=True)
class Epoch:
    """What an epoch gave, means over its steps and over all processes.

    Attributes
    ----------
    loss, entropy
        Of `mm_assets.ssl.dino.Distillation`.
    spread
        Standard deviation of the teacher's features over the pictures of a batch, as a share of
        their root mean square: 0 when every picture has the same.
    information
        What the teacher's outputs tell of which picture they are of, in nats: entropy of the mean
        distribution of a step less the mean entropy. 0 in both collapses that the paper knows, one
        prototype everywhere and all alike.
    """

    epoch: int
    loss: float
    entropy: float
    spread: float
    information: float

    @property
    def collapsed(self) -> bool:
        """Whether all pictures look alike to the teacher, or its outputs say nothing of them."""
        return self.spread < LEAST_SPREAD or self.information < LEAST_INFORMATION


@dataclass(frozen=True)
class Pretrained:
    """What a pre-training gives.

    Attributes
    ----------
    weights
        State dict of the teacher's backbone, on the CPU.
    lost
        Name of each source that could not be read, and why.
    """

    weights: dict[str, Tensor]
    curve: tuple[Epoch, ...]
    lost: dict[str, str]


class Network(nn.Module):
    """A backbone and its head, over crops."""

    def __init__(self, backbone: nn.Module, head: Head) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, crops: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Outputs of every crop, and the features of them all; crops of a size in one pass."""
        sizes = itertools.groupby(crops, key=lambda crop: crop.shape[-2:])
        features = torch.cat([self.backbone(torch.cat(list(group))) for _, group in sizes])
        return list(self.head(features).split(len(crops[0]))), features


class Pretraining:
    """A student and the teacher that follows it.

    Parameters
    ----------
    backbone
        Freshly initialized; it becomes the student's.
    crops
        Makes the crops of a batch, the two global ones first.
    checkpoint
        Where the state is kept after each epoch; see `pretraining_key`.
    on_epoch
        Called after each epoch, and for each epoch that a checkpoint already holds.
    rank, world
        Number of this process and of all; with more than one, torch's process group is there.
    """

    def __init__(
        self,
        backbone: nn.Module,
        crops: Crops,
        stream: Stream,
        parameters: DinoParameters,
        checkpoint: Checkpoint | None = None,
        on_epoch: OnEpoch | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._rank, self._world = rank, world
        self._device = torch.device("cuda", rank) if torch.cuda.is_available() else CPU
        self._crops, self._stream, self._parameters = crops, stream, parameters
        self._checkpoint, self._on_epoch = checkpoint, on_epoch or (lambda epoch: None)
        width = int(backbone.get_parameter("cls_token").shape[-1])
        sizes = width, parameters.prototypes, parameters.hidden
        head = initialized(lambda: Head(*sizes), parameters.seed)
        self._student = Network(backbone, head).to(self._device)
        self._teacher = copy.deepcopy(self._student).requires_grad_(False).eval()
        self._loss = Loss(parameters.prototypes).to(self._device)
        decayed = [p for p in self._student.parameters() if p.ndim > 1]
        free = [p for p in self._student.parameters() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": free}]
        self._optimizer = torch.optim.AdamW(groups)
        self._parallel = self._student if world == 1 else DistributedDataParallel(self._student)
        steps = parameters.epochs * stream.steps
        peak = parameters.rate * stream.batch / REFERENCE_BATCH
        self._rate = Cosine(peak, 1e-6, steps, round(parameters.warmup * steps))
        self._decay = Cosine(0.04, 0.4, steps)
        self._momentum = Cosine(parameters.momentum, 1.0, steps)

    def run(self) -> Pretrained:
        """Train to the end.

        Raises
        ------
        FloatingPointError
            When the loss is no number.
        """
        curve = self._resumed()
        for epoch in range(len(curve), self._parameters.epochs):
            curve.append(self._run_epoch(epoch))
            self._stream.lost = self._lost()
            if self._checkpoint and self._rank == 0:
                self._checkpoint.save(self._state(curve))
            self._on_epoch(curve[-1])
        backbone = self._teacher.backbone.state_dict()
        weights = {name: tensor.cpu() for name, tensor in backbone.items()}
        return Pretrained(weights, tuple(curve), self._stream.lost)

    def _run_epoch(self, epoch: int) -> Epoch:
        generator = Generator().manual_seed(
            int(
                np.random.default_rng([self._parameters.seed, epoch, self._rank, 1]).integers(2**62)
            )
        )
        batches = self._stream.epoch(epoch, self._rank, self._world)
        first = epoch * self._stream.steps
        cropped = self._cropped_ahead(batches, generator)
        with _one_core_left():
            made = [self._step(first + at, parts) for at, parts in enumerate(cropped)]
        loss, entropy, spread, information = self._shared(torch.stack(made).mean(0)).tolist()
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss of epoch {epoch} is {loss}: lower the rate of ssl's settings"
            )
        return Epoch(epoch, loss, entropy, spread, information)

    def _cropped_ahead(
        self, batches: Iterator[Pictures], generator: Generator
    ) -> Iterator[list[list[Tensor]]]:
        """Crops of every part of each batch, made while the batch before is learned from."""

        def cropped(batch: Pictures) -> list[list[Tensor]]:
            parts = np.array_split(batch, self._parameters.accumulate)
            return [self._crops(torch.from_numpy(p).to(self._device), generator) for p in parts]

        # One thread, so that draws keep their order; torch counts threads for each by itself.
        with ThreadPoolExecutor(1, "crops", torch.set_num_threads, (1,)) as thread:
            waiting: deque[Future[list[list[Tensor]]]] = deque()
            for batch in batches:
                waiting.append(thread.submit(cropped, batch))
                if len(waiting) > 1:
                    yield waiting.popleft().result()
            yield waiting.popleft().result()

    def _step(self, step: int, parts: list[list[Tensor]]) -> Tensor:
        """One step; loss, entropy, spread and information, shape [4]."""
        for group, decay in zip(
            self._optimizer.param_groups, (self._decay.at(step), 0), strict=True
        ):
            group["lr"], group["weight_decay"] = self._rate.at(step), decay
        self._optimizer.zero_grad()
        outputs: list[Tensor] = []
        made, means = [], []
        for number, crops in enumerate(parts):
            with self._in_step(last=number == len(parts) - 1):
                facts, mean, teacher = self._distil(crops, len(parts))
            outputs += teacher
            made.append(facts)
            means.append(mean)
        if step < self._stream.steps:  # The paper holds the last layer for the first epoch.
            self._student.head.prototypes.grad = None
        nn.utils.clip_grad_norm_(self._student.parameters(), LARGEST_GRADIENT)
        self._optimizer.step()
        self._loss.follow(outputs)
        follow_student(self._teacher, self._student, self._momentum.at(step))
        loss, entropy, spread = torch.stack(made).mean(0)
        information = entropy_of(torch.stack(means).mean(0)) - entropy
        return torch.stack([loss, entropy, spread, information])

    def _distil(self, crops: list[Tensor], parts: int) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Add the gradients of a part; loss, entropy and spread, the teacher's mean and outputs."""
        with self._mixed():
            with torch.no_grad():
                teacher, features = self._teacher(crops[:GLOBAL_CROPS])
            student, _ = self._parallel(crops)
        made = self._loss(student, teacher, self._parameters.temperature)
        (made.loss / parts).backward()
        spread = (features.float().var(0).sum() / features.float().pow(2).mean(0).sum()).sqrt()
        return torch.stack([made.loss.detach(), made.entropy, spread]), made.mean, teacher

    def _mixed(self) -> AbstractContextManager[None]:
        """Products in bfloat16 on a GPU; weights, losses and normalization stay float32."""
        kind = self._device.type
        return torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda")

    def _in_step(self, last: bool) -> AbstractContextManager[None]:
        """Gradients meet once a step, not once a part."""
        if isinstance(self._parallel, DistributedDataParallel) and not last:
            return self._parallel.no_sync()
        return nullcontext()

    def _shared(self, facts: Tensor) -> Tensor:
        if self._world > 1:
            distributed.all_reduce(facts)
        return facts / self._world

    def _lost(self) -> dict[str, str]:
        """Sources that any process could not read."""
        if self._world == 1:
            return self._stream.lost
        found: list[dict[str, str]] = [{}] * self._world
        distributed.all_gather_object(found, self._stream.lost)
        return {name: reason for part in found for name, reason in part.items()}

    def _state(self, curve: Sequence[Epoch]) -> dict[str, Any]:
        return {
            "student": self._student.state_dict(),
            "teacher": self._teacher.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "loss": self._loss.state_dict(),
            "curve": [asdict(epoch) for epoch in curve],
            "lost": self._stream.lost,
        }

    def _resumed(self) -> list[Epoch]:
        state = self._checkpoint.load() if self._checkpoint else None
        if state is None:
            return []
        self._student.load_state_dict(state["student"])
        self._teacher.load_state_dict(state["teacher"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._loss.load_state_dict(state["loss"])
        self._stream.lost = state["lost"]
        curve = [Epoch(**epoch) for epoch in state["curve"]]
        for epoch in curve:
            self._on_epoch(epoch)
        return curve


@contextmanager
def _one_core_left() -> Iterator[None]:
    """For the thread that makes crops; without it both wait for each other's cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads - 1))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def initialized(make: Callable[[], T], seed: int) -> T:
    """A network whose initial weights depend on the seed alone."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return make()


def pretraining_key(parameters: DinoParameters, *facts: object) -> str:
    """Digest of settings and of whatever else determines a pre-training, by its `repr`."""
    return sha256(repr((parameters, facts)).encode()).hexdigest()
