"""Optimizers as symbolic update rules: what follows from a rule is printed like every other kernel.

A rule says, for one element of one parameter, how the weight ``w`` and the optimizer's own values follow
from the gradient ``g``; adding an optimizer is writing these formulas down.
"""

from __future__ import annotations

import math
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
    """Return the symbol of an optimizer's value after this step; its formula stands earlier in the rule."""
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

    ``lr`` is what a step uses that names no learning rate of its own. ``groups`` maps patterns of
    parameter names (``"*.bias"``) to hyperparameters that differ for them, ``lr_scale`` (a factor on the
    learning rate) among them; of several matching patterns the last wins. ``decay`` chooses what weight
    decay applies to: ``"all"`` parameters, as in PyTorch, or ``"matrices"`` only, which leaves biases and
    batch norm alone.
    """

    lr: float
    groups: Mapping[str, Mapping[str, float]] = field(default_factory=dict, kw_only=True)
    decay: str = field(default="all", kw_only=True)

    def __post_init__(self) -> None:
        """Check the numbers, those of the groups too.

        Raises:
            RangeError: one of them is out of range.
            UnknownNameError: a group sets a hyperparameter that the optimizer does not have.
        """
        if not self.lr >= 0:
            raise RangeError(f"{type(self).__name__}: lr must be non-negative, got {self.lr}")
        if self.decay not in ("all", "matrices"):
            raise RangeError(f"{type(self).__name__}: decay must be 'all' or 'matrices', got {self.decay!r}")
        for where, values in {"": self.hyperparameters, **self.groups}.items():
            self._check(f" group {where!r}" if where else "", values)

    def _check(self, where: str, values: Mapping[str, float]) -> None:
        known = self.hyperparameters
        for name, value in values.items():
            if name not in known:
                raise UnknownNameError(
                    f"{type(self).__name__}:{where} sets {name!r}; known are {', '.join(known)}"
                )
            # Dampening may be negative in PyTorch too; nothing else may.
            if not math.isfinite(value) or (value < 0 and name != "dampening"):
                raise RangeError(
                    f"{type(self).__name__}:{where} {name} must be finite and non-negative, got {value}"
                )

    @property
    @abstractmethod
    def hyperparameters(self) -> dict[str, float]:
        """The numbers of the rule that a group may change."""

    @abstractmethod
    def rule(self, h: Mapping[str, sp.Expr]) -> Rule:
        """Return the rule for given hyperparameters."""

    def hyperparameters_of(self, name: str, rank: int) -> dict[str, float]:
        """Return the hyperparameters of one parameter, given its name and its number of axes."""
        values = dict(self.hyperparameters)
        if self.decay == "matrices" and rank < 2 and "weight_decay" in values:
            values["weight_decay"] = 0.0
        for pattern, overrides in self.groups.items():
            if fnmatchcase(name, pattern):
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
        if self.nesterov and (self.momentum <= 0 or self.dampening != 0):
            raise RangeError("SGD: nesterov needs momentum above 0 and no dampening")

    @property
    def hyperparameters(self) -> dict[str, float]:
        """What a group may change."""
        return {
            "momentum": self.momentum, "dampening": self.dampening, "weight_decay": self.weight_decay,
            "lr_scale": 1.0,
        }  # fmt: skip

    @property
    def keeps_velocity(self) -> bool:
        """Whether any parameter has momentum."""
        return self.momentum > 0 or any(g.get("momentum", 0) > 0 for g in self.groups.values())

    def rule(self, h: Mapping[str, sp.Expr]) -> Rule:
        """Return the rule."""
        gradient = G + h["weight_decay"] * W
        rate = LR * h["lr_scale"]
        if not self.keeps_velocity:
            return Rule((), (), (("w", W - rate * gradient),))
        if h["momentum"] == 0:  # a group without; PyTorch does not dampen there either
            return Rule(("velocity",), (), (("w", W - rate * gradient),))
        gain = sp.Symbol("gain", real=True)
        damped = h["dampening"] != 0
        velocity = h["momentum"] * slot("velocity") + (gain * gradient if damped else gradient)
        direction = gradient + h["momentum"] * new("velocity") if self.nesterov else new("velocity")
        first = scalar.piecewise((1, scalar.compare(sp.Le, T, 1)), (1 - h["dampening"], True))
        scalars = (("gain", first),) if damped else ()
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

    def __post_init__(self) -> None:
        """Check the hyperparameters.

        Raises:
            RangeError: a beta is not in [0, 1), or eps or weight_decay is negative.
        """
        super().__post_init__()
        for values in (self.hyperparameters, *self.groups.values()):
            if not all(0 <= values.get(beta, 0) < 1 for beta in ("beta1", "beta2")):
                raise RangeError(
                    f"{type(self).__name__}: betas, beta1 and beta2 must be in [0, 1), got {values}"
                )

    def _rule(self, h: Mapping[str, sp.Expr], gradient: sp.Expr, weight: sp.Expr) -> Rule:
        """Return the rule, with what the bias corrections and the learning rate make once a step."""
        stride, root = sp.symbols("stride root", positive=True)
        mean = h["beta1"] * slot("mean") + (1 - h["beta1"]) * gradient
        square = h["beta2"] * slot("square") + (1 - h["beta2"]) * gradient**2
        step = stride * new("mean") / (sp.sqrt(new("square")) * root + h["eps"])
        scalars = (
            ("stride", LR * h["lr_scale"] / (1 - h["beta1"] ** T)),
            ("root", 1 / sp.sqrt(1 - h["beta2"] ** T)),
        )
        return Rule(("mean", "square"), scalars, (("mean", mean), ("square", square), ("w", weight - step)))

    def rule(self, h: Mapping[str, sp.Expr]) -> Rule:
        """Return the rule."""
        return self._rule(h, G + h["weight_decay"] * W, W)


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay. Source: Loshchilov and Hutter 2019, algorithm 2."""

    weight_decay: float = 0.01

    def rule(self, h: Mapping[str, sp.Expr]) -> Rule:
        """Return the rule."""
        if h["weight_decay"] == 0:
            return self._rule(h, G, W)
        keep = sp.Symbol("keep", positive=True)
        rule = self._rule(h, G, W * keep)
        scalars = (("keep", 1 - LR * h["lr_scale"] * h["weight_decay"]), *rule.scalars)
        return Rule(rule.slots, scalars, rule.updates)
