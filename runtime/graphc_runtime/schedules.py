"""Learning rates as pure functions of time, so that a resumed run needs no scheduler state.

Time is measured in epochs and may be fractional: after ``i`` of the ``n`` mini-batches of epoch ``e``
(counted from 0) it is ``e + i / n``. At whole epochs the values are those of the PyTorch scheduler that
each docstring names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from graphc_runtime.errors import RangeError


class Schedule(Protocol):
    """Anything that maps time in epochs to a learning rate."""

    def __call__(self, epoch: float, /) -> float:
        """Return the learning rate at ``epoch``."""
        ...


@dataclass(frozen=True)
class Constant:
    """The learning rate never changes: ``lr(t) = lr``."""

    lr: float

    def __post_init__(self) -> None:
        _check_rate("Constant", "lr", self.lr)

    def __call__(self, epoch: float, /) -> float:
        """Return the learning rate at ``epoch``."""
        return self.lr


@dataclass(frozen=True)
class Step:
    """Multiplied by ``gamma`` at each milestone: ``lr(t) = lr * gamma ** k``, k of them being <= t.

    Units: ``milestones`` are epochs, strictly increasing. As PyTorch's ``MultiStepLR``.
    """

    lr: float
    milestones: tuple[float, ...]
    gamma: float = 0.1

    def __post_init__(self) -> None:
        _check_rate("Step", "lr", self.lr)
        _check_rate("Step", "gamma", self.gamma)
        # A list is what most people write; a tuple keeps the schedule hashable and frozen.
        object.__setattr__(self, "milestones", tuple(self.milestones))
        if any(not later > earlier for earlier, later in pairwise((0.0, *self.milestones))):
            raise RangeError(
                f"Step: expected strictly increasing milestones above 0, got {list(self.milestones)}"
            )

    def __call__(self, epoch: float, /) -> float:
        """Return the learning rate at ``epoch``."""
        return self.lr * self.gamma ** sum(milestone <= epoch for milestone in self.milestones)


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from ``lr`` to ``floor``: ``floor + (lr - floor) * (1 + cos(pi * t / epochs)) / 2``.

    At and after ``epochs`` the rate stays at ``floor``. PyTorch's ``CosineAnnealingLR`` agrees up to
    ``T_max = epochs``; past it, PyTorch rises again, which no training that was merely prolonged wants.

    Source: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017, equation 5.
    """

    lr: float
    epochs: float
    floor: float = 0.0

    def __post_init__(self) -> None:
        _check_rate("Cosine", "lr", self.lr)
        _check_rate("Cosine", "floor", self.floor)
        _check_length("Cosine", self.epochs)

    def __call__(self, epoch: float, /) -> float:
        """Return the learning rate at ``epoch``."""
        if epoch >= self.epochs:
            return self.floor
        return self.floor + (self.lr - self.floor) * (1.0 + math.cos(math.pi * epoch / self.epochs)) / 2.0


@dataclass(frozen=True)
class Warmup:
    """A linear rise over the first ``epochs``, then ``after``, whose own clock starts when the rise ends.

    For ``t < epochs``: ``after(0) * (start + (1 - start) * t / epochs)``; from then on ``after(t - epochs)``.
    As PyTorch's ``SequentialLR([LinearLR(start_factor=start, total_iters=epochs), after], [epochs])``.
    """

    after: Schedule
    epochs: float
    start: float = 0.1

    def __post_init__(self) -> None:
        _check_length("Warmup", self.epochs)
        if not 0.0 <= self.start <= 1.0:
            raise RangeError(f"Warmup: expected start from 0 to 1, got {self.start}")

    def __call__(self, epoch: float, /) -> float:
        """Return the learning rate at ``epoch``."""
        if epoch >= self.epochs:
            return self.after(epoch - self.epochs)
        return self.after(0.0) * (self.start + (1.0 - self.start) * epoch / self.epochs)


def as_schedule(lr: float | Schedule) -> Schedule:
    """Return ``lr`` itself if it is a schedule, else the constant schedule of that value."""
    return lr if callable(lr) else Constant(float(lr))


def _check_rate(schedule: str, field: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0.0):
        raise RangeError(f"{schedule}: expected a finite {field} of at least 0, got {value}")


def _check_length(schedule: str, epochs: float) -> None:
    if not (math.isfinite(epochs) and epochs > 0.0):
        raise RangeError(f"{schedule}: expected a finite number of epochs above 0, got {epochs}")
