"""Several nodes that ONNX has one operator for: biases, softmax, normalisation, means.

A pattern guesses from the last node what the operator's operands would be, writes the operator's formula with
them, and matches if that gives the very same node: nodes are interned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import sympy as sp

from graphc import scalar
from graphc.errors import GraphcError
from graphc.graph.node import Node, Op
from graphc.onnx.emission import Match
from graphc.onnx.writers.images import conv_operator
from graphc.ops.conv2d import Conv2d
from graphc.ops.elementwise import Elementwise, exp, log, mul, rsqrt, square
from graphc.ops.matmul import MatMul
from graphc.ops.movement import Reshape
from graphc.ops.reduce import Reduce, mean
from graphc.types import product

_x, _y = scalar.argument(0), scalar.argument(1)
_ADD, _SUB, _MUL, _DIV, _NEG = _x + _y, _x - _y, _x * _y, _x / _y, -_x
_EXP, _LOG, _RSQRT = sp.exp(_x), sp.log(_x), 1 / sp.sqrt(_x)


Pattern: TypeAlias = Callable[[Node], Match]


class _NoMatchError(Exception):
    """The node is another."""


def match(node: Node, users: dict[Node, set[Node]]) -> Match | None:
    """Return what a node is the last of, where nothing else reads the nodes before it."""
    if not isinstance(node.op, Elementwise) or not node.type.is_float:
        return None
    for pattern in _PATTERNS:
        try:
            found = pattern(node)
        except (_NoMatchError, GraphcError):  # shapes that do not even fit the formula
            continue
        if _alone(node, found.operands, users):
            return found
    return None


def users_of(order: Iterable[Node], outputs: Iterable[Node]) -> dict[Node, set[Node]]:
    """Return which nodes read each node; an output is read by itself, which is nobody within a pattern."""
    users: dict[Node, set[Node]] = {node: {node} for node in outputs}
    for node in order:
        for operand in node.inputs:
            users.setdefault(operand, set()).add(node)
    return users


def _alone(root: Node, operands: Sequence[Node], users: dict[Node, set[Node]]) -> bool:
    inside = {root}
    stack = [root]
    while stack:
        for node in stack.pop().inputs:
            if node not in inside and node not in operands:
                inside.add(node)
                stack.append(node)
    kept = [node for node in inside - {root} if node.inputs]
    return all(node not in users[node] and users[node] <= inside for node in kept)


def _parts(node: Node, expr: sp.Expr) -> tuple[Node, ...]:
    if not isinstance(node.op, Elementwise) or node.op.expr != expr:
        raise _NoMatchError
    return node.inputs


def _with_number(node: Node, form: Callable[[sp.Expr], sp.Expr]) -> tuple[Node, float]:
    """Return the operand and the number of an expression such as ``x + number``."""
    op = node.op
    if not isinstance(op, Elementwise) or op.arity != 1:
        raise _NoMatchError
    number = form(op.expr)
    if not number.is_number:
        raise _NoMatchError
    return node.inputs[0], float(number)


def _eps(spread: Node) -> tuple[Node, float]:
    """Return the variance and eps of ``rsqrt(variance + eps)``."""
    (shifted,) = _parts(spread, _RSQRT)
    return _with_number(shifted, lambda expr: expr - _x)


def _same(node: Node, guess: Node) -> None:
    if guess is not node:
        raise _NoMatchError


def _conv_with_bias(node: Node) -> Match:
    """Conv with a bias for each channel."""
    conv, bias = _either(_parts(node, _ADD), Conv2d)
    channels = conv.shape[1]
    if conv.dtype != "float32" or not isinstance(bias.op, Reshape) or bias.inputs[0].shape != (channels,):
        raise _NoMatchError
    if bias.shape not in ((channels, 1, 1), (1, channels, 1, 1)):
        raise _NoMatchError
    assert isinstance(conv.op, Conv2d)
    geometry, weight = conv.op.geometry, conv.inputs[1].shape
    return Match(
        (*conv.inputs, bias.inputs[0]), lambda e, names: conv_operator(e, names, geometry, weight), conv
    )


def _product_with_bias(node: Node) -> Match:
    """Gemm with a bias for each column."""
    matrix, bias = _either(_parts(node, _ADD), MatMul)
    if matrix.rank != 2 or bias.shape != matrix.shape[1:]:
        raise _NoMatchError
    assert isinstance(matrix.op, MatMul)
    ta, tb = int(matrix.op.transpose_a), int(matrix.op.transpose_b)
    return Match((*matrix.inputs, bias), lambda e, names: e.op("Gemm", *names, transA=ta, transB=tb), matrix)


def _either(pair: tuple[Node, ...], kind: type[Op]) -> tuple[Node, Node]:
    """Return the operand of some kind, and the other."""
    first, second = pair
    if not isinstance(first.op, kind):
        first, second = second, first
    if not isinstance(first.op, kind):
        raise _NoMatchError
    return first, second


def _batch_norm(node: Node) -> Match:
    """x*scale + (shift + beta), with scale and shift made of running statistics and parameters."""
    scaled, shifted = _parts(node, _ADD)
    x, scale = _parts(scaled, _MUL)
    spread, gamma = _parts(scale, _MUL)
    shift, beta = _parts(shifted, _ADD)
    negative, _ = _parts(shift, _MUL)
    (average,) = _parts(negative, _NEG)
    variance, eps = _eps(spread)
    shaped = (gamma, beta, average, variance)
    channels = (x.shape[1],)
    if node.dtype != "float32" or not all(isinstance(n.op, Reshape) for n in shaped):
        raise _NoMatchError
    vectors = tuple(n.inputs[0] for n in shaped)
    if any(v.shape != channels for v in vectors) or any(
        n.shape != (1, *channels, *[1] * (x.rank - 2)) for n in shaped
    ):
        raise _NoMatchError
    again = rsqrt(variance + eps) * gamma
    _same(node, mul(x, again) + (-average * again + beta))
    return Match((x, *vectors), lambda e, names: e.op("BatchNormalization", *names, epsilon=eps), node)


def _layer_norm(node: Node) -> Match:
    """(x - mean)*rsqrt(variance + eps)*weight + bias over the last axes."""
    weighted, bias = _parts(node, _ADD)
    normal, weight = _parts(weighted, _MUL)
    deviation, spread = _parts(normal, _MUL)
    x, _ = _parts(deviation, _SUB)
    _, eps = _eps(spread)
    count = weight.rank
    if (
        node.dtype != "float32"
        or not count
        or weight.shape != x.shape[x.rank - count :]
        or bias.shape != weight.shape
    ):
        raise _NoMatchError
    axes = tuple(range(x.rank - count, x.rank))
    again = x - mean(x, axes, keepdims=True)
    variance = mean(square(again), axes, keepdims=True)
    _same(node, again * rsqrt(variance + eps) * weight + bias)
    return Match(
        (x, weight, bias), lambda e, names: e.op("LayerNormalization", *names, axis=-count, epsilon=eps), node
    )


def _softmax(node: Node) -> Match:
    """exp(x - max(x)) over its sum."""
    weights, total = _parts(node, _DIV)
    (shifted,) = _parts(weights, _EXP)
    x, _ = _parts(shifted, _SUB)
    axis = _summed_axis(total)
    again = exp(x - Reduce("max", (axis,))(x))
    _same(node, again / Reduce("sum", (axis,))(again))
    return Match((x,), lambda e, names: e.op("Softmax", *names, axis=axis), node)


def _log_softmax(node: Node) -> Match:
    """X - max(x) less the logarithm of the sum of its exponentials."""
    shifted, subtracted = _parts(node, _SUB)
    (total,) = _parts(subtracted, _LOG)
    x, _ = _parts(shifted, _SUB)
    axis = _summed_axis(total)
    again = x - Reduce("max", (axis,))(x)
    _same(node, again - log(Reduce("sum", (axis,))(exp(again))))
    return Match((x,), lambda e, names: e.op("LogSoftmax", *names, axis=axis), node)


def _summed_axis(total: Node) -> int:
    if not isinstance(total.op, Reduce) or total.op.kind != "sum" or len(total.op.axes) != 1:
        raise _NoMatchError
    return total.op.axes[0]


def _mean(node: Node) -> Match:
    """A sum over its number of elements."""
    total, number = _with_number(node, lambda expr: _x / expr)
    op = total.op
    if not isinstance(op, Reduce) or op.kind != "sum":
        raise _NoMatchError
    (x,) = total.inputs
    if product(x.shape[a] for a in op.axes) != number:
        raise _NoMatchError
    axes = op.axes
    return Match((x,), lambda e, names: e.op("ReduceMean", *names, e.integers(axes), keepdims=1), node)


_PATTERNS: tuple[Pattern, ...] = (
    _layer_norm, _batch_norm, _conv_with_bias, _product_with_bias, _softmax, _log_softmax, _mean,
)  # fmt: skip
