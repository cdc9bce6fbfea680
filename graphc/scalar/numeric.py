"""What an expression is worth, as a float64 reference value, and what it costs."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import lru_cache, reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import sympy as sp
from sympy.functions.elementary.piecewise import ExprCondPair
from sympy.logic.boolalg import BooleanFalse, BooleanTrue

from graphc.errors import FormulaError
from graphc.scalar.catalogue import CATALOGUE
from graphc.scalar.describe import describe
from graphc.scalar.literals import constant
from graphc.scalar.symbols import OUTPUT, argument, is_condition, symbols_of

Array = npt.NDArray[Any]

_COMPARE = {
    sp.StrictLessThan: operator.lt,
    sp.LessThan: operator.le,
    sp.StrictGreaterThan: operator.gt,
    sp.GreaterThan: operator.ge,
    sp.Equality: operator.eq,
    sp.Unequality: operator.ne,
}


def evaluate(expr: sp.Basic, args: Sequence[npt.ArrayLike], output: npt.ArrayLike | None = None) -> Array:
    """Return the value in float64, ``args[i]`` standing for ``argument(i)`` and ``output`` for OUTPUT.

    Shapes: all operands broadcast, also where the expression does not read them.
    Numerics: every branch of a Piecewise is computed and selected, so NaN and Inf flow as in C.
    Raises: FormulaError for an unknown symbol or function.
    """
    arrays = [np.asarray(a, dtype=np.float64) for a in args]
    values: dict[sp.Basic, Array] = {argument(i): a for i, a in enumerate(arrays)}
    if output is not None:
        values[OUTPUT] = np.asarray(output, dtype=np.float64)
    shape = np.broadcast_shapes(*(a.shape for a in values.values()))
    with np.errstate(all="ignore"):
        result = np.asarray(_value(expr, values), dtype=np.float64)
    return np.array(np.broadcast_to(result, shape)) if result.shape != shape else result.copy()


def _value(e: sp.Basic, values: dict[sp.Basic, Array]) -> Array:
    found = values.get(e)
    if found is None:
        found = _compute(e, values)
        values[e] = found
    return found


@lru_cache(maxsize=16384)
def _float(e: sp.Expr) -> float:
    value = constant(e)
    if value.is_Rational:
        try:
            return int(value.p) / int(value.q)
        except OverflowError:
            return float("inf") if value > 0 else float("-inf")
    return float(value)


def _compute(e: sp.Basic, values: dict[sp.Basic, Array]) -> Array:
    if isinstance(e, sp.Symbol):
        raise FormulaError(f"no value for the symbol {e}")
    if isinstance(e, BooleanTrue | BooleanFalse):
        return np.asarray(bool(e))
    if not symbols_of(e) and not is_condition(e):
        return np.asarray(_float(e))
    if isinstance(e, sp.Add):
        return reduce(np.add, (_value(a, values) for a in e.args))
    if isinstance(e, sp.Mul):
        return _product(e, values)
    if isinstance(e, sp.Pow):
        return _power(e, values)
    if isinstance(e, sp.Piecewise):
        result: Array = np.asarray(np.nan)
        for value, condition in reversed(e.args):
            result = np.where(_value(condition, values), _value(value, values), result)
        return result
    if type(e) in _COMPARE:
        return np.asarray(_COMPARE[type(e)](_value(e.args[0], values), _value(e.args[1], values)))
    if isinstance(e, sp.And | sp.Or | sp.Not):
        join = {sp.And: np.logical_and, sp.Or: np.logical_or}.get(type(e))
        operands = [_value(a, values) for a in e.args]
        return np.logical_not(operands[0]) if join is None else np.asarray(reduce(join, operands))
    if isinstance(e, sp.ITE):
        return np.where(*(_value(a, values) for a in e.args))
    row = CATALOGUE.get(type(e))
    if row is None:
        raise FormulaError(f"no numeric meaning for {type(e).__name__} in {describe(e)}")
    return np.asarray(row.numpy(*(_value(a, values) for a in e.args)))


def _product(e: sp.Mul, values: dict[sp.Basic, Array]) -> Array:
    """Multiply and divide as the C does, so that Inf and 0 meet in the same places."""
    coefficient, above, below = _factors(e)
    product = reduce(np.multiply, (_value(f, values) for f in above), np.asarray(coefficient))
    if not below:
        return np.asarray(product)
    return np.asarray(product / reduce(np.multiply, (_value(f, values) for f in below)))


@lru_cache(maxsize=16384)
def _factors(e: sp.Mul) -> tuple[float, tuple[sp.Expr, ...], tuple[sp.Expr, ...]]:
    """Return a product's number, and its other factors above and below the line."""
    above, below = [], []
    for f in e.args:
        if not symbols_of(f):
            continue
        if isinstance(f, sp.Pow) and f.exp.is_Rational and f.exp < 0:
            below.append(f.base ** (-f.exp))
        else:
            above.append(f)
    return _float(sp.Mul(*[f for f in e.args if not symbols_of(f)])), tuple(above), tuple(below)


def _power(e: sp.Pow, values: dict[sp.Basic, Array]) -> Array:
    base, exponent = e.args
    if exponent.is_Rational and exponent < 0:
        return np.asarray(1.0 / _value(base ** (-exponent), values))
    b = _value(base, values)
    if exponent.is_Rational and exponent.q == 2:
        # Through the root, as in C: pow(-inf, 1.5) would be inf.
        return np.asarray(b * np.sqrt(b) if exponent.p == 3 else np.sqrt(b) ** int(exponent.p))
    if exponent == 2:
        return np.asarray(b * b)
    return np.asarray(np.power(b, _value(exponent, values)))


@lru_cache(maxsize=65536)
def flops(expr: sp.Basic) -> int:
    """Return the arithmetic operations of one evaluation, equal sub-expressions counted once.

    A transcendental, a comparison, a division and a root count as one each; signs and choices as none.
    """
    seen: set[sp.Basic] = set()

    def count(e: sp.Basic) -> int:
        if e in seen or not e.args or not symbols_of(e):
            return 0
        seen.add(e)
        below = sum(count(a) for a in e.args)
        if isinstance(e, sp.Add):
            return below + len(e.args) - 1
        if isinstance(e, sp.Mul):
            # The reciprocal in a product is its division, which counts as one of the operations.
            inverses = sum(_is_reciprocal(a) for a in e.args)
            return below - min(inverses, len(e.args) - 1) + len([a for a in e.args if a != -1]) - 1
        if isinstance(e, sp.Pow):
            return below + _power_cost(e.exp)
        if isinstance(e, sp.Piecewise | ExprCondPair):
            return below
        if isinstance(e, sp.And | sp.Or):
            return below + len(e.args) - 1
        return below + 1

    return count(expr)


def _is_reciprocal(e: sp.Expr) -> bool:
    return isinstance(e, sp.Pow) and e.exp.is_Rational and bool(e.exp < 0)


def _power_cost(exponent: sp.Expr) -> int:
    if not exponent.is_Rational:
        return 1
    n = abs(exponent)
    inverse = 1 if exponent < 0 else 0
    if n.is_Integer and n <= 16:
        bits = bin(int(n))[2:]
        return max(len(bits) - 1 + bits.count("1") - 1 + inverse, 0)
    return 1 + inverse
