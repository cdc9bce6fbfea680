"""Numbers as C literals: the shortest text that reads back as the nearest value of the type."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

import numpy as np
import sympy as sp

from graphc.errors import FormulaError
from graphc.scalar.describe import describe

_FLOAT32_MAX = float(np.finfo(np.float32).max)


@lru_cache(maxsize=16384)
def constant(expr: sp.Expr) -> sp.Expr:
    """Return a number-only expression as a Rational, a Float of 40 digits, or an infinity or nan.

    Raises: FormulaError where the number is not real.
    """
    if expr.is_Rational or expr in (sp.oo, -sp.oo, sp.nan):
        return expr
    if expr is sp.zoo:
        return sp.nan
    value = expr.evalf(40)
    if value.is_Rational or value.is_Float or value in (sp.oo, -sp.oo, sp.nan):
        return value
    if value is sp.zoo:
        return sp.nan
    raise FormulaError(f"{describe(expr)} is not a real number")


def _exact(value: sp.Expr) -> Fraction:
    if value.is_Float:
        sign, mantissa, exponent, _ = value._mpf_
        magnitude = Fraction(int(mantissa)) * Fraction(2) ** int(exponent)
        return -magnitude if sign else magnitude
    return Fraction(int(value.p), int(value.q))


def _to_float(exact: Fraction) -> float:
    try:
        return float(exact)
    except OverflowError:
        return math.copysign(math.inf, exact)


def _to_float32(exact: Fraction) -> np.float32:
    """Round once: going through float64 alone may round twice."""
    wide = _to_float(exact)
    with np.errstate(over="ignore"):
        near = np.float32(wide)
        if not math.isfinite(wide) or not np.isfinite(near):
            return near
        candidates = [near, np.nextafter(near, np.float32(-np.inf)), np.nextafter(near, np.float32(np.inf))]
    finite = [c for c in candidates if np.isfinite(c)]
    best = min(finite, key=lambda c: abs(Fraction(float(c)) - exact))
    # A tie keeps what the hardware rounding chose (ties to even).
    return near if abs(Fraction(float(near)) - exact) == abs(Fraction(float(best)) - exact) else best


@lru_cache(maxsize=16384)
def literal(expr: sp.Expr, dtype: str) -> str:
    """Return the C literal of a number: ``2.0f``, ``0.1``, ``1e-7f``, ``INFINITY``, ``NAN`` or ``3``.

    Numerics: rounded once, from the exact value, to the nearest of the dtype; what is too large
    becomes INFINITY.
    Raises: FormulaError for a number that is not real, or not whole where the dtype is an integer.
    """
    value = constant(expr)
    if not dtype.startswith("float"):
        return _integer(value, dtype)
    if value is sp.nan:
        return "NAN"
    if value in (sp.oo, -sp.oo):
        return "INFINITY" if value is sp.oo else "-INFINITY"
    exact = _exact(value)
    number = _to_float32(exact) if dtype == "float32" else np.float64(_to_float(exact))
    if not np.isfinite(number):
        return "INFINITY" if number > 0 else "-INFINITY"
    return _shortest(number) + ("f" if dtype == "float32" else "")


def _shortest(number: np.float32 | np.float64) -> str:
    if number == 0:
        return "0.0"
    if 1e-4 <= abs(float(number)) < 1e7:
        text = np.format_float_positional(number, unique=True, trim="0")
        return text if "." in text else text + ".0"
    mantissa, exponent = np.format_float_scientific(number, unique=True, trim="-").split("e")
    return f"{mantissa.rstrip('.')}e{int(exponent)}"


def _integer(value: sp.Expr, dtype: str) -> str:
    if not value.is_Integer:
        raise FormulaError(f"{describe(value)} is not a whole number, and its dtype is {dtype}")
    whole = int(value)
    if dtype.startswith("u"):  # of what is computed modulo a power of two
        return f"{whole % 2 ** int(dtype[4:])}u"
    bits = 31 if dtype == "int32" else 63
    if not -(2**bits) <= whole < 2**bits:
        raise FormulaError(f"{whole} does not fit in {dtype}")
    if whole == -(2**bits):
        # C has no negative literals: the positive part alone would not fit.
        return f"({whole + 1} - 1)"
    return str(whole)
