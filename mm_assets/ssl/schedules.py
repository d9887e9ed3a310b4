"""Values that change over a pre-training: warmed up along a line, then along half a cosine."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Cosine:
    """A value at every step of a training.

    Attributes
    ----------
    start, end
        Values after the warm-up and at the last step.
    steps
        Steps of the whole training.
    warmup
        First steps, over which the value rises along a line from `first`.
    """

    start: float
    end: float
    steps: int
    warmup: int = 0
    first: float = 0.0

    def at(self, step: int) -> float:
        """Value at a step, counted from 0; `end` from the last step on."""
        if step < self.warmup:
            return self.first + (self.start - self.first) * step / self.warmup
        span = max(self.steps - 1 - self.warmup, 1)
        share = min((step - self.warmup) / span, 1.0)
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * share)) / 2
