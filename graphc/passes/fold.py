"""Move what depends on parameters alone out of inference, and batch norm's scale into the weights before it.

before: conv2d(x, w) * (gamma * rsqrt(variance + eps)) + (beta - mean * gamma * rsqrt(variance + eps))
after:  conv2d(x, folded_0) + folded_1, where the fold step computes folded_0 and folded_1
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from graphc import scalar
from graphc.graph.node import Node, apply, rebuild, topological
from graphc.ops.conv2d import Conv2d
from graphc.ops.elementwise import Elementwise, mul
from graphc.ops.leaves import Constant, Folded, Full, Iota, Parameter, State
from graphc.ops.matmul import MatMul
from graphc.ops.movement import Movement, reshape
from graphc.passes.fuse import is_virtual
from graphc.types import Shape


def fixed_nodes(outputs: Mapping[str, Node], leaves: Collection[Node] | None = None) -> set[Node]:
    """Return the nodes that depend on parameters, state and constants alone; where given, on these leaves alone."""
    fixed: set[Node] = set()
    for node in topological(outputs.values()):
        if not all(isinstance(d, int) for d in node.shape):
            continue  # a parameter repeated along the run-time batch has as many elements as the batch says
        if node.inputs:
            counts = all(i in fixed for i in node.inputs)
        elif isinstance(node.op, (Parameter, State, Constant)):
            counts = leaves is None or node in leaves
        else:
            counts = isinstance(node.op, (Full, Iota, Folded))
        if counts:
            fixed.add(node)
    return fixed


def fold_scales(outputs: Mapping[str, Node]) -> dict[str, Node]:
    """Return the graph with per-channel factors of a convolution or linear layer moved into its weights."""
    fixed = fixed_nodes(outputs)
    readers: dict[Node, int] = {}
    for node in topological(outputs.values()):
        for operand in node.inputs:
            readers[operand] = readers.get(operand, 0) + 1
    kept = set(outputs.values())

    def rule(node: Node, inputs: tuple[Node, ...]) -> Node | None:
        if not isinstance(node.op, Elementwise) or node.op.expr != scalar.argument(0) * scalar.argument(1):
            return None
        for position in (0, 1):
            product, factor = node.inputs[position], node.inputs[1 - position]
            alone = readers[product] == 1 and product not in kept
            same = product.type == node.type and factor.dtype == node.dtype
            if factor in fixed and alone and same:
                return _scaled(inputs[position], inputs[1 - position])
        return None

    return dict(zip(outputs, rebuild(list(outputs.values()), rule), strict=True))


def _scaled(product: Node, factor: Node) -> Node | None:
    """Return the product with its weights multiplied by a factor per output channel, or None."""
    weights = product.inputs[1] if len(product.inputs) == 2 else None
    if isinstance(product.op, Conv2d) and weights is not None:
        channels = product.shape[1]
        if _varies_only_along(factor.shape, product.rank, 1):
            return apply(product.op, (product.inputs[0], mul(weights, reshape(_vector(factor), (channels, 1, 1, 1)))),
                         product.name, product.source)  # fmt: skip
    if isinstance(product.op, MatMul) and weights is not None and product.rank == 2 and weights.rank == 2:
        if _varies_only_along(factor.shape, 2, 1):
            shape: Shape = (product.shape[1], 1) if product.op.transpose_b else (1, product.shape[1])
            return apply(product.op, (product.inputs[0], mul(weights, reshape(_vector(factor), shape))),
                         product.name, product.source)  # fmt: skip
    return None


def _vector(factor: Node) -> Node:
    return reshape(factor, (factor.type.size,))


def _varies_only_along(shape: Shape, rank: int, axis: int) -> bool:
    """Whether a tensor of this shape, broadcast to ``rank`` axes, has its one long extent at ``axis``."""
    new = rank - len(shape)
    return (
        len(shape) > axis - new >= 0
        and all(d == 1 for a, d in enumerate(shape) if a + new != axis)
        and (shape[axis - new] != 1)
    )


def hoist_fixed(
    outputs: Mapping[str, Node],
    leaf_of: Callable[[Node], Node],
    *,
    leaves: Collection[Node] | None = None,
    copied: bool = False,
) -> tuple[dict[str, Node], dict[Node, Node]]:
    """Split a graph into (what runs at every call, what is computed ahead of it).

    The first reads the leaves that ``leaf_of`` gives for values; the second has the value of each.

    Args:
        outputs: the graph.
        leaf_of: returns the leaf that stands for a value: the same for the same value in all entry points.
        leaves: parameters, states and constants that values computed ahead may depend on; by default all.
        copied: what is read as it is gets a leaf as well, so that these parameters are not read at all.
    """
    fixed = fixed_nodes(outputs, leaves)
    wanted: dict[Node, Node] = {}

    def want(node: Node) -> None:
        while isinstance(node.op, Movement):
            node = node.inputs[0]
        stored = copied and isinstance(node.op, (Parameter, State, Constant))
        if node in fixed and (stored or not is_virtual(node)):
            wanted[node] = leaf_of(node)

    for node in topological(outputs.values()):
        if node not in fixed:
            for operand in node.inputs:
                want(operand)
    if copied:
        for node in outputs.values():
            want(node)
    rewritten = rebuild(list(outputs.values()), lambda node, inputs: wanted.get(node))
    return dict(zip(outputs, rewritten, strict=True)), {leaf: value for value, leaf in wanted.items()}
