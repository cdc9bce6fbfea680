"""Local rewrites that leave values as they are: constants folded into formulas, views merged.

before: mul(add(x, full 0), expand(full 2))     matmul(transpose(a), b)     sum(x * s) with s constant
after:  x * 2                                   matmul(a, b; A transposed)  s * sum(x)
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import sympy as sp

from graphc import scalar
from graphc.graph.node import Node, apply, rebuild
from graphc.ops.anchor import Anchor
from graphc.ops.control import StopGradient
from graphc.ops.elementwise import Elementwise, cast
from graphc.ops.leaves import Full, full
from graphc.ops.matmul import MatMul
from graphc.ops.movement import Expand, Movement, Place, Reshape, Transpose, expand, reshape, transpose
from graphc.ops.pool2d import AvgPool2d, AvgPool2dBackward, MaxPool2d
from graphc.ops.reduce import Reduce
from graphc.ops.scatter import Scatter
from graphc.passes.generated import is_generated
from graphc.types import Shape, broadcast_shapes, product, promote

_ROUNDS = 20  # every rule makes the graph smaller or moves a view towards the leaves; nets need two or three


def simplify(outputs: Mapping[str, Node]) -> dict[str, Node]:
    """Return the graph with the rules below applied bottom-up until nothing changes."""
    nodes = list(outputs.values())
    for _ in range(_ROUNDS):
        rewritten = rebuild(nodes, _rule)
        if rewritten == nodes:
            break
        nodes = rewritten
    return dict(zip(outputs, nodes, strict=True))


def _rule(node: Node, inputs: tuple[Node, ...]) -> Node | None:
    op = node.op
    if isinstance(op, Elementwise):
        return _fold_numbers(op, inputs, node)
    if isinstance(op, StopGradient):
        return inputs[0]  # differentiation has been done
    if isinstance(op, Movement):
        return _merge_views(op, inputs[0], node)
    if isinstance(op, Reduce):
        return _reduce(op, inputs[0], node)
    if isinstance(op, MatMul):
        return _absorb_transposes(op, inputs, node)
    if isinstance(op, (AvgPool2d, AvgPool2dBackward, MaxPool2d)) and _pools_single_pixels(op):
        return inputs[0]
    if isinstance(op, (Anchor, Place)) and node.type.is_float and _is_zero(op, inputs):
        return full(node.shape, 0.0, node.dtype)
    return None


def _pools_single_pixels(op: AvgPool2d | AvgPool2dBackward | MaxPool2d) -> bool:
    """Whether every window is one pixel, as adaptive pooling to the size that an image has."""
    single = op.geometry.area == 1 and op.geometry.tiles
    return single and (isinstance(op, MaxPool2d) or op.divisor in (None, 1))


def _is_zero(op: Anchor | Place, inputs: tuple[Node, ...]) -> bool:
    """Whether an op that is linear in every floating-point input has an input that is zero everywhere."""
    if isinstance(op, Scatter) or (isinstance(op, Place) and op.fill != 0):
        return False  # rows of zeros replace others
    return any(isinstance(i.op, Full) and i.op.value == 0 and i.type.is_float for i in inputs)


def _fold_numbers(op: Elementwise, inputs: tuple[Node, ...], node: Node) -> Node | None:
    """Write finite ``full`` operands into the formula; drop expands that broadcasting does anyway."""
    operands = list(inputs)
    for k, operand in enumerate(operands):
        if isinstance(operand.op, Expand):
            rest = [o.shape for j, o in enumerate(operands) if j != k] + [operand.inputs[0].shape]
            if broadcast_shapes(*rest) == node.shape:
                operands[k] = operand.inputs[0]
    values: dict[sp.Symbol, sp.Expr] = {}
    kept: list[Node] = []
    for k, operand in enumerate(operands):
        if isinstance(operand.op, Full) and math.isfinite(operand.op.value):
            values[scalar.argument(k)] = scalar.number(operand.op.value)
        else:
            values[scalar.argument(k)] = scalar.argument(len(kept))
            kept.append(operand)
    expr = scalar.substitute(op.expr, values) if len(kept) < len(operands) else op.expr
    if expr == scalar.argument(0) and kept and kept[0].dtype == node.dtype:
        return expand(kept[0], node.shape)
    whole = not node.type.is_float and abs(expr) > 2**53 if expr.is_number else False
    if expr.is_number and expr.is_finite and expr.is_real and not whole:
        return full(node.shape, float(expr), node.dtype)
    if len(kept) == len(operands) and tuple(operands) == inputs:
        return None
    used = [k for k in range(len(kept)) if scalar.argument(k) in expr.free_symbols]
    if not used:
        return None
    expr = scalar.substitute(expr, {scalar.argument(k): scalar.argument(j) for j, k in enumerate(used)})
    # A number that is folded in no longer takes part in the promotion of dtypes.
    same = promote(kept[k].dtype for k in used) == node.dtype
    new = Elementwise(
        op.name, expr, len(used), op.result if same else node.dtype, op.integers, op.monotone, op.floats
    )
    return expand(apply(new, [kept[k] for k in used], node.name, node.source), node.shape)


def _merge_views(op: Movement, x: Node, node: Node) -> Node | None:
    if isinstance(x.op, Full):
        return full(node.shape, x.op.value, node.dtype)
    if isinstance(x.op, Elementwise) and is_generated(x):
        # A formula over generated values has no buffer that a view could point into: move its operands instead.
        moved = [apply(op, (expand(i, x.shape),)) for i in x.inputs]
        return apply(x.op, moved, x.name, x.source) if all(is_generated(m) for m in moved) else None
    if isinstance(op, Reshape):
        return reshape(x, node.shape) if isinstance(x.op, Reshape) or x.shape == node.shape else None
    if isinstance(op, Transpose) and isinstance(x.op, Transpose):
        return transpose(x.inputs[0], tuple(x.op.order[a] for a in op.order))
    if isinstance(op, Expand) and isinstance(x.op, Expand):
        return expand(x.inputs[0], node.shape)
    return None


def _constant_along(shape: Shape, rank: int, axes: tuple[int, ...]) -> bool:
    """Whether an operand of this shape, broadcast to ``rank`` axes, does not vary along the axes."""
    new = rank - len(shape)
    return all(a < new or shape[a - new] == 1 for a in axes)


def _reduce(op: Reduce, x: Node, node: Node) -> Node | None:
    """Sum constants by multiplying; take factors that do not vary along the summed axes out of the sum."""
    if op.kind != "sum":
        return None
    if isinstance(x.op, Full):
        count = product(x.shape[a] for a in op.axes)
        return full(node.shape, x.op.value * count, node.dtype) if isinstance(count, int) else None
    if all(x.shape[a] == 1 for a in op.axes):
        return x
    if not isinstance(x.op, Elementwise) or not x.type.is_float or not x.op.expr.is_Mul:
        return None
    inside: list[sp.Expr] = []
    outside: list[sp.Expr] = []
    for factor in x.op.expr.args:
        operands = [i for k, i in enumerate(x.inputs) if scalar.argument(k) in factor.free_symbols]
        constant = all(_constant_along(i.shape, x.rank, op.axes) for i in operands)
        (outside if constant and (operands or factor.is_number) else inside).append(factor)
    if not inside or not outside or all(f.is_number for f in outside):
        return None
    summed = _formula(x, sp.Mul(*inside))
    # The axes count from the left: a formula over operands of lower rank has lost the leading ones.
    summed = reshape(summed, (*[1] * (x.rank - summed.rank), *summed.shape))
    if broadcast_shapes(summed.shape, node.shape) != x.shape:
        summed = expand(summed, x.shape)
    total = Reduce("sum", op.axes)(summed)
    operands = [i for k, i in enumerate(x.inputs) if scalar.argument(k) in sp.Mul(*outside).free_symbols]
    factors = _formula(x, sp.Mul(*outside) * scalar.argument(len(x.inputs)), extra=total)
    return factors if factors.shape == node.shape else reshape(factors, node.shape)


def _formula(x: Node, expr: sp.Expr, extra: Node | None = None) -> Node:
    """Return a formula over some of x's operands (and one more)."""
    operands = [*x.inputs] + ([extra] if extra is not None else [])
    used = [k for k in range(len(operands)) if scalar.argument(k) in expr.free_symbols]
    if len(used) == 1 and expr == scalar.argument(used[0]):
        return cast(operands[used[0]], x.dtype)
    renumbered = scalar.substitute(expr, {scalar.argument(k): scalar.argument(j) for j, k in enumerate(used)})
    assert isinstance(x.op, Elementwise)
    integers = not all(operands[k].type.is_float for k in used)
    promoted = promote(operands[k].dtype for k in used)
    result = None if promoted == x.dtype else x.dtype  # integers alone must still give x's dtype
    op = Elementwise("mul", renumbered, len(used), result, integers=integers)
    return apply(op, [operands[k] for k in used])


def _absorb_transposes(op: MatMul, inputs: tuple[Node, ...], node: Node) -> Node | None:
    """Let a transpose of the last two axes of an operand become the product's attribute."""
    flags = [op.transpose_a, op.transpose_b]
    operands = list(inputs)
    for k, operand in enumerate(operands):
        rank = operand.rank
        swapped = (*range(rank - 2), rank - 1, rank - 2)
        if isinstance(operand.op, Transpose) and operand.op.order == swapped:
            operands[k] = operand.inputs[0]
            flags[k] = not flags[k]
        if isinstance(operand.op, Full) and operand.op.value == 0:
            return full(node.shape, 0.0, node.dtype)
    return None if tuple(operands) == inputs else MatMul(*flags)(*operands, name=node.name)
