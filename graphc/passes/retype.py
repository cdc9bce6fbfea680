"""Compile the same graph in another precision: every float32 becomes float64, or the reverse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from graphc.graph.node import Node, apply, rebuild
from graphc.ops.elementwise import Elementwise
from graphc.ops.leaves import Constant, Leaf
from graphc.types import DType


def retype(outputs: Mapping[str, Node], dtype: DType) -> dict[str, Node]:
    """Return the graph with all floating-point leaves and casts in one dtype."""

    def rule(node: Node, inputs: tuple[Node, ...]) -> Node | None:
        op = node.op
        if isinstance(op, Constant) and node.type.is_float and op.dtype != dtype:
            return apply(replace(op, dtype=dtype), (), node.name, node.source)
        if isinstance(op, Leaf) and node.type.is_float and node.dtype != dtype:
            # Every leaf is a dataclass with a dtype; that cannot be said of the abstract base.
            return apply(replace(op, dtype=dtype), (), node.name, node.source)  # type: ignore[type-var]
        if isinstance(op, Elementwise) and op.result in ("float32", "float64") and op.result != dtype:
            return apply(replace(op, result=dtype), inputs, node.name, node.source)
        return None

    return dict(zip(outputs, rebuild(list(outputs.values()), rule), strict=True))
