"""Let max pooling and a monotone activation change places, so that the activation sees the small image.

before: max_pool2d(relu(x))     after: relu(max_pool2d(x))

The values are the same, since a non-decreasing function commutes with a maximum; the backward pass then
keeps only pooled tensors.
"""

from __future__ import annotations

from collections.abc import Mapping

from graphc.graph.node import Node, rebuild, topological
from graphc.ops.elementwise import Elementwise
from graphc.ops.pool2d import MaxPool2d


def pool_before_activation(outputs: Mapping[str, Node]) -> dict[str, Node]:
    """Return the graph with the pooling moved in front of monotone unary activations."""
    uses: dict[Node, int] = {}
    for node in topological(outputs.values()):
        for operand in node.inputs:
            uses[operand] = uses.get(operand, 0) + 1

    def rule(node: Node, inputs: tuple[Node, ...]) -> Node | None:
        if not isinstance(node.op, MaxPool2d):
            return None
        (activated,) = inputs
        op = activated.op
        alone = uses[node.inputs[0]] == 1 and node.inputs[0] not in outputs.values()
        if alone and isinstance(op, Elementwise) and op.monotone and op.arity == 1:
            return op(node.op(activated.inputs[0], name=node.name), name=activated.name)
        return None

    return dict(zip(outputs, rebuild(list(outputs.values()), rule), strict=True))
