"""Training of a network: steps over packed bags, inner early stopping, resumption after a kill.

The published schedule is one bag at a time with the gradients of 32 added up before each step of
Adam. Here the patients of a step are packed into as few batches as fit; nothing in the networks
mixes patients, so the gradient is the same sum. The last step of an epoch is not left short: an
epoch's patients are dealt to its steps evenly.

Randomness depends on the seed and the number of the epoch alone, so a training that was killed and
resumed gives the same bytes as one that was not, on the CPU and with the same number of threads.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mm_assets.models.checkpoint import Checkpoint
from mm_assets.models.porpoise.inputs import Inputs
from mm_assets.models.porpoise.networks import Batch, Porpoise

Criterion = Callable[[Tensor, Sequence[str]], Tensor]
OnEpoch = Callable[[int, float, float], None]


@dataclass(frozen=True)
class TrainingParameters:
    """Settings of a training; the defaults are the paper's.

    Attributes
    ----------
    epochs
        At most.
    accumulate
        Patients a step.
    rate, decay
        Learning rate and weight decay of Adam.
    patience
        Epochs without improvement on the inner validation patients after which training stops.
    most_tiles
        Tiles of the patients in one batch; a larger bag is a batch of its own. It bounds memory
        and changes results by rounding only.
    """

    epochs: int = 20
    accumulate: int = 32
    rate: float = 2e-4
    decay: float = 1e-5
    patience: int = 5
    most_tiles: int = 16_384
    seed: int = 0


@dataclass(frozen=True)
class Trained:
    """What a training gives.

    Attributes
    ----------
    curve
        Loss a patient after every epoch: columns training and inner validation (NaN without),
        float32, shape [epochs, 2].
    epoch
        The epoch whose weights the network has, counted from 0.
    """

    curve: NDArray[np.float32]
    epoch: int


@dataclass
class _State:
    """Everything that the next epoch depends on."""

    network: dict[str, Tensor]
    optimizer: dict[str, Any]
    best: dict[str, Tensor]
    best_epoch: int
    curve: list[list[float]]


class Training:
    """One network, its patients and their loss.

    Parameters
    ----------
    criterion
        Loss of each patient from logits [patients, outputs] and patient ids, shape [patients].
    learn, stop
        Patients whose gradients count, and those of the inner split that say which epoch is best;
        without the latter the last epoch is.
    checkpoint
        Where the state is kept after each epoch, and the fit's name in its key. The number of
        epochs is no part of it: a training can be prolonged.
    on_epoch
        Called after each epoch, and for each epoch that a checkpoint already holds, with its
        number and the two losses.
    """

    def __init__(
        self,
        network: Porpoise,
        inputs: Inputs,
        criterion: Criterion,
        learn: Sequence[str],
        stop: Sequence[str],
        parameters: TrainingParameters,
        checkpoint: Checkpoint | None = None,
        on_epoch: OnEpoch | None = None,
    ) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = network.to(self._device)
        self._inputs, self._criterion = inputs, criterion
        self._learn, self._stop = learn, stop
        self._parameters, self._checkpoint = parameters, checkpoint
        self._on_epoch = on_epoch or (lambda epoch, training, validation: None)
        self._optimizer = torch.optim.Adam(
            network.parameters(), lr=parameters.rate, weight_decay=parameters.decay
        )

    def run(self) -> Trained:
        """Train, and leave the best epoch's weights in the network, on the CPU."""
        state = self._resumed() or self._state({}, -1, [])
        for epoch in range(len(state.curve), self._parameters.epochs):
            if self._stop and epoch - state.best_epoch > self._parameters.patience:
                break
            state = self._epoch(epoch, state)
            if self._checkpoint:
                self._checkpoint.save(vars(state))
            self._on_epoch(epoch, *state.curve[-1])
        self._network.load_state_dict(state.best)
        self._network.to("cpu").eval()
        return Trained(np.array(state.curve, np.float32).reshape(-1, 2), state.best_epoch)

    def learn_epoch(self, epoch: int) -> float:
        """One pass over the patients; the loss a patient."""
        self._network.train()
        rng = np.random.default_rng([self._parameters.seed, epoch])
        order = rng.permutation(np.array(self._learn))
        steps = np.array_split(order, -(-len(order) // self._parameters.accumulate))
        devices = [0] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(int(rng.integers(2**62)))
            total = sum(self._step(step.tolist()) for step in steps)
        return total / len(order)

    def validation_loss(self) -> float:
        """Loss a patient of the inner validation patients."""
        self._network.eval()
        with torch.no_grad():
            losses = [
                self._loss(batch, patients).sum().item()
                for patients, batch in self._packs(self._stop)
            ]
        return sum(losses) / len(self._stop)

    def _epoch(self, epoch: int, before: _State) -> _State:
        losses = [self.learn_epoch(epoch), self.validation_loss() if self._stop else float("nan")]
        curve = [*before.curve, losses]
        best = min((row[1] for row in before.curve), default=np.inf)
        if self._stop and losses[1] >= best:
            return self._state(before.best, before.best_epoch, curve)
        return self._state(_copied(self._network.state_dict()), epoch, curve)

    def _step(self, patients: Sequence[str]) -> float:
        self._optimizer.zero_grad()
        total = 0.0
        for group, batch in self._packs(patients):
            loss = self._loss(batch, group).sum()
            (loss / len(patients)).backward()
            total += loss.item()
        self._optimizer.step()
        return total

    def _packs(self, patients: Sequence[str]) -> Any:
        return self._inputs.packs(patients, self._parameters.most_tiles, self._device)

    def _loss(self, batch: Batch, patients: Sequence[str]) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=self._device.type == "cuda"):
            logits = self._network(batch)
        return self._criterion(logits, patients)

    def _state(self, best: dict[str, Tensor], epoch: int, curve: list[list[float]]) -> _State:
        network = _copied(self._network.state_dict())
        return _State(network, self._optimizer.state_dict(), best or network, epoch, curve)

    def _resumed(self) -> _State | None:
        saved = self._checkpoint.load() if self._checkpoint else None
        if saved is None:
            return None
        state = _State(**saved)
        self._network.load_state_dict(state.network)
        self._optimizer.load_state_dict(state.optimizer)
        for epoch, losses in enumerate(state.curve):
            self._on_epoch(epoch, *losses)
        return state


def training_key(parameters: TrainingParameters, *facts: object) -> str:
    """Digest of settings and of whatever else determines a training, by its `repr`."""
    settings = {name: value for name, value in asdict(parameters).items() if name != "epochs"}
    return sha256(repr((settings, facts)).encode()).hexdigest()


def _copied(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
