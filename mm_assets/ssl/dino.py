"""Self-distillation without labels (DINO; Caron et al., ICCV 2021): head, loss and teacher.

A student learns to give, from any crop, the distribution over prototypes that a slowly following
teacher gives from the large crops. Centring keeps one prototype from winning everywhere, a low
temperature keeps all from being equal.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

BOTTLENECK = 256


class Head(nn.Module):
    """Three layers, a bottleneck of unit length, and its cosines with the prototypes.

    Parameters
    ----------
    width
        Length of a backbone's output.
    prototypes
        Length of this output (65,536 in the paper).
    hidden
        Width of the inner layers (2,048 in the paper).
    """

    def __init__(self, width: int, prototypes: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, BOTTLENECK),
        )
        for module in self.layers:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.prototypes = nn.Parameter(torch.randn(prototypes, BOTTLENECK))

    def forward(self, features: Tensor) -> Tensor:
        """Shape [B, width] to [B, prototypes]."""
        code = functional.normalize(self.layers(features), dim=-1)
        return functional.linear(code, functional.normalize(self.prototypes, dim=-1))


@dataclass(frozen=True)
class Distillation:
    """What a step gave.

    Attributes
    ----------
    loss
        Cross-entropy of the student under the teacher in nats, over all pairs of different crops.
    entropy
        Of the teacher's distributions in nats, their mean.
    mean
        Mean of the teacher's distributions, [prototypes].
    """

    loss: Tensor
    entropy: Tensor
    mean: Tensor


class Loss(nn.Module):
    """Cross-entropy between sharpened, centred teacher and student.

    Parameters
    ----------
    prototypes
        Length of the outputs.
    student_temperature
        Divides the student's outputs.
    inertia
        Share of the old centre that stays at every step.
    """

    centre: Tensor

    def __init__(
        self, prototypes: int, student_temperature: float = 0.1, inertia: float = 0.9
    ) -> None:
        super().__init__()
        self.student_temperature, self.inertia = student_temperature, inertia
        self.register_buffer("centre", torch.zeros(1, prototypes))

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], temperature: float
    ) -> Distillation:
        """Compare the crops of a batch.

        Parameters
        ----------
        student
            Outputs [B, prototypes] of every crop, the global ones first.
        teacher
            Outputs of the global crops, in the same order.
        temperature
            Of the teacher.

        Raises
        ------
        ValueError
            When there are no two different crops to compare.
        """
        if len(student) < 2:
            raise ValueError("DINO compares different crops of a picture: give at least two")
        # Tiny temperatures overflow half precision.
        targets = [
            functional.softmax((made.detach().float() - self.centre) / temperature, dim=-1)
            for made in teacher
        ]
        guesses = [
            functional.log_softmax(made.float() / self.student_temperature, dim=-1)
            for made in student
        ]
        pairs = [
            -(target * guess).sum(-1).mean()
            for at, target in enumerate(targets)
            for other, guess in enumerate(guesses)
            if at != other
        ]
        entropy = torch.stack([entropy_of(target).mean() for target in targets])
        mean = torch.stack([target.mean(0) for target in targets])
        return Distillation(torch.stack(pairs).mean(), entropy.mean(), mean.mean(0))

    @torch.no_grad()
    def follow(self, teacher: Sequence[Tensor]) -> None:
        """Move the centre towards the mean output of the batch, over all processes."""
        mean = torch.cat([made.float() for made in teacher]).mean(0, keepdim=True)
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(mean)
            mean /= distributed.get_world_size()
        self.centre.lerp_(mean, 1 - self.inertia)


def entropy_of(distributions: Tensor) -> Tensor:
    """In nats, shape [..., prototypes] to [...]."""
    return torch.special.entr(distributions).sum(-1)


@torch.no_grad()
def follow_student(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move every parameter of the teacher by the share ``1 - momentum`` to the student's."""
    for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
        old.lerp_(new, 1 - momentum)
