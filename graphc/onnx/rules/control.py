"""Branches, loops and scans whose course is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphc.graph.node import Node
from graphc.onnx.site import Result, Site, UnsupportedError, rule
from graphc.onnx.values import Known, Listed, Value, shape_of
from graphc.ops import elementwise as ew
from graphc.ops.movement import concat, getitem, reshape

_MOST = 256  # rounds of a loop, each of which is code of its own


@rule("If")
def if_(site: Site) -> Result:
    """The branch that a known condition chooses; else both, and the condition chooses between their results."""
    branches = site.get("then_branch"), site.get("else_branch")
    condition = site.value(0)
    if isinstance(condition, Known):
        return site.host.inline(branches[0 if condition.array.ravel()[0] else 1], [])
    pairs = list(zip(*(site.host.inline(b, []) for b in branches), strict=True))
    if any(isinstance(v, Listed) for pair in pairs for v in pair) or any(
        shape_of(a) != shape_of(b) or _dtype(a) != _dtype(b) for a, b in pairs
    ):
        site.known(0, "condition")  # the shapes of its results depend on it
    return [_chosen(site, reshape(condition, ()), a, b) for a, b in pairs]


def _dtype(value: Value) -> str:
    return value.dtype if isinstance(value, Node) else str(value.array.dtype)


def _chosen(site: Site, condition: Node, a: Value, b: Value) -> Value:
    arrays = [v.array for v in (a, b) if isinstance(v, Known) and not v.weight and not isinstance(v, Listed)]
    if len(arrays) == 2 and np.array_equal(arrays[0], arrays[1]):
        return a
    return ew.where(condition, site.host.tensor(a), site.host.tensor(b))


@rule("Loop")
def loop(site: Site) -> Result:
    """The body as often as the known count and condition say."""
    count = int(site.known(0, "trip count").ravel()[0]) if site.has(0) else None
    going = bool(site.known(1, "condition").ravel()[0]) if site.has(1) else True
    body, carried = site.get("body"), [site.value(k) for k in range(2, len(site.values))]
    collected: list[list[Value]] = []
    turn = 0
    while going and (count is None or turn < count):
        if turn == _MOST:
            raise UnsupportedError(f"a loop of more than {_MOST} rounds, which are unrolled")
        condition, *results = site.host.inline(
            body, [Known(np.array(turn, np.int64)), Known(np.array(True)), *carried]
        )
        if site.has(1) or count is None:
            if not isinstance(condition, Known):
                raise UnsupportedError("a loop whose end is computed")
            going = bool(condition.array.ravel()[0])
        carried = results[: len(carried)]
        collected.append(results[len(carried) :])
        turn += 1
    if not collected and site.outputs > len(carried):
        raise UnsupportedError("a loop without a round, whose results have no elements")
    return [*carried, *(_stacked(site, list(c), 0) for c in zip(*collected, strict=True))]


def _stacked(site: Site, parts: Sequence[Value], axis: int) -> Value:
    """Return values side by side along a new axis."""
    arrays = [p.array for p in parts if isinstance(p, Known) and not p.weight]
    if len(arrays) == len(parts) and not any(isinstance(p, Listed) for p in parts):
        return Known(np.stack(arrays, axis))
    tensors = [site.host.tensor(p) for p in parts]
    axis %= tensors[0].rank + 1
    return concat([reshape(t, (*t.shape[:axis], 1, *t.shape[axis:])) for t in tensors], axis)


@rule("Scan")
def scan(site: Site) -> Result:
    """The body once for every element along an axis of what is scanned, which is known to be few."""
    if site.version < 9:
        raise UnsupportedError("a Scan with an axis for the batch, from before version 9")
    scanned = site.get("num_scan_inputs")
    states = [site.value(k) for k in range(len(site.values) - scanned)]
    inputs = [site.value(k) for k in range(len(states), len(site.values))]
    axes = _listed(site, "scan_input_axes", scanned)
    axes = [a % len(shape_of(v)) for a, v in zip(axes, inputs, strict=True)]
    backwards = _listed(site, "scan_input_directions", scanned)
    lengths = {shape_of(v)[a] for a, v in zip(axes, inputs, strict=True)}
    length = lengths.pop() if len(lengths) == 1 else None
    if not isinstance(length, int) or not 0 < length <= _MOST:
        raise UnsupportedError(f"a scan of {length} elements; they are unrolled, up to {_MOST}")
    collected: list[list[Value]] = []
    for t in range(length):
        parts = [
            _part(v, a, length - 1 - t if back else t)
            for v, a, back in zip(inputs, axes, backwards, strict=True)
        ]
        results = site.host.inline(site.get("body"), [*states, *parts])
        states = results[: len(states)]
        collected.append(results[len(states) :])
    count = site.outputs - len(states)
    turned = _listed(site, "scan_output_directions", count)
    columns = [
        list(c)[:: -1 if back else 1] for c, back in zip(zip(*collected, strict=True), turned, strict=False)
    ]
    places = _listed(site, "scan_output_axes", count)
    return [*states, *(_stacked(site, c, a) for c, a in zip(columns, places, strict=True))]


def _listed(site: Site, name: str, count: int) -> list[int]:
    return list(site.get(name, [0] * count))


def _part(value: Value, axis: int, position: int) -> Value:
    if isinstance(value, Known) and not value.weight:
        return Known(np.asarray(np.take(value.array, position, axis)))
    if isinstance(value, Known):
        raise UnsupportedError("a scan over a weight")
    index: Any = (*[slice(None)] * axis, position)
    return getitem(value, index)
