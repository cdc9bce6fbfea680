"""Elementwise ops: their expressions, in the dtype that their operands are promoted to."""

from __future__ import annotations

from typing import Any

import sympy as sp

from graphc import scalar
from graphc.graph.node import Node
from graphc.onnx.emission import Emission, writes
from graphc.onnx.formulas import Formulas
from graphc.ops import elementwise as ew
from graphc.ops.elementwise import Elementwise
from graphc.ops.leaves import Full, constant
from graphc.scalar.symbols import is_condition, symbols_of
from graphc.types import Shape, broadcast_shapes, promote

_x = scalar.argument(0)
_COMPUTED = ("float32", "float64", "int32", "int64")  # what runtimes have arithmetic for


def _expression(of: Node) -> sp.Expr:
    """Return the expression of a ready-made function, applied to any tensor."""
    assert isinstance(of.op, Elementwise)
    return of.op.expr


_ANY = constant([0.0, 1.0])
_WHOLE: dict[sp.Expr, tuple[str, dict[str, Any]]] = {
    _expression(ew.gelu(_ANY)): ("Gelu", {}),
    _expression(ew.gelu(_ANY, "tanh")): ("Gelu", {"approximate": "tanh"}),
    _expression(ew.hard_swish(_ANY)): ("HardSwish", {}),
    _expression(ew.hard_sigmoid(_ANY)): ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
}
"""What ONNX has a whole operator for; runtimes have them in float32 only."""


@writes(Elementwise)
def write_elementwise(e: Emission, node: Node) -> str:
    """Write the operators of the expression."""
    op = node.op
    assert isinstance(op, Elementwise)
    promoted = str(promote(i.dtype for i in node.inputs))
    if op.name == "cast" and op.expr == _x:
        return e.cast(e.names[node.inputs[0]], node.dtype)
    if op.expr in _WHOLE and promoted == "float32" and node.dtype == "float32":
        kind, attributes = _WHOLE[op.expr]
        return e.op(kind, e.names[node.inputs[0]], **attributes)
    dtype = promoted if promoted in _COMPUTED else "int32" if promoted in ("bool", "uint8") else "int64"
    values, shapes = _operands(e, node, dtype)
    formulas = Formulas(e, values, dtype)
    truth = _truth_of(op.expr) if node.dtype == "bool" else None
    result = formulas.write(op.expr if truth is None else truth)
    if truth is None and dtype != node.dtype:
        result = e.cast(result, node.dtype)
    read = symbols_of(op.expr)  # which may be fewer than there are operands
    shape = broadcast_shapes(*(s for symbol, s in shapes.items() if symbol in read)) if read else ()
    return result if shape == node.shape else e.op("Expand", result, e.sizes(node.shape))


def _operands(e: Emission, node: Node, dtype: str) -> tuple[dict[sp.Symbol, str], dict[sp.Symbol, Shape]]:
    """Return the operands and their shapes; a number is no array where the others give the shape."""
    shaped = [i.shape for i in node.inputs if not isinstance(i.op, Full)]
    enough = bool(shaped) and broadcast_shapes(*shaped) == node.shape
    values, shapes = {}, {}
    for position, operand in enumerate(node.inputs):
        symbol = scalar.argument(position)
        shapes[symbol] = operand.shape
        if enough and isinstance(operand.op, Full):
            values[symbol], shapes[symbol] = e.constant(operand.op.value, dtype), ()
        else:
            values[symbol] = e.names[operand] if operand.dtype == dtype else e.cast(e.names[operand], dtype)
    return values, shapes


def _truth_of(expr: sp.Expr) -> sp.Basic | None:
    """Return the condition that an expression is 1 or 0 for."""
    if isinstance(expr, sp.Piecewise) and len(expr.args) == 2 and expr.args[1].args[1] == sp.true:
        values = [pair.args[0] for pair in expr.args]
        condition: sp.Basic = expr.args[0].args[1]
        if values == [1, 0] and is_condition(condition):
            return condition
    return None
