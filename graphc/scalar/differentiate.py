"""The derivative of a scalar expression, with PyTorch's conventions at kinks.

The chain rule is walked here and each function's own ``fdiff`` is sympy's: ``sp.diff`` alone turns
Abs of a non-real argument, Max and conditions into Heaviside, DiracDelta, Derivative or Subs.
"""

from __future__ import annotations

from functools import lru_cache

import sympy as sp
from sympy.core.function import ArgumentIndexError

from graphc.errors import FormulaError
from graphc.scalar.describe import describe
from graphc.scalar.stable import stabilise
from graphc.scalar.symbols import is_condition, piecewise, symbols_of
from graphc.scalar.whole import Flat

# Flat almost everywhere: PyTorch gives them derivative 0 at the jumps too.
_FLAT = (sp.sign, sp.floor, sp.ceiling, sp.Heaviside, Flat)
_UNUSABLE = (sp.Derivative, sp.Subs, sp.Integral, sp.DiracDelta, sp.Heaviside)


@lru_cache(maxsize=65536)
def derivative(expr: sp.Expr, symbol: sp.Symbol) -> sp.Expr:
    """Return d expr / d symbol, stable and free of Heaviside, DiracDelta, Derivative and Subs.

    Numerics: a Piecewise is differentiated branch by branch, so the branch that holds at a kink
    decides (relu'(0) = 0); abs'(0) = 0.
    Raises: FormulaError naming the function that has no usable derivative.
    """
    if symbol not in symbols_of(expr):
        return sp.S.Zero
    if is_condition(expr):
        return sp.S.Zero
    result = stabilise(_derive(stabilise(expr), symbol))
    if result.has(*_UNUSABLE):
        raise FormulaError(f"cannot differentiate {describe(expr)} with respect to {symbol}")
    return result


@lru_cache(maxsize=65536)
def _derive(e: sp.Expr, s: sp.Symbol) -> sp.Expr:
    if e == s:
        return sp.S.One
    if s not in symbols_of(e) or isinstance(e, _FLAT) or is_condition(e):
        return sp.S.Zero
    if isinstance(e, sp.Add):
        return sp.Add(*[_derive(t, s) for t in e.args])
    if isinstance(e, sp.Mul):
        terms = []
        for i, factor in enumerate(e.args):
            slope = _derive(factor, s)
            if slope != 0:
                terms.append(sp.Mul(*e.args[:i], slope, *e.args[i + 1 :]))
        return sp.Add(*terms)
    if isinstance(e, sp.Pow):
        return _derive_power(e, s)
    if isinstance(e, sp.Piecewise):
        return piecewise(*((_derive(value, s), condition) for value, condition in e.args))
    if isinstance(e, sp.Abs):
        return sp.sign(e.args[0]) * _derive(e.args[0], s)
    if isinstance(e, sp.Function):
        terms = []
        for i, a in enumerate(e.args):
            slope = _derive(a, s)
            if slope != 0:
                terms.append(_partial(e, i + 1) * slope)
        return sp.Add(*terms)
    raise FormulaError(f"cannot differentiate {type(e).__name__} in {describe(e)}")


def _derive_power(e: sp.Expr, s: sp.Symbol) -> sp.Expr:
    base, exponent = e.args
    in_base, in_exponent = _derive(base, s), _derive(exponent, s)
    if in_exponent == 0:
        return exponent * base ** (exponent - 1) * in_base
    if in_base == 0:
        return e * sp.log(base) * in_exponent
    return e * sp.log(base) * in_exponent + exponent * base ** (exponent - 1) * in_base


def _partial(e: sp.Expr, index: int) -> sp.Expr:
    try:
        partial = e.fdiff(index)
    except (ArgumentIndexError, NotImplementedError, AttributeError) as problem:
        raise FormulaError(f"{type(e).__name__} has no derivative (fdiff) in argument {index}") from problem
    if partial.has(*_UNUSABLE):
        raise FormulaError(f"{type(e).__name__} has no derivative (fdiff) in argument {index}")
    return partial
