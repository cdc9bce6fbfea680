"""Decides whether a derivative can be written in the function's own output.

If it can, the input of an activation need not be kept for the backward pass, and the activation may
run in place on what the layer before it wrote.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import sympy as sp

from graphc.errors import FormulaError
from graphc.scalar.differentiate import derivative
from graphc.scalar.functions import expm1, sigmoid, softplus
from graphc.scalar.numeric import evaluate
from graphc.scalar.stable import stabilise
from graphc.scalar.symbols import OUTPUT, argument, compare, number, piecewise, substitute, symbols_of

_X = argument(0)


class _ImpossibleError(Exception):
    """The derivative cannot be had from the output, or only at a loss."""


@lru_cache(maxsize=4096)
def derivative_from_output(expr: sp.Expr) -> sp.Expr | None:
    """Return d expr / d x0 written in OUTPUT alone, or None where that is impossible or unwise.

    Yes for ReLU, leaky ReLU, ELU, sigmoid, tanh, exp, softplus, sqrt, 1/sqrt, 1/x, affine maps and
    what is composed of them by scaling and shifting. No for functions that take one value twice with
    different slopes (SiLU, GELU, x*x, |x|, sin), and for log, whose slope exp(-y) would cost a
    transcendental and lose digits that 1/x has.

    Numerics: a yes has been checked in float64 against the derivative, from the output rounded to
    float32, on a grid that includes the extremes and the neighbourhood of every kink.
    Source: derived here.
    """
    if not symbols_of(expr) <= {_X}:
        return None
    try:
        expr = stabilise(expr)
        result = stabilise(_rewrite(expr, OUTPUT))
        good = symbols_of(result) <= {OUTPUT} and _agrees(expr, derivative(expr, _X), result)
    except (_ImpossibleError, FormulaError):
        return None
    return result if good else None


def _rewrite(f: sp.Expr, y: sp.Expr) -> sp.Expr:
    """Return f'(x) given that f(x) = y, for y an expression in OUTPUT."""
    if f == _X:
        return sp.S.One
    if not symbols_of(f):
        return sp.S.Zero
    if isinstance(f, sp.Add | sp.Mul):
        shift, rest = f.as_independent(_X, as_Add=True)
        scale, core = rest.as_independent(_X, as_Add=False)
        if core == f:
            raise _ImpossibleError
        if isinstance(core, sp.Piecewise):
            # Into the branches with it, so that the thresholds come out in y itself.
            if not all(_lands_exactly(value, scale, shift) for value, _ in core.args):
                raise _ImpossibleError
            return _rewrite_branches(piecewise(*((scale * v + shift, c) for v, c in core.args)), y)
        return scale * _rewrite(core, (y - shift) / scale)
    if isinstance(f, sp.Piecewise):
        return _rewrite_branches(f, y)
    if isinstance(f, sp.sign | sp.floor | sp.ceiling):
        return sp.S.Zero
    if len(f.args) == 1 or isinstance(f, sp.Pow):
        return _rewrite_call(f, y)
    raise _ImpossibleError


def _lands_exactly(value: sp.Expr, scale: sp.Expr, shift: sp.Expr) -> bool:
    """Whether a plateau of the inner function is still told from its neighbours after scale and shift.

    A whole region has the output scale*value + shift. Were that rounded otherwise in the generated
    code than in the threshold that it is compared with, the region's slope would be wrong throughout.
    """
    if symbols_of(value) or value == 0:
        return True
    return all(_is_float32(v) for v in (value, scale, shift, scale * value, scale * value + shift))


def _is_float32(value: sp.Expr) -> bool:
    return bool(value.is_Rational) and sp.Rational(float(np.float32(float(value)))) == value


def _rewrite_call(f: sp.Expr, y: sp.Expr) -> sp.Expr:
    """Apply the chain rule: the outer slope from y, the inner function from the inverse where cheap."""
    inner, inverse = f.args[0], None
    if isinstance(f, sp.Pow):
        if symbols_of(f.exp):
            raise _ImpossibleError
        slope, inverse = _power_slope(f.exp, y)
    elif isinstance(f, sp.exp):
        slope = y
    elif isinstance(f, expm1):
        slope = y + 1
    elif isinstance(f, sigmoid):
        slope = y * (1 - y)
    elif isinstance(f, sp.tanh):
        slope = 1 - y**2
    elif isinstance(f, sp.tan):
        slope = 1 + y**2
    elif isinstance(f, softplus):
        slope = -expm1(-y)
    else:
        slope = _self_similar(f, y)
    inner_slope = derivative(inner, _X)
    if symbols_of(inner_slope):
        if inverse is None:
            raise _ImpossibleError
        inner_slope = _rewrite(inner, inverse)
    return slope * inner_slope


def _power_slope(p: sp.Expr, y: sp.Expr) -> tuple[sp.Expr, sp.Expr]:
    """Return d(u**p)/du and u in terms of y = u**p, where products of y suffice."""
    if p == -1 or (p.is_Rational and abs(p.p) == 1 and p.q % 2 == 0):
        # The slope p*u**(p-1) is p*y**((p-1)/p), and (p-1)/p = 1 - 1/p is whole.
        return p * y ** (1 - 1 / p), y ** (1 / p)
    raise _ImpossibleError


def _self_similar(f: sp.Expr, y: sp.Expr) -> sp.Expr:
    """Return the slope of a function whose ``fdiff`` is written in itself; a user's own, for example."""
    u = sp.Dummy(real=True)
    outer = f.func(u)
    slope = substitute(derivative(outer, u), {outer: y})
    if u in symbols_of(slope):
        raise _ImpossibleError
    return slope


@dataclass(frozen=True, slots=True)
class _Piece:
    """One stretch of the x axis, or a single point of it, on which one branch holds."""

    value: sp.Expr
    slope: sp.Expr
    low: sp.Expr  # the values y takes: from low to high, the ends only where closed
    high: sp.Expr
    point: bool


def _rewrite_branches(f: sp.Piecewise, y: sp.Expr) -> sp.Expr:
    """Turn thresholds in x into thresholds in y, where f climbs (or falls) from branch to branch."""
    thresholds = _thresholds(f)
    if not thresholds or y != OUTPUT:  # an inverse would round the threshold itself
        raise _ImpossibleError
    pieces: list[_Piece] = []
    edges = [-sp.oo, *thresholds, sp.oo]
    for k, (left, right) in enumerate(pairwise(edges)):
        if k:
            pieces.append(_piece(f, y, left, left))
        pieces.append(_piece(f, y, left, right))
    if pieces[0].low > pieces[-1].high:
        pieces = [_Piece(p.value, p.slope, p.high, p.low, p.point) for p in reversed(pieces)]
    return _assemble(pieces, y)


def _thresholds(f: sp.Piecewise) -> list[sp.Expr]:
    found = set()
    for _, condition in f.args:
        if condition == sp.true:
            continue
        for test in condition.atoms(sp.core.relational.Relational):
            if test.lhs != _X or symbols_of(test.rhs) or not test.rhs.is_finite:
                raise _ImpossibleError
            found.add(test.rhs)
    return sorted(found, key=float)


def _piece(f: sp.Piecewise, y: sp.Expr, left: sp.Expr, right: sp.Expr) -> _Piece:
    point = left == right
    if point:
        inside = left
    elif left == -sp.oo:
        inside = right - 1
    else:
        inside = left + 1 if right == sp.oo else (left + right) / 2
    for value, condition in f.args:
        if condition == sp.true or condition.subs(_X, inside) == sp.true:
            slope = _rewrite(value, y)
            ends = [_limit(value, end) for end in (left, right)]
            # Between thresholds the branch must climb, fall or rest throughout.
            signs = {_sign(derivative(value, _X), t) for t in _samples(left, right)}
            if len(signs) > 1:
                raise _ImpossibleError
            return _Piece(value, slope, ends[0], ends[1], point)
    raise _ImpossibleError


def _samples(left: sp.Expr, right: sp.Expr) -> list[float]:
    a, b = max(float(left), -30.0), min(float(right), 30.0)
    return [a] if a >= b else [float(t) for t in np.linspace(a, b, 9)[1:-1]]


def _sign(slope: sp.Expr, at: float) -> int:
    value = float(evaluate(slope, [np.asarray(at)]))
    if np.isnan(value):
        raise _ImpossibleError
    return int(np.sign(value))


def _limit(value: sp.Expr, at: sp.Expr) -> sp.Expr:
    """Return what the branch tends to at the end of its stretch."""
    if at.is_finite:
        reached = substitute(value, {_X: at})
        if not (reached.is_extended_real and reached.is_number):
            raise _ImpossibleError  # a pole at the threshold
        return reached
    far = float(evaluate(value, [np.asarray(1e30 if at > 0 else -1e30)]))
    if abs(far) > 1e20:
        return sp.oo if far > 0 else -sp.oo
    if np.isnan(far):
        raise _ImpossibleError
    return number(far)


def _assemble(pieces: list[_Piece], y: sp.Expr) -> sp.Expr:
    """Return the slopes with conditions in y, for pieces in the order of their values."""
    runs: list[list[_Piece]] = []
    for piece in pieces:
        if runs and runs[-1][0].slope == piece.slope:
            runs[-1].append(piece)
        else:
            runs.append([piece])
    branches: list[tuple[sp.Expr, sp.Basic]] = []
    for k, (run, following) in enumerate(pairwise(runs)):
        low_side, high_side = run[-1], following[0]
        if not low_side.high <= high_side.low:
            raise _ImpossibleError
        if low_side.high == high_side.low and _reaches_its_ends(low_side) and _reaches_its_ends(high_side):
            raise _ImpossibleError  # one value, two slopes
        at = low_side.high
        closed = _reaches_its_ends(low_side) or not _reaches_its_ends(high_side)
        test = compare(sp.Le if closed else sp.Lt, y, at)
        if k == len(runs) - 2 and k > 0:
            # The middle is the general case: NaN belongs there, as it does in f.
            test = compare(sp.Ge if _reaches_its_ends(high_side) else sp.Gt, y, high_side.low)
            branches.append((following[0].slope, test))
            branches.append((run[0].slope, sp.true))
            return piecewise(*branches)
        branches.append((run[0].slope, test))
    branches.append((runs[-1][0].slope, sp.true))
    return piecewise(*branches)


def _reaches_its_ends(piece: _Piece) -> bool:
    """Whether the piece takes the values at its ends: a point or a plateau does, an open climb does not."""
    return piece.point or piece.low == piece.high


def _agrees(f: sp.Expr, slope: sp.Expr, from_output: sp.Expr) -> bool:
    """Whether the rewritten slope is as good as the slope itself for an output stored in float32."""
    x = _grid(f)
    with np.errstate(all="ignore"):
        y = evaluate(f, [x]).astype(np.float32)
        usable = np.isfinite(y) | (np.abs(x) < 1e3)
        wanted = evaluate(slope, [x]).astype(np.float32).astype(np.float64)
        got = evaluate(from_output, [], output=y).astype(np.float32).astype(np.float64)
        usual = np.abs(wanted[(np.abs(x) < 2) & np.isfinite(wanted)])
        scale = float(np.median(usual)) if usual.size else 1.0
        close = np.abs(got - wanted) <= 1e-5 * np.abs(wanted) + 2e-6 * scale
    same = close | (got == wanted) | np.isnan(wanted) | ~usable
    return bool(np.all(same | _beside_a_kink(f, x)))


def _kinks(f: sp.Expr) -> list[float]:
    found = set()
    for p in f.atoms(sp.Piecewise):
        found |= {float(t) for t in _thresholds(p)}
    return sorted(found)


def _grid(f: sp.Expr) -> np.ndarray:
    magnitudes = np.concatenate([np.logspace(-37, 38, 151), np.linspace(0.05, 30, 120)])
    points = [np.concatenate([-magnitudes, [0.0], magnitudes])]
    for t in _kinks(f):
        near = np.abs(t) * np.array([1e-7, 3e-7, 1e-6, 1e-4]) if t else np.logspace(-37, -3, 18)
        points += [t - near, t + near, np.array([t])]
    return np.concatenate(points).astype(np.float32).astype(np.float64)


def _beside_a_kink(f: sp.Expr, x: np.ndarray) -> np.ndarray:
    """Mark the points so close to a kink that rounding the output may cross it."""
    beside = np.zeros(x.shape, dtype=bool)
    for t in _kinks(f):
        beside |= (x != t) & (np.abs(x - t) <= 4 * np.finfo(np.float32).eps * abs(t))
    return beside
