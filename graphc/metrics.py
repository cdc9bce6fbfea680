"""Metrics: scalars that a step reports beside its loss."""

from __future__ import annotations

from graphc.graph.node import Node
from graphc.ops.elementwise import cast, equal
from graphc.ops.reduce import argmax, mean


def accuracy(logits: Node, target: Node) -> Node:
    """Return the share of rows whose largest logit is at the target's index."""
    return mean(cast(equal(argmax(logits, 1), target), logits.dtype))
