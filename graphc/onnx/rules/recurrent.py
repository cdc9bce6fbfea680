"""Recurrent layers, unrolled over their sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from graphc.graph.node import Node
from graphc.onnx.site import Site, UnsupportedError, rule
from graphc.ops import elementwise as ew
from graphc.ops.leaves import full
from graphc.ops.matmul import matmul
from graphc.ops.movement import concat, getitem, reshape, transpose
from graphc.types import Size

_LONGEST = 512  # steps, each of which is code of its own
_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
_DEFAULTS = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}

Activation = Callable[[Node], Node]


def _affine(x: Node, alpha: float, beta: float) -> Node:
    return x * alpha + beta


_ACTIVATIONS: dict[str, tuple[Callable[..., Node], tuple[float | None, ...]]] = {
    "relu": (ew.relu, ()),
    "tanh": (ew.tanh, ()),
    "sigmoid": (ew.sigmoid, ()),
    "softsign": (lambda x: x / (ew.abs(x) + 1.0), ()),
    "softplus": (ew.softplus, ()),
    "affine": (_affine, (None, None)),
    "leakyrelu": (ew.leaky_relu, (0.01,)),
    "elu": (ew.elu, (1.0,)),
    "thresholdedrelu": (lambda x, alpha: ew.where(ew.greater(x, alpha), x, 0.0), (1.0,)),
    "scaledtanh": (lambda x, alpha, beta: ew.tanh(x * beta) * alpha, (None, None)),
    "hardsigmoid": (lambda x, alpha, beta: ew.clip(x * alpha + beta, 0.0, 1.0), (0.2, 0.5)),
}
"""Activations by their name in lower case, with the defaults of alpha and beta where they have these."""


def _activations(site: Site, directions: int) -> list[Activation]:
    """Return the activations of all directions; alphas and betas go to those that have them, in order."""
    names = site.get("activations", _DEFAULTS[site.op] * directions)
    if len(names) != directions * len(_DEFAULTS[site.op]):
        raise UnsupportedError(f"{len(names)} activations for {directions} directions")
    given = [iter(site.get(f"activation_{k}", [])) for k in ("alpha", "beta")]
    return [_activation(str(name), given, site.get("clip")) for name in names]


def _activation(name: str, given: Sequence[Iterator[float]], bound: float | None) -> Activation:
    if name.lower() not in _ACTIVATIONS:
        raise UnsupportedError(f"activation {name!r}")
    function, defaults = _ACTIVATIONS[name.lower()]
    numbers = [next(values, default) for values, default in zip(given, defaults, strict=False)]
    if None in numbers:
        raise UnsupportedError(f"activation {name!r} without its alpha or beta")

    def applied(x: Node) -> Node:
        clipped = x if bound is None else ew.clip(x, -float(bound), float(bound))
        return function(clipped, *numbers)

    return applied


@dataclass(frozen=True)
class _Cell:
    """What a direction computes with: activations, recurrent weights and biases, and peepholes."""

    op: str
    size: int
    functions: Sequence[Activation]
    weights: Node
    bias: Node | None
    peepholes: Node | None
    flags: Any

    def gate(self, x: Node, k: int) -> Node:
        return getitem(x, (..., slice(k * self.size, (k + 1) * self.size)))

    def step(self, x: Node, h: Node, c: Node) -> tuple[Node, Node]:
        """Return the new states; x holds what the input gives to all gates, with its biases."""
        if self.op == "GRU":
            return self._gru(x, h), c
        total = x + matmul(h, transpose(self.weights))
        if self.bias is not None:
            total = total + self.bias
        if self.op == "RNN":
            return self.functions[0](total), c
        return self._lstm(total, c)

    def _lstm(self, total: Node, c: Node) -> tuple[Node, Node]:
        f, g, h = self.functions
        i, o, forget, new = (self.gate(total, k) for k in range(4))  # ONNX's order of the gates
        peeps = [None if self.peepholes is None else self.gate(self.peepholes, k) for k in range(3)]
        i = f(i if peeps[0] is None else i + peeps[0] * c)
        forget = (
            1.0 - i
            if self.flags("input_forget", 0)
            else f(forget if peeps[2] is None else forget + peeps[2] * c)
        )
        c = forget * c + i * g(new)
        return f(o if peeps[1] is None else o + peeps[1] * c) * h(c), c

    def _gru(self, x: Node, h: Node) -> Node:
        f, g = self.functions
        n = self.size

        def part(first: int, last: int, state: Node) -> Node:
            found = matmul(state, transpose(getitem(self.weights, slice(first * n, last * n))))
            return found if self.bias is None else found + getitem(self.bias, slice(first * n, last * n))

        gates = getitem(x, (..., slice(0, 2 * n))) + part(0, 2, h)
        z, r = f(self.gate(gates, 0)), f(self.gate(gates, 1))
        hidden = r * part(2, 3, h) if self.flags("linear_before_reset", 0) else part(2, 3, r * h)
        return (1.0 - z) * g(self.gate(x, 2) + hidden) + z * h


@rule("RNN", "GRU", "LSTM")
def recurrent(site: Site) -> list[Node]:
    """The states of all steps, and the last ones; one product gives what all inputs contribute."""
    x, last = site.tensor(0), bool(site.get("layout", 0))
    x = transpose(x, (1, 0, 2)) if last else x
    length, batch, _ = x.shape
    if not isinstance(length, int) or length > _LONGEST:
        raise UnsupportedError(f"a sequence of {length} steps; they are unrolled, up to {_LONGEST}")
    direction = site.get("direction", "forward")
    count = 2 if direction == "bidirectional" else 1
    if direction not in ("forward", "reverse", "bidirectional") or site.shape(1)[0] != count:
        raise UnsupportedError(f"direction {direction!r} with weights of shape {site.shape(1)}")
    functions, each = _activations(site, count), len(_DEFAULTS[site.op])
    lengths = site.tensor(4) if site.has(4) else None
    runs: list[tuple[list[Node], Node, Node]] = []
    for d in range(count):
        backwards = direction == "reverse" or d == 1
        cell, inputs = _cell(site, d, functions[d * each : (d + 1) * each], x)
        states = [_initial(site, k, d, batch, cell.size, x.dtype, last) for k in (5, 6)]
        runs.append(_unrolled(cell, inputs, states, backwards, lengths))
    stacked = [_stack([_stack(steps, 0) for steps, _, _ in runs], 1)]
    stacked += [_stack([h for _, h, _ in runs], 0), _stack([c for _, _, c in runs], 0)]
    if last:
        stacked = [transpose(stacked[0], (2, 0, 1, 3)), *(transpose(s, (1, 0, 2)) for s in stacked[1:])]
    return stacked[: 3 if site.op == "LSTM" else 2]


def _cell(site: Site, d: int, functions: Sequence[Activation], x: Node) -> tuple[_Cell, Node]:
    """Return a direction's cell, and what the inputs of all steps give to its gates."""
    weights, hidden = getitem(site.tensor(1), d), getitem(site.tensor(2), d)
    size = hidden.shape[1]
    if not isinstance(size, int) or hidden.shape[0] != _GATES[site.op] * size:
        raise UnsupportedError(f"recurrent weights of shape {site.shape(2)}")
    length, batch, features = x.shape
    rows = reshape(x, (length * batch, features))
    inputs = reshape(matmul(rows, transpose(weights)), (length, batch, weights.shape[0]))
    bias = None
    if site.has(3):
        both = getitem(site.tensor(3), d)
        half = _GATES[site.op] * size
        inputs, bias = inputs + getitem(both, slice(0, half)), getitem(both, slice(half, 2 * half))
    peepholes = getitem(site.tensor(7), d) if site.op == "LSTM" and site.has(7) else None
    return _Cell(site.op, size, functions, hidden, bias, peepholes, site.get), inputs


def _initial(site: Site, position: int, d: int, batch: Size, size: int, dtype: Any, last: bool) -> Node:
    if not site.has(position) or (position == 6 and site.op != "LSTM"):
        return full((batch, size), 0.0, dtype)
    state = site.tensor(position)
    return getitem(state, (slice(None), d)) if last else getitem(state, d)


def _unrolled(
    cell: _Cell, inputs: Node, states: Sequence[Node], backwards: bool, lengths: Node | None
) -> tuple[list[Node], Node, Node]:
    """Return the states of all steps in the order of the inputs, and the last of both."""
    h, c = states
    length = inputs.shape[0]
    assert isinstance(length, int)
    found: dict[int, Node] = {}
    for t in reversed(range(length)) if backwards else range(length):
        new_h, new_c = cell.step(getitem(inputs, t), h, c)
        if lengths is None:
            h, c = new_h, new_c
            found[t] = h
            continue
        inside = reshape(ew.greater(lengths, t), (*lengths.shape, 1))
        h, c = ew.where(inside, new_h, h), ew.where(inside, new_c, c)
        found[t] = ew.where(inside, new_h, full((), 0.0, h.dtype))
    return [found[t] for t in range(length)], h, c


def _stack(parts: Sequence[Node], axis: int) -> Node:
    return concat([reshape(p, (*p.shape[:axis], 1, *p.shape[axis:])) for p in parts], axis)
