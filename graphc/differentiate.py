"""Reverse-mode differentiation, graph to graph: the gradient is nodes like any other."""

from __future__ import annotations

from collections.abc import Sequence

from graphc.errors import GraphError
from graphc.graph.node import Node, names_the_line, topological
from graphc.graph.source import attribute_to
from graphc.ops.leaves import full
from graphc.types import shape_text


@names_the_line
def grad(loss: Node, wrt: Sequence[Node]) -> list[Node]:
    """Return the gradient of a scalar with respect to each tensor, in the tensors' shapes.

    May be applied to its own results. A tensor that the loss does not depend on gets zeros.

    Raises:
        GraphError: the loss is no floating-point scalar, or a tensor is not floating-point.
    """
    if loss.shape != () or not loss.type.is_float:
        raise GraphError(f"grad: the loss must be a floating-point scalar, got {loss!r}")
    for tensor in wrt:
        if not tensor.type.is_float:
            raise GraphError(f"grad: {tensor!r} is not floating-point")
    order = topological([loss])
    depends = set(wrt)
    for node in order:
        if any(i in depends for i in node.inputs):
            depends.add(node)
    cotangents: dict[Node, list[Node]] = {loss: [full((), 1.0, loss.dtype)]}
    totals: dict[Node, Node] = {}
    for node in reversed(order):
        arrived = cotangents.pop(node, None)
        if arrived is None or node not in depends:
            continue
        with attribute_to(node.source):
            total = _sum(arrived)
            if node in wrt:
                totals[node] = total
            if not any(i in depends for i in node.inputs):
                continue
            for operand, part in zip(node.inputs, node.op.vjp(node, total), strict=True):
                if part is None or operand not in depends:
                    continue
                assert part.type == operand.type, (
                    f"{node.op.title}: cotangent {shape_text(part.shape)} for {operand!r}"
                )
                cotangents.setdefault(operand, []).append(part)
    return [totals[t] if t in totals else full(t.shape, 0.0, t.dtype) for t in wrt]


def _sum(parts: list[Node]) -> Node:
    """Return the sum of the cotangents in the order in which they arrived."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
