"""The names that scalar expressions are written in, and how to rebuild them without surprises.

sympy evaluates eagerly. Most of that is harmless, but ``Piecewise`` solves its conditions
(``2*x + 3 <= 0`` becomes ``x <= -3/2``): slow, and the branch taken near the threshold changes.
Everything in :mod:`graphc.scalar` therefore builds branches with :func:`piecewise`, whose result
:func:`stabilise` also makes of a user's own ``sp.Piecewise``, and comparisons with :func:`compare`.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

import sympy as sp
from sympy.core.relational import Relational
from sympy.functions.elementary.piecewise import ExprCondPair
from sympy.logic.boolalg import Boolean

from graphc.errors import FormulaError

OUTPUT: sp.Symbol = sp.Symbol("y", real=True)
"""The value of the function itself, in a derivative that is written in the output alone."""


@cache
def argument(i: int) -> sp.Symbol:
    """Return the canonical i-th argument, ``x0``, ``x1``, ... (real).

    Raises: FormulaError for a negative index.
    """
    if i < 0:
        raise FormulaError(f"argument index must not be negative, got {i}")
    return sp.Symbol(f"x{i}", real=True)


@lru_cache(maxsize=65536)
def symbols_of(expr: sp.Basic) -> frozenset[sp.Symbol]:
    """Return the free symbols; remembered, since sympy walks the whole tree at each asking."""
    if isinstance(expr, sp.Symbol):
        return frozenset((expr,))
    return frozenset().union(*(symbols_of(a) for a in expr.args))


def number(value: float) -> sp.Expr:
    """Return the number exactly as its decimal text reads, so ``0.1`` is 1/10 and not a binary neighbour.

    The same expression then prints correctly rounded in float32 and in float64.
    """
    if isinstance(value, sp.Basic):
        return value
    if isinstance(value, numbers.Integral):
        return sp.Integer(int(value))
    value = float(value)
    if math.isnan(value):
        return sp.nan
    if math.isinf(value):
        return sp.oo if value > 0 else -sp.oo
    return sp.Rational(repr(value))


_MIRRORED: dict[type[sp.Basic], type[sp.Basic]] = {
    sp.StrictLessThan: sp.StrictGreaterThan,
    sp.LessThan: sp.GreaterThan,
    sp.StrictGreaterThan: sp.StrictLessThan,
    sp.GreaterThan: sp.LessThan,
    sp.Equality: sp.Equality,
    sp.Unequality: sp.Unequality,
}


def compare(relation: type[sp.Basic], a: sp.Expr, b: sp.Expr) -> sp.Basic:
    """Return the comparison as written; sympy decides it only between numbers or equal operands.

    sympy would fold ``exp(x) > 0`` to true, which NaN makes false, and a comparison of a Piecewise into
    a tangle of conditions.
    """
    a, b = sp.sympify(a), sp.sympify(b)
    if symbols_of(b) and not symbols_of(a):
        relation, a, b = _MIRRORED[relation], b, a  # the number stands on the right, as sympy has it
    if not (symbols_of(a) or symbols_of(b)) and not (a.is_Rational and b.is_Rational):
        # Decided by value: sympy's own proof that two radicals are equal has no time limit.
        a, b = a.evalf(40), b.evalf(40)
    return relation(a, b, evaluate=bool(a == b or not (symbols_of(a) or symbols_of(b))))


class _Pair(ExprCondPair):  # type: ignore[misc]  # sympy is untyped
    """A branch; sympy's own pair would rewrite a condition that contains a Piecewise."""

    def __new__(cls, value: sp.Expr, condition: sp.Basic) -> _Pair:
        """Return the pair as given."""
        pair: _Pair = sp.Tuple.__new__(cls, value, condition)
        return pair


class Choice(sp.Piecewise):  # type: ignore[misc]  # sympy is untyped
    """A Piecewise that sympy leaves alone: it is rebuilt, by ``subs`` or ``xreplace`` too, as it was."""

    def __new__(cls, *branches: tuple[sp.Expr, sp.Basic], **_: Any) -> Any:
        """Return what :func:`piecewise` makes of the branches."""
        return piecewise(*((value, condition) for value, condition in branches))

    def _eval_power(self, exponent: sp.Expr) -> None:
        """Stay a power: a branch 0 to the power -1 would be no number, where C gives Inf."""


def piecewise(*branches: tuple[sp.Expr, sp.Basic]) -> sp.Expr:
    """Return the first branch whose condition holds, the conditions kept as they were written.

    Numerics: a comparison with NaN is false, so NaN takes the last branch, as in the printed C.
    """
    kept: list[tuple[sp.Expr, sp.Basic]] = []
    last, always = branches[-1]
    if isinstance(last, sp.Piecewise) and always in (True, sp.true):
        # A choice in the last branch continues this one.
        branches = (*branches[:-1], *((pair.args[0], pair.args[1]) for pair in last.args))
    for value, condition in branches:
        if condition in (False, sp.false):
            continue
        kept.append((sp.sympify(value), sp.sympify(condition)))
        if condition in (True, sp.true):
            break
    while len(kept) > 1 and kept[-1][1] == sp.true and kept[-2][0] == kept[-1][0]:
        # The last two branches agree: the test between them decides nothing.
        value, _ = kept.pop()
        kept[-1] = (value, sp.true)
    if not kept:
        return sp.nan
    if kept[0][1] == sp.true:
        return kept[0][0]
    return sp.Basic.__new__(Choice, *(_Pair(value, condition) for value, condition in kept))


def rebuild(expr: sp.Basic, args: Sequence[sp.Basic]) -> sp.Basic:
    """Return the expression with other arguments; the same object where nothing changed."""
    if all(new is old for new, old in zip(args, expr.args, strict=True)):
        return expr
    if isinstance(expr, sp.Piecewise):
        return piecewise(*((pair.args[0], pair.args[1]) for pair in args))
    if isinstance(expr, ExprCondPair):
        return _Pair(*args)
    if isinstance(expr, Relational):
        return compare(expr.func, *args)
    return expr.func(*args)


def substitute(expr: sp.Basic, mapping: Mapping[sp.Basic, sp.Basic]) -> sp.Basic:
    """Replace symbols or whole sub-expressions, all at once, conditions included.

    Unlike ``xreplace`` it leaves the conditions of a Piecewise unsolved.
    """
    memo: dict[sp.Basic, sp.Basic] = dict(mapping)

    def visit(e: sp.Basic) -> sp.Basic:
        found = memo.get(e)
        if found is None:
            found = e if not e.args else rebuild(e, [visit(a) for a in e.args])
            memo[e] = found
        return found

    return visit(expr)


def at_least(u: sp.Expr, bound: sp.Expr) -> sp.Expr:
    """Return max(u, bound) for a number ``bound``, with derivative 0 at the bound; NaN flows through."""
    return _clamped(u, sp.sympify(bound), sp.LessThan)


def at_most(u: sp.Expr, bound: sp.Expr) -> sp.Expr:
    """Return min(u, bound) for a number ``bound``, with derivative 0 at the bound; NaN flows through."""
    return _clamped(u, sp.sympify(bound), sp.GreaterThan)


def _clamped(u: sp.Expr, bound: sp.Expr, beyond: type[sp.Basic]) -> sp.Expr:
    if isinstance(u, sp.Piecewise):
        # Into the branches: min(max(x, 0), 6) becomes one choice of three.
        return piecewise(*((_clamped(value, bound, beyond), condition) for value, condition in u.args))
    return piecewise((bound, compare(beyond, u, bound)), (u, sp.true))


def relu(u: sp.Expr) -> sp.Expr:
    """Return max(u, 0) with derivative 0 at 0, as PyTorch has it; NaN flows through."""
    return at_least(u, sp.S.Zero)


def free_arguments(exprs: Iterable[sp.Basic]) -> tuple[sp.Symbol, ...]:
    """Return the free symbols in a stable order: by name, ``x2`` before ``x10``."""
    symbols: set[sp.Symbol] = set().union(*(symbols_of(e) for e in exprs))
    return tuple(sorted(symbols, key=lambda s: (len(s.name), s.name)))


def is_condition(e: sp.Basic) -> bool:
    """Whether the expression is a truth value (sympy's Symbol is a Boolean too, and is not one here)."""
    return isinstance(e, Boolean) and not isinstance(e, sp.Symbol)
