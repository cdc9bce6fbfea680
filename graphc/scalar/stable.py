"""Rewrites that keep the mathematics and gain accuracy: ``log(1 + exp(u))`` becomes ``softplus(u)``.

Each rule looks at one node whose arguments are already stable, so one walk from the leaves up is
enough. Nothing is searched and nothing is solved.
"""

from __future__ import annotations

from functools import lru_cache, reduce

import sympy as sp

from graphc.scalar.functions import expm1, larger, log1p, logaddexp, logcosh, sigmoid, smaller, softplus
from graphc.scalar.symbols import piecewise, rebuild, symbols_of


@lru_cache(maxsize=65536)
def stabilise(expr: sp.Basic) -> sp.Basic:
    """Return the expression in its numerically stable form; deterministic, and once is enough.

    Rules: log(1+e^u), log(e^u+e^v), log(cosh u), log(1+u), e^u - 1, e^u/(1+e^u), 1/(1+e^-u),
    the quotients that are tanh; Max and Min, whose derivative would be Heaviside; re and im, since every
    value here is real.

    Source: derived here; the stable forms themselves are folklore (Mächler, "Accurately computing
    log(1 - exp(-|a|))", 2012, explains them).
    """
    if not expr.args or not symbols_of(expr):
        return expr
    expr = rebuild(expr, [stabilise(a) for a in expr.args])
    for _ in range(4):  # a rule may uncover another one at the same node
        rule = _RULES.get(type(expr))
        new = expr if rule is None else rule(expr)
        if new == expr:
            return expr
        expr = new
    return expr


def _split_exponential(term: sp.Expr) -> tuple[sp.Expr, sp.Expr] | None:
    """Return (c, u) where the term is c*exp(u) with a single exponential, else None."""
    if isinstance(term, sp.exp):
        return sp.S.One, term.args[0]
    if isinstance(term, sp.Mul):
        exponentials = [f for f in term.args if isinstance(f, sp.exp)]
        if len(exponentials) == 1:
            rest = [f for f in term.args if f is not exponentials[0]]
            return sp.Mul(*rest), exponentials[0].args[0]
    return None


def _positive(c: sp.Expr) -> bool:
    return bool(c.is_number and c.is_positive)


def _one_plus(expr: sp.Expr) -> tuple[sp.Expr, sp.Expr, sp.Expr] | None:
    """Return (a, b, u) where the expression is a + b*exp(u) with positive numbers a and b."""
    if not isinstance(expr, sp.Add) or len(expr.args) != 2:
        return None
    for constant, term in (expr.args, expr.args[::-1]):
        split = _split_exponential(term)
        if split is not None and _positive(constant) and _positive(split[0]):
            return constant, split[0], split[1]
    return None


def _two_exponentials(expr: sp.Expr) -> tuple[sp.Expr, sp.Expr] | None:
    """Return (u, v) where the expression is exp(u) + exp(v)."""
    if isinstance(expr, sp.Add) and len(expr.args) == 2 and all(isinstance(t, sp.exp) for t in expr.args):
        return expr.args[0].args[0], expr.args[1].args[0]
    return None


def _log(expr: sp.Expr) -> sp.Expr:
    (inner,) = expr.args
    found = _one_plus(inner)
    if found is not None:
        a, b, u = found
        return sp.log(a) + softplus(u + sp.log(b / a))
    pair = _two_exponentials(inner)
    if pair is not None:
        return logaddexp(*pair)
    if isinstance(inner, expm1 | sigmoid):
        # log(sigmoid(u)) = -softplus(-u); log(expm1(u)) has no better form.
        return -softplus(-inner.args[0]) if isinstance(inner, sigmoid) else expr
    factors = sp.Mul.make_args(inner)
    number = sp.Mul(*[f for f in factors if f.is_number])
    hyperbolic = [f for f in factors if not f.is_number]
    if len(hyperbolic) == 1 and isinstance(hyperbolic[0], sp.cosh) and _positive(number):
        return sp.log(number) + logcosh(hyperbolic[0].args[0])
    if isinstance(inner, sp.Add) and inner.args[0] == 1:
        return _log1p(log1p(sp.Add(*inner.args[1:])))
    return expr


def _log1p(expr: sp.Expr) -> sp.Expr:
    (inner,) = expr.args
    if isinstance(inner, sp.exp):
        return softplus(inner.args[0])
    if isinstance(inner, expm1):
        return inner.args[0]
    if isinstance(-inner, sigmoid):
        return -softplus((-inner).args[0])
    return expr


def _add(expr: sp.Expr) -> sp.Expr:
    """c*exp(u) - c, c*sigmoid(u) - c/2, exp(u) - exp(-u) and exp(u) + exp(-u)."""
    terms = list(expr.args)
    for i, term in enumerate(terms):
        split = _split_exponential(term)
        if split is not None:
            c, u = split
            rest = terms[:i] + terms[i + 1 :]
            opposite = next((k for k, t in enumerate(rest) if t == -c), None)
            if opposite is not None:
                return sp.Add(c * expm1(u), *rest[:opposite], *rest[opposite + 1 :])
            for k, other in enumerate(rest):
                partner = _split_exponential(other)
                if partner is not None and partner[1] == -u and partner[0] in (c, -c):
                    keep = rest[:k] + rest[k + 1 :]
                    whole = 2 * c * (sp.cosh(u) if partner[0] == c else sp.sinh(u))
                    return sp.Add(whole, *keep)
        coefficient, base = term.as_coeff_Mul()
        if isinstance(base, sigmoid) and -coefficient / 2 in terms:
            rest = [t for k, t in enumerate(terms) if k != i and t != -coefficient / 2]
            return sp.Add(coefficient / 2 * sp.tanh(base.args[0] / 2), *rest)
    return expr


def _pow(expr: sp.Expr) -> sp.Expr:
    base, exponent = expr.args
    if not (exponent.is_Integer and exponent.is_negative):
        return expr
    found = _one_plus(base)
    if found is None:
        return expr
    a, b, u = found
    return a**exponent * sigmoid(sp.log(a / b) - u) ** (-exponent)


def _mul(expr: sp.Expr) -> sp.Expr:
    """Pair an exponential in the numerator with the sigmoid or the sum that it belongs to."""
    powers = dict(f.as_base_exp() for f in expr.args)
    # as_base_exp splits exp(u) into (E, u): look exponentials up by themselves.
    exponentials = [f for f in expr.args if isinstance(f, sp.exp)]
    for base, exponent in powers.items():
        if isinstance(base, sigmoid) and exponent.is_Integer and exponent.is_positive:
            t = base.args[0]
            for e in exponentials:
                for times in (int(exponent), 1):
                    if (e.args[0] + times * t).is_zero:
                        # exp(-t)*sigmoid(t) = sigmoid(-t), once for every power available
                        return expr / (e * base**times) * sigmoid(-t) ** times
            for f in expr.args:
                if isinstance(f, expm1) and f.args[0] == -t:
                    return expr / (f * base) * sp.tanh(-t / 2)  # (e^-t - 1)/(1 + e^-t)
        if isinstance(base, sp.cosh) and exponent.is_Integer and exponent.is_negative:
            u = base.args[0]
            sinhs = [b for b in powers if isinstance(b, sp.sinh) and b.args[0] == u]
            if sinhs and powers[sinhs[0]].is_Integer and powers[sinhs[0]].is_positive:
                return expr / (sinhs[0] / base) * sp.tanh(u)
        pair = _two_exponentials(base)
        if pair is not None and exponent.is_Integer and exponent.is_negative:
            for e in exponentials:
                for own, other in (pair, pair[::-1]):
                    if e.args[0] == own:
                        return expr / (e / base) * sigmoid(own - other)
    return expr


def _largest(expr: sp.Expr) -> sp.Expr:
    return reduce(larger, sorted(expr.args, key=sp.default_sort_key))


def _smallest(expr: sp.Expr) -> sp.Expr:
    return reduce(smaller, sorted(expr.args, key=sp.default_sort_key))


def _as_choice(expr: sp.Piecewise) -> sp.Expr:
    return piecewise(*((pair.args[0], pair.args[1]) for pair in expr.args))


def _real_part(expr: sp.Expr) -> sp.Expr:
    return expr.args[0]


def _imaginary_part(expr: sp.Expr) -> sp.Expr:
    return sp.S.Zero


_RULES = {
    sp.log: _log,
    log1p: _log1p,
    sp.Add: _add,
    sp.Pow: _pow,
    sp.Mul: _mul,
    sp.Max: _largest,
    sp.Min: _smallest,
    sp.Piecewise: _as_choice,
    sp.cot: lambda e: 1 / sp.tan(e.args[0]),
    sp.sec: lambda e: 1 / sp.cos(e.args[0]),
    sp.csc: lambda e: 1 / sp.sin(e.args[0]),
    sp.coth: lambda e: 1 / sp.tanh(e.args[0]),
    sp.sech: lambda e: 1 / sp.cosh(e.args[0]),
    sp.csch: lambda e: 1 / sp.sinh(e.args[0]),
    sp.re: _real_part,
    sp.im: _imaginary_part,
    sp.conjugate: _real_part,
}
