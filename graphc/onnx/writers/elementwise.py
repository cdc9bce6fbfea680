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
from graphc.scalar.symbols import is_condition
from graphc.types import broadcast_shapes, promote

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
    formulas = Formulas(e, dict(_operands(e, node, dtype)), dtype)
    truth = _truth_of(op.expr)
    if node.dtype == "bool" and truth is not None:
        return formulas.write(truth)
    result = formulas.write(op.expr)
    return e.cast(result, node.dtype) if dtype != node.dtype else _its_own(e, node, result)


def _operands(e: Emission, node: Node, dtype: str) -> list[tuple[sp.Symbol, str]]:
    """Return the operands by their symbols; a number is no array where the others give the shape."""
    shaped = [i.shape for i in node.inputs if not isinstance(i.op, Full)]
    enough = bool(shaped) and broadcast_shapes(*shaped) == node.shape
    found = []
    for position, operand in enumerate(node.inputs):
        if enough and isinstance(operand.op, Full):
            name = e.constant(operand.op.value, dtype)
        else:
            name = e.names[operand] if operand.dtype == dtype else e.cast(e.names[operand], dtype)
        found.append((scalar.argument(position), name))
    return found


def _truth_of(expr: sp.Expr) -> sp.Basic | None:
    """Return the condition that an expression is 1 or 0 for."""
    if isinstance(expr, sp.Piecewise) and len(expr.args) == 2 and expr.args[1].args[1] == sp.true:
        values = [pair.args[0] for pair in expr.args]
        condition: sp.Basic = expr.args[0].args[1]
        if values == [1, 0] and is_condition(condition):
            return condition
    return None


def _its_own(e: Emission, node: Node, result: str) -> str:
    """Return a value of the node's shape: an expression may not read all of its operands."""
    read = [i for k, i in enumerate(node.inputs) if scalar.argument(k) in node.op.expr.free_symbols]  # type: ignore[attr-defined]  # an Elementwise
    shape = broadcast_shapes(*(i.shape for i in read)) if read else ()
    return result if shape == node.shape else e.op("Expand", result, e.sizes(node.shape))
