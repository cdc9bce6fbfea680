"""Sympy expressions as ONNX operators: equal subexpressions once, whole functions where ONNX has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce

import numpy as np
import sympy as sp

from graphc import scalar
from graphc.errors import FormulaError
from graphc.onnx.emission import Emission
from graphc.onnx.whole_formulas import WHOLE_RULES
from graphc.scalar import functions as fn
from graphc.scalar.literals import constant
from graphc.scalar.symbols import is_condition, symbols_of

_COMPARE = {
    sp.StrictLessThan: "Less", sp.LessThan: "LessOrEqual", sp.StrictGreaterThan: "Greater",
    sp.GreaterThan: "GreaterOrEqual", sp.Equality: "Equal",
}  # fmt: skip
_UNARY = {
    sp.exp: "Exp", sp.log: "Log", sp.sin: "Sin", sp.cos: "Cos", sp.tan: "Tan", sp.asin: "Asin", sp.acos: "Acos",
    sp.atan: "Atan", sp.sinh: "Sinh", sp.cosh: "Cosh", sp.tanh: "Tanh", sp.asinh: "Asinh", sp.acosh: "Acosh",
    sp.atanh: "Atanh", sp.erf: "Erf", sp.floor: "Floor", sp.ceiling: "Ceil", sp.Abs: "Abs", sp.sign: "Sign",
    fn.sigmoid: "Sigmoid",
}  # fmt: skip


class Formulas:
    """Writes expressions whose symbols have values, in one dtype."""

    def __init__(self, emission: Emission, values: Mapping[sp.Symbol, str], dtype: str):
        """Start with the names of the symbols' values."""
        self.e, self.dtype = emission, dtype
        self.values: dict[sp.Basic, str] = dict(values)

    def write(self, e: sp.Basic) -> str:
        """Return the name of an expression's value."""
        if e not in self.values:
            self.values[e] = self._compute(e)
        return self.values[e]

    def _compute(self, e: sp.Basic) -> str:
        if isinstance(e, sp.Symbol):
            raise FormulaError(f"to_onnx: no value for the symbol {e}")
        if e in (sp.true, sp.false):
            return self.e.constant(bool(e), "bool")
        if not symbols_of(e) and not is_condition(e):
            return self.number(e)
        for kind, rule in _RULES.items():
            if isinstance(e, kind):
                return rule(self, e)
        if type(e) in _UNARY:
            return self.e.op(_UNARY[type(e)], self.write(e.args[0]))
        if type(e) in _COMPARE:
            return self.e.op(_COMPARE[type(e)], *map(self.write, e.args))
        raise FormulaError(f"to_onnx: {type(e).__name__} in {scalar.describe(e)} cannot be written in ONNX")

    def number(self, e: sp.Expr) -> str:
        """Return the constant of an expression without symbols."""
        value = constant(e)
        exact = int(value.p) / int(value.q) if value.is_Rational else float(value)
        return self.e.constant(np.asarray(int(value) if value.is_Integer else exact), self.dtype)


def _add(f: Formulas, e: sp.Add) -> str:
    """Add the terms in their order, those with a minus sign subtracted."""
    minus = [a.is_Mul and bool(a.args[0].is_Rational and a.args[0] < 0) for a in e.args]
    terms = sorted(zip(minus, e.args, strict=True), key=lambda t: t[0])  # stable
    if minus[0] and all(minus):
        return f.e.op("Neg", f.write(sp.Add(*(-a for a in e.args))))
    total = f.write(terms[0][1])
    for negative, term in terms[1:]:
        total = f.e.op("Sub" if negative else "Add", total, f.write(-term if negative else term))
    return total


def _mul(f: Formulas, e: sp.Mul) -> str:
    """Multiply and divide as the C does, so that Inf and 0 meet in the same places."""
    numbers = [a for a in e.args if not symbols_of(a)]
    rest = [a for a in e.args if symbols_of(a)]
    below = [a.base ** (-a.exp) for a in rest if _inverse(a)]
    above = [a for a in rest if not _inverse(a)]
    factor = constant(sp.Mul(*numbers)) if numbers else sp.S.One
    if factor.is_Rational and factor.p == 1 and factor.q != 1:
        below, factor = [*below, sp.Integer(factor.q)], sp.S.One
    if factor == -1 and above:
        top = f.e.op("Neg", _product(f, above))
    else:
        top = _product(f, ([factor] if factor != 1 or not above else []) + above)
    return f.e.op("Div", top, _product(f, below)) if below else top


def _product(f: Formulas, factors: Sequence[sp.Expr]) -> str:
    return reduce(lambda a, b: f.e.op("Mul", a, b), map(f.write, factors))


def _inverse(e: sp.Expr) -> bool:
    return isinstance(e, sp.Pow) and bool(e.exp.is_Rational) and bool(e.exp < 0)


def _pow(f: Formulas, e: sp.Pow) -> str:
    base, exponent = e.args
    if _inverse(e):
        return f.e.op("Div", f.number(sp.S.One), f.write(base ** (-exponent)))
    b = f.write(base)
    if exponent in (2, 3):
        return _product(f, [base] * int(exponent))
    if exponent.is_Rational and exponent.q == 2:
        root = (
            f.values.setdefault(sp.sqrt(base), f.e.op("Sqrt", b))
            if exponent != sp.S.Half
            else f.e.op("Sqrt", b)
        )
        return root if exponent.p == 1 else f.e.op("Pow", root, f.number(sp.Integer(exponent.p)))
    return f.e.op("Pow", b, f.write(exponent))


def _choice(f: Formulas, e: sp.Piecewise) -> str:
    """Select, from the last branch on; clamps are operators of their own."""
    pairs = [(p.args[0], p.args[1]) for p in e.args]
    if len(pairs) == 2 and type(pairs[0][1]) in (sp.LessThan, sp.GreaterThan) and pairs[1][1] == sp.true:
        (bound, condition), (value, _) = pairs
        if condition.args == (value, bound) and not symbols_of(bound):
            low = isinstance(condition, sp.LessThan)
            if low and bound == 0 and "float" in f.dtype:
                return f.e.op("Relu", f.write(value))
            return f.e.op("Max" if low else "Min", f.write(value), f.number(bound))
    result = f.write(pairs[-1][0]) if pairs[-1][1] == sp.true else f.number(sp.nan)
    for value, condition in reversed(pairs[:-1] if pairs[-1][1] == sp.true else pairs):
        result = f.e.op("Where", f.write(condition), f.write(value), result)
    return result


def _differ(f: Formulas, e: sp.Basic) -> str:
    return f.e.op("Not", f.e.op("Equal", *map(f.write, e.args)))


def _join(name: str) -> Callable[[Formulas, sp.Basic], str]:
    return lambda f, e: reduce(lambda a, b: f.e.op(name, a, b), map(f.write, e.args))


def _softplus(f: Formulas, e: sp.Expr) -> str:
    """max(u, 0) + log1p(exp(-|u|)) in float64, where runtimes lack the operator."""
    if f.dtype == "float32":
        return f.e.op("Softplus", f.write(e.args[0]))
    (u,) = e.args
    return f.e.op("Add", f.e.op("Relu", f.write(u)), f.write(fn.log1p(sp.exp(-sp.Abs(u)))))


def _expm1(f: Formulas, e: sp.Expr) -> str:
    """tanh(u/2)*(exp(u) + 1): exact in mathematics, and accurate near 0."""
    (u,) = e.args
    return f.e.op("Mul", f.write(sp.tanh(u / 2)), f.e.op("Add", f.write(sp.exp(u)), f.number(sp.S.One)))


def _log1p(f: Formulas, e: sp.Expr) -> str:
    """log(w)*u/(w - 1) with w = 1 + u rounded, whose errors cancel near 0. Source: Goldberg 1991, theorem 4."""
    u, one = f.write(e.args[0]), f.number(sp.S.One)
    w = f.e.op("Add", u, one)
    d = f.e.op("Sub", w, one)
    log = f.e.op("Log", w)
    corrected = f.e.op("Div", f.e.op("Mul", log, u), d)
    chosen = f.e.op("Where", f.e.op("Equal", d, u), log, corrected)
    return f.e.op("Where", f.e.op("Equal", d, f.number(sp.S.Zero)), u, chosen)


def _logcosh(f: Formulas, e: sp.Expr) -> str:
    """log1p(2*sinh(a/2)^2) below 1, a - log(2) + log1p(exp(-2*a)) above, with a = |u|."""
    a = sp.Abs(e.args[0])
    near = scalar.piecewise((a, scalar.compare(sp.Lt, a, 1)), (sp.S.One, sp.true))
    half = near / 2
    sinh = (sp.exp(half) - sp.exp(-half)) / 2 if f.dtype == "float64" else sp.sinh(half)
    below = f.write(fn.log1p(2 * sinh**2))
    above = f.e.op("Add", f.e.op("Sub", f.write(a), f.number(sp.log(2))), f.write(fn.softplus(-2 * a)))
    return f.e.op("Where", f.write(scalar.compare(sp.Lt, a, 1)), below, above)


def _logaddexp(f: Formulas, e: sp.Expr) -> str:
    a, b = e.args
    return f.e.op("Add", f.write(fn.maximum(a, b)), f.write(fn.softplus(-sp.Abs(a - b))))


_RULES: dict[type[sp.Basic], Callable[[Formulas, sp.Basic], str]] = {
    **WHOLE_RULES,
    sp.Add: _add,
    sp.Mul: _mul,
    sp.Pow: _pow,
    sp.Piecewise: _choice,
    sp.Unequality: _differ,
    sp.And: _join("And"),
    sp.Or: _join("Or"),
    sp.Not: lambda f, e: f.e.op("Not", f.write(e.args[0])),
    sp.ITE: lambda f, e: f.e.op("Where", *map(f.write, e.args)),
    sp.erfc: lambda f, e: f.e.op("Sub", f.number(sp.S.One), f.write(sp.erf(e.args[0]))),
    fn.softplus: _softplus,
    fn.expm1: _expm1,
    fn.log1p: _log1p,
    fn.logcosh: _logcosh,
    fn.logaddexp: _logaddexp,
    fn.maximum: lambda f, e: f.e.op("Max", *map(f.write, e.args)),
    fn.minimum: lambda f, e: f.e.op("Min", *map(f.write, e.args)),
}
