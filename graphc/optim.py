"""Optimizers as symbolic update rules: what follows from a rule is printed like every other kernel.

A rule says, for one element of one parameter, how the weight ``w`` and the optimizer's own values follow
from the gradient ``g``; adding an optimizer is writing these formulas down.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import sympy as sp

from graphc import scalar
from graphc.errors import RangeError, UnknownNameError
from graphc.program.ir import UpdateRange

W, G = sp.symbols("w g", real=True)
LR = sp.Symbol("lr", positive=True)  # given at every step
T = sp.Symbol("t", positive=True)  # the number of this step, from 1


def slot(name: str) -> sp.Symbol:
    """Return the symbol of an optimizer's value before this step."""
    return sp.Symbol(name, real=True)


def new(name: str) -> sp.Symbol:
    """Return the symbol of an optimizer's value after this step (its formula must stand earlier in the rule)."""
    return sp.Symbol(f"{name}_new", real=True)


@dataclass(frozen=True)
class Rule:
    """An update rule.

    ``scalars`` are evaluated once a step in double precision (they may use ``LR`` and ``T``);
    ``updates`` gives the new value of every slot and of ``w``, in order.
    """

    slots: tuple[str, ...]
    scalars: tuple[tuple[str, sp.Expr], ...]
    updates: tuple[tuple[str, sp.Expr], ...]


@dataclass(frozen=True)
class Optimizer(ABC):
    """Base of the optimizers.

    ``groups`` maps patterns of parameter names (``"*.bias"``) to hyperparameters that differ for them;
    the last matching pattern wins. ``decay`` chooses what weight decay applies to: ``"all"``
    parameters, as in PyTorch, or ``"matrices"`` only, which leaves biases and batch norm alone.
    """

    lr: float
    groups: Mapping[str, Mapping[str, float]] = field(default_factory=dict, kw_only=True)
    decay: str = field(default="all", kw_only=True)

    def __post_init__(self) -> None:
        """Check the learning rate and the choice of decay.

        Raises:
            RangeError: one of them is out of range.
        """
        if not self.lr >= 0:
            raise RangeError(f"{type(self).__name__}: lr must be non-negative, got {self.lr}")
        if self.decay not in ("all", "matrices"):
            raise RangeError(f"{type(self).__name__}: decay must be 'all' or 'matrices', got {self.decay!r}")

    @property
    @abstractmethod
    def hyperparameters(self) -> dict[str, float]:
        """The numbers of the rule that a group may change."""

    @abstractmethod
    def rule(self, h: Mapping[str, sp.Expr]) -> Rule:
        """Return the rule for given hyperparameters."""

    def hyperparameters_of(self, name: str, rank: int) -> dict[str, float]:
        """Return the hyperparameters of one parameter.

        Raises:
            UnknownNameError: a group sets a hyperparameter that the optimizer does not have.
        """
        values = dict(self.hyperparameters)
        if self.decay == "matrices" and rank < 2 and "weight_decay" in values:
            values["weight_decay"] = 0.0
        for pattern, overrides in self.groups.items():
            if not fnmatchcase(name, pattern):
                continue
            unknown = set(overrides) - set(values)
            if unknown:
                raise UnknownNameError(
                    f"{type(self).__name__}: group {pattern!r} sets {', '.join(sorted(unknown))}; "
                    f"known are {', '.join(values)}"
                )
            values |= overrides
        return values

    def rule_for(self, update: UpdateRange) -> Rule:
        """Return the rule with the numbers of one range filled in."""
        return self.rule({name: scalar.number(value) for name, value in update.hyperparameters})


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum, dampening, Nesterov's form and weight decay.

    Source: torch.optim.SGD, whose velocity starts as the first gradient without dampening.
    """

    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        """Check the hyperparameters.

        Raises:
            RangeError: Nesterov's form without momentum, or with dampening; negative values.
        """
        super().__post_init__()
        if self.momentum < 0 or self.weight_decay < 0:
            raise RangeError("SGD: momentum and weight_decay must be non-negative")
        if self.nesterov and (self.momentum <= 0 or self.dampening != 0):
            raise RangeError("SGD: nesterov needs momentum above 0 and no dampening")

    @property
    def hyperparameters(self) -> dict[str, float]:
        """What a group may change."""
        return {
            "momentum": self.momentum, "dampening": self.dampening, "weight_decay": self.weight_decay,
            "lr_scale": 1.0,
        }  # fmt: skip

    def rule(self, h: Mapping[str, sp.Expr]) -> Rule:
        """Return the rule."""
        gradient = G + h["weight_decay"] * W
        rate = LR * h["lr_scale"]
        if self.momentum == 0:
            return Rule((), (), (("w", W - rate * gradient),))
        gain = sp.Symbol("gain", real=True)
        velocity = h["momentum"] * slot("velocity") + gain * gradient
        direction = gradient + h["momentum"] * new("velocity") if self.nesterov else new("velocity")
        first = scalar.piecewise((1, scalar.compare(sp.Le, T, 1)), (1 - h["dampening"], True))
        if h["dampening"] == 0:
            velocity = velocity.subs(gain, 1)
        scalars = (("gain", first),) if h["dampening"] != 0 else ()
        return Rule(("velocity",), scalars, (("velocity", velocity), ("w", W - rate * direction)))


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam. Source: Kingma and Ba 2015, algorithm 1, with weight decay added to the gradient."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    @property
    def hyperparameters(self) -> dict[str, float]:
        """What a group may change."""
        return {
            "beta1": self.betas[0], "beta2": self.betas[1], "eps": self.eps,
            "weight_decay": self.weight_decay, "lr_scale": 1.0,
        }  # fmt: skip

    def _rule(self, h: Mapping[str, sp.Expr], gradient: sp.Expr, weight: sp.Expr) -> Rule:
        bias1, bias2 = sp.symbols("bias1 bias2", positive=True)
        mean = h["beta1"] * slot("mean") + (1 - h["beta1"]) * gradient
        square = h["beta2"] * slot("square") + (1 - h["beta2"]) * gradient**2
        step = (new("mean") / bias1) / (sp.sqrt(new("square")) / sp.sqrt(bias2) + h["eps"])
        return Rule(
            ("mean", "square"),
            (("bias1", 1 - h["beta1"] ** T), ("bias2", 1 - h["beta2"] ** T)),
            (("mean", mean), ("square", square), ("w", weight - LR * h["lr_scale"] * step)),
        )

    def rule(self, h: Mapping[str, sp.Expr]) -> Rule:
        """Return the rule."""
        return self._rule(h, G + h["weight_decay"] * W, W)


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay. Source: Loshchilov and Hutter 2019, algorithm 2."""

    weight_decay: float = 0.01

    def rule(self, h: Mapping[str, sp.Expr]) -> Rule:
        """Return the rule."""
        return self._rule(h, G, W * (1 - LR * h["lr_scale"] * h["weight_decay"]))
