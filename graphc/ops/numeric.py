"""Elementwise ops of trigonometry, rounding, remainders, bits and truth values."""

from __future__ import annotations

from typing import Any

import sympy as sp

from graphc import scalar
from graphc.graph.node import Node, names_the_line
from graphc.ops.elementwise import cast, elementwise, not_equal

x, y = scalar.argument(0), scalar.argument(1)
_compare = scalar.compare


def _truth(condition: Any) -> sp.Expr:
    return scalar.piecewise((1, condition), (0, True))


def _holds(a: sp.Symbol) -> Any:
    return _compare(sp.Ne, a, 0)


tan = elementwise("tan", sp.tan(x), domain=(-1.2, 1.2))
asin = elementwise("asin", sp.asin(x), domain=(-0.9, 0.9))
acos = elementwise("acos", sp.acos(x), domain=(-0.9, 0.9))
atan = elementwise("atan", sp.atan(x), monotone=True)
sinh = elementwise("sinh", sp.sinh(x), monotone=True)
cosh = elementwise("cosh", sp.cosh(x))
asinh = elementwise("asinh", sp.asinh(x), monotone=True)
acosh = elementwise("acosh", sp.acosh(x), domain=(1.2, 4))
atanh = elementwise("atanh", sp.atanh(x), domain=(-0.9, 0.9))

floor = elementwise("floor", sp.floor(x), smooth=False, monotone=True)
ceil = elementwise("ceil", sp.ceiling(x), smooth=False, monotone=True)
rint = elementwise("rint", scalar.rint(x), smooth=False, monotone=True)
remainder = elementwise("remainder", scalar.remainder(x, y), integers=True, smooth=False)
modulo = elementwise("modulo", scalar.modulo(x, y), integers=True, smooth=False)

quotient = elementwise("quotient", scalar.quotient(x, y), floats=False)
whole_power = elementwise("whole_power", scalar.whole_power(x, y), floats=False)
bit_and = elementwise("bit_and", scalar.bit_and(x, y), floats=False)
bit_or = elementwise("bit_or", scalar.bit_or(x, y), floats=False)
bit_xor = elementwise("bit_xor", scalar.bit_xor(x, y), floats=False)
bit_not = elementwise("bit_not", scalar.bit_not(x), floats=False)
shift_left = elementwise("shift_left", scalar.shift_left(x, y), floats=False)
shift_right = elementwise("shift_right", scalar.shift_right(x, y), floats=False)

isnan = elementwise("isnan", scalar.isnan(x), result="bool")
isinf = elementwise("isinf", scalar.isinf(x), result="bool")
logical_and = elementwise("logical_and", _truth(sp.And(_holds(x), _holds(y))), result="bool", integers=True)
logical_or = elementwise("logical_or", _truth(sp.Or(_holds(x), _holds(y))), result="bool", integers=True)
logical_not = elementwise("logical_not", _truth(_compare(sp.Eq, x, 0)), result="bool", integers=True)


@names_the_line
def logical_xor(a: Node, b: Node) -> Node:
    """Return whether exactly one of two tensors is not 0."""
    return not_equal(cast(a, "bool"), cast(b, "bool"))
