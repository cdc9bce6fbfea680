"""Which values an index determines: constants, iota, random numbers, and formulas over them.

Kernels compute such values wherever they read them. A view of one (a transpose, a slice) is one too, as
long as the position in the generator is a linear function of the loop indices; a reshape may break that
(the index along the first axis of a tensor, seen flat, needs a division), and is stored then.
"""

from __future__ import annotations

from graphc.graph.node import Node
from graphc.ops.elementwise import Elementwise
from graphc.ops.leaves import BatchExtent, Full, Iota, RandomUniform
from graphc.ops.movement import Movement, View
from graphc.types import contiguous_strides


def is_generated(node: Node) -> bool:
    """Whether an index determines the value: such nodes are computed where they are read, never stored."""
    if isinstance(node.op, Elementwise):
        return all(is_generated(i) for i in node.inputs)
    return generator_view(node) is not None


def generator_view(node: Node) -> tuple[Node, View] | None:
    """Return the generator under a chain of movements and the view of its index, or None if there is none."""
    if isinstance(node.op, Movement):
        below = generator_view(node.inputs[0])
        if below is None:
            return None
        moved = node.op.view(below[1], node.shape)
        return None if moved is None else (below[0], moved)
    if isinstance(node.op, Iota):
        return node, View(node.shape, tuple(1 if a == node.op.axis else 0 for a in range(node.rank)))
    if isinstance(node.op, RandomUniform):
        return node, View(node.shape, contiguous_strides(node.shape))
    if isinstance(node.op, (Full, BatchExtent)):
        return node, View(node.shape, (0,) * node.rank)
    return None
