"""Check the gradients of a loss: what the compiled backward pass gives, against central differences in float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch

import numpy as np

from graphc.api import Module, compile
from graphc.errors import GraphError, NumericalError, RangeError, UnknownNameError
from graphc.export.samples import sample_inputs
from graphc.graph.node import Node

_ROUNDINGS = 100.0
_SHOWN = 8  # parameters that an error names


@dataclass(frozen=True)
class GradientRow:
    """One parameter: how many of its elements were checked, and the worst of them.

    ``error`` is the difference of the two values, as a part of the largest gradient of the parameter.
    """

    name: str
    checked: int
    elements: int
    error: float
    index: tuple[int, ...]
    compiled: float
    difference: float
    passes: bool

    def __str__(self) -> str:
        """Return one line."""
        place = f"[{', '.join(map(str, self.index))}]"
        return (
            f"{'ok  ' if self.passes else 'FAIL'} {self.name}: {self.checked:,} of {self.elements:,} checked, worst "
            f"{self.error:.2g} at {place}: compiled {self.compiled:.9g}, central difference {self.difference:.9g}"
        )


@dataclass(frozen=True)
class GradientCheck:
    """The result of :func:`check_gradients`: a row for each parameter, the worst first."""

    rows: tuple[GradientRow, ...]

    @property
    def passes(self) -> bool:
        """Whether every gradient that was checked is right."""
        return all(row.passes for row in self.rows)

    def table(self) -> str:
        """Return one line for each parameter, the worst first."""
        return "\n".join(map(str, self.rows)) + "\n"


def check_gradients(
    loss: Node,
    inputs: Mapping[str, np.ndarray] | None = None,
    *,
    parameters: Mapping[str, np.ndarray] | None = None,
    only: str = "*",
    batch: int = 3,
    samples: int = 50,
    epsilon: float = 1e-5,
    tolerance: float = 1e-6,
    seed: int = 0,
    raises: bool = True,
) -> GradientCheck:
    """Compare the gradients of a loss with central differences, (loss(w + h) - loss(w - h)) / 2h, in float64.

    The graph is compiled in float64, in training mode; random layers draw the same numbers for every value of a
    parameter. Where the loss has a kink within h of a value (a ReLU at 0, two equal elements of a maximum) the two
    differ: other inputs tell a kink from an error.

    Args:
        loss: a scalar; every trainable parameter that it depends on is checked.
        inputs: a batch by names; by default normal numbers, and integers within their bounds.
        parameters: values other than the first values of some parameters.
        only: a pattern of the parameters' names, such as ``"conv1.*"``.
        batch: rows of the inputs that are made up.
        samples: elements of each parameter that are checked, drawn at random; smaller parameters are checked whole.
        epsilon: h, for values up to 1; for larger ones in proportion.
        tolerance: of the difference, as a part of the largest gradient of the parameter.
        seed: of first values, random layers and samples.
        raises: whether a wrong gradient is an error.

    Raises:
        NumericalError: a gradient is wrong, the worst entries named; or the loss is not finite.
        GraphcError: the loss is no scalar or depends on no parameter, or a name is unknown.
    """
    if not isinstance(loss, Node):
        raise GraphError(f"check_gradients: the loss must be a tensor, got {type(loss).__name__}")
    if samples < 1 or not 0 < epsilon < 1 or tolerance <= 0:
        raise RangeError(
            f"check_gradients: expected samples of at least 1, epsilon in (0, 1) and a tolerance above 0, got "
            f"{samples}, {epsilon} and {tolerance}"
        )
    rows = (
        batch if inputs is None else max((np.shape(v)[0] for v in inputs.values() if np.ndim(v)), default=1)
    )
    module = compile({}, loss, batch=rows, dtype="float64", seed=seed, name="checked")
    for name, value in (parameters or {}).items():
        module.params[name] = np.asarray(value, np.float64)
    given = dict(inputs) if inputs is not None else sample_inputs(module.compiled.program, batch)
    given = {k: np.asarray(v, np.float64) if np.asarray(v).dtype.kind == "f" else v for k, v in given.items()}
    first = float(module.backward(**given))
    if not np.isfinite(first):
        raise NumericalError("check_gradients: the loss is not finite, so that it has no differences")
    gradients = {name: array.copy() for name, array in module.grads.items() if fnmatch(name, only)}
    if not gradients:
        raise UnknownNameError(
            f"check_gradients: no trainable parameter fits {only!r}; there are {', '.join(module.grads)}"
        )
    rng = np.random.default_rng(seed)
    # What rounding of the loss alone does to a difference: gradients below that cannot be told from 0.
    noise = _ROUNDINGS * np.finfo(np.float64).eps * max(1.0, abs(first)) / epsilon
    least = noise / tolerance
    found = [
        _row(module, given, name, g, rng, samples, epsilon, tolerance, least) for name, g in gradients.items()
    ]
    check = GradientCheck(tuple(sorted(found, key=lambda row: (row.passes, -row.error))))
    if raises and not check.passes:
        wrong = [str(row) for row in check.rows if not row.passes]
        more = f"\n... and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise NumericalError(
            f"check_gradients: {len(wrong)} of {len(found)} parameters have wrong gradients, at {loss.source}\n"
            + "\n".join(wrong[:_SHOWN]) + more
        )  # fmt: skip
    return check


def _row(
    module: Module, inputs: Mapping[str, np.ndarray], name: str, gradient: np.ndarray, rng: np.random.Generator,
    samples: int, epsilon: float, tolerance: float, least: float,
) -> GradientRow:  # fmt: skip
    """Return the check of one parameter, which has its value again afterwards."""
    value = module.params[name].copy()
    places = np.arange(value.size)
    if value.size > samples:
        places = np.sort(rng.choice(value.size, samples, replace=False))
    scale = max(float(np.abs(gradient).max(initial=0.0)), least)
    worst = (-1.0, 0, 0.0, 0.0)
    for place in places:
        compiled = float(gradient.flat[place])
        difference = _difference(module, inputs, name, value, int(place), epsilon)
        error = abs(compiled - difference) / scale
        if not error <= worst[0]:  # NaN is the worst
            worst = (error, int(place), compiled, difference)
    module.params[name] = value
    index = tuple(int(k) for k in np.unravel_index(worst[1], value.shape)) if value.shape else ()
    return GradientRow(
        name, len(places), value.size, worst[0], index, worst[2], worst[3], bool(worst[0] <= tolerance)
    )


def _difference(
    module: Module, inputs: Mapping[str, np.ndarray], name: str, value: np.ndarray, place: int, epsilon: float
) -> float:
    """Return the central difference of the loss in one element."""
    losses = []
    steps = []
    for sign in (1.0, -1.0):
        moved = value.copy()
        moved.flat[place] += sign * epsilon * max(1.0, abs(float(value.flat[place])))
        module.params[name] = moved
        losses.append(float(module.backward(**inputs)))
        steps.append(float(moved.flat[place]))
    return (losses[0] - losses[1]) / (steps[0] - steps[1])
