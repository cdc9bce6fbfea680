"""Losses, with PyTorch's reductions and edge cases."""

from __future__ import annotations

from graphc.errors import RangeError
from graphc.functional import logsumexp, pick
from graphc.graph.node import Node
from graphc.ops.control import bounded
from graphc.ops.reduce import mean, sum


def _reduced(values: Node, reduction: str) -> Node:
    """Return the values, their sum or their mean."""
    if reduction == "none":
        return values
    if reduction == "sum":
        return sum(values)
    if reduction == "mean":
        return mean(values)
    raise RangeError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}")


def cross_entropy(logits: Node, target: Node, *, reduction: str = "mean") -> Node:
    """Return ``logsumexp(logits) - logits[target]`` for class indices."""
    classes = logits.shape[1]
    assert isinstance(classes, int)
    labels = bounded(target, 0, classes)
    values = logsumexp(logits, 1, keepdims=True) - pick(logits, labels, 1)
    return _reduced(values, reduction)
