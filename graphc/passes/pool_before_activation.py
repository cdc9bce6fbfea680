"""Let max pooling change places with a bias and a monotone activation, so that these see the small image.

before: max_pool2d(relu(x + bias))     after: relu(max_pool2d(x) + bias)

The values are the same, since a non-decreasing function commutes with a maximum, and so does adding one number
to all pixels of a channel, rounding included. The backward pass then keeps only pooled tensors, and the bias's
gradient sums over them.
"""

from __future__ import annotations

from collections.abc import Mapping

from graphc import scalar
from graphc.graph.node import Node, rebuild, topological
from graphc.ops.elementwise import Elementwise
from graphc.ops.pool2d import MaxPool2d

_SUM = scalar.argument(0) + scalar.argument(1)


def pool_before_activation(outputs: Mapping[str, Node]) -> dict[str, Node]:
    """Return the graph with the pooling moved in front of biases and monotone unary activations."""
    while True:
        moved = _moved_by_one(outputs)
        if moved == outputs:
            return moved
        outputs = moved


def _moved_by_one(outputs: Mapping[str, Node]) -> dict[str, Node]:
    uses: dict[Node, int] = {}
    for node in topological(outputs.values()):
        for operand in node.inputs:
            uses[operand] = uses.get(operand, 0) + 1

    def rule(node: Node, inputs: tuple[Node, ...]) -> Node | None:
        if (
            not isinstance(node.op, MaxPool2d)
            or uses[node.inputs[0]] > 1
            or node.inputs[0] in outputs.values()
        ):
            return None
        (below,) = inputs
        if not isinstance(below.op, Elementwise):
            return None
        if below.op.monotone and below.op.arity == 1:
            return below.op(node.op(below.inputs[0], name=node.name), name=below.name)
        if below.op.expr == _SUM:
            # The image comes first or second; the other operand must be the same for all pixels of a channel.
            for k, image in enumerate(below.inputs):
                bias = below.inputs[1 - k]
                if image.shape == below.shape and all(extent == 1 for extent in bias.shape[-2:]):
                    return below.op(node.op(image, name=node.name), bias, name=below.name)
        return None

    return dict(zip(outputs, rebuild(list(outputs.values()), rule), strict=True))
