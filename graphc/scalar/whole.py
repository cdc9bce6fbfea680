"""Functions of whole numbers, and those that tell or make numbers whole: divisions, bits, rounding, NaN and Inf.

Integers wrap around where a result does not fit, a division by zero gives 0, and a shift by less than 0 or by more
bits than there are shifts all of them out: C leaves all three undefined.
"""

# sympy prints a function under its class name, so the classes carry the mathematical names.
# ruff: noqa: N801

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import sympy as sp
from sympy.core.function import ArgumentIndexError

Array = npt.NDArray[Any]


def _shift_right(a: int, b: int) -> int:
    return a >> (b if 0 <= b < 64 else 64)


class _Exact(sp.Function):  # type: ignore[misc]  # sympy is untyped
    """A function that is evaluated where all its arguments are rational."""

    exact: ClassVar[Callable[..., Any]]

    @classmethod
    def eval(cls, *args: sp.Expr) -> sp.Expr | None:
        """Return the exact value for rational numbers, else leave the call as it is."""
        if not all(a.is_Rational for a in args):
            return None
        return sp.Rational(cls.exact(*(Fraction(int(a.p), int(a.q)) for a in args)))

    def _eval_is_extended_real(self) -> bool | None:
        return True if all(a.is_extended_real for a in self.args) else None


class Flat(_Exact):
    """A function whose derivative is 0 wherever it has one."""


class _Bounded(Flat):
    """A function whose value depends on the dtype, unless it fits in 32 bits: only then it is evaluated."""

    @classmethod
    def eval(cls, *args: sp.Expr) -> sp.Expr | None:
        """Return the exact value for integers if it is small, else leave the call as it is."""
        if not all(a.is_Integer for a in args):
            return None
        value = cls.exact(*map(int, args))
        return None if value is None or not -(2**31) <= value < 2**31 else sp.Integer(value)


class rint(Flat):
    """The nearest whole number, the even one of two that are equally near."""

    nargs = 1
    exact = staticmethod(round)


class isnan(Flat):
    """1 for what is no number, else 0."""

    nargs = 1
    exact = staticmethod(lambda a: 0)


class isinf(Flat):
    """1 for both infinities, else 0."""

    nargs = 1
    exact = staticmethod(lambda a: 0)


class quotient(Flat):
    """The quotient of two integers, cut off towards 0."""

    nargs = 2
    exact = staticmethod(lambda a, b: math.trunc(a / b) if b else 0)


class _Remainder(_Exact):
    """What a division leaves: its slope is 1 in the dividend, and minus the whole quotient in the divisor."""

    nargs = 2

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        """Return 1, or (remainder - a)/b, which is minus the quotient."""
        a, b = self.args
        if argindex == 1:
            return sp.S.One
        if argindex == 2:
            return (self - a) / b
        raise ArgumentIndexError(self, argindex)


class remainder(_Remainder):
    """What a division cut off towards 0 leaves: it has the sign of the dividend, as C's fmod and %."""

    exact = staticmethod(lambda a, b: a - b * math.trunc(a / b) if b else 0)


class modulo(_Remainder):
    """What a division rounded down leaves: it has the sign of the divisor, as Python's %."""

    exact = staticmethod(lambda a, b: a - b * math.floor(a / b) if b else 0)


class bit_and(Flat):
    """The bits that both integers have."""

    nargs = 2
    exact = staticmethod(lambda a, b: int(a) & int(b))


class bit_or(Flat):
    """The bits that either integer has."""

    nargs = 2
    exact = staticmethod(lambda a, b: int(a) | int(b))


class bit_xor(Flat):
    """The bits that one of two integers has."""

    nargs = 2
    exact = staticmethod(lambda a, b: int(a) ^ int(b))


class bit_not(Flat):
    """The bits that an integer lacks."""

    nargs = 1
    exact = staticmethod(lambda a: ~int(a))


class shift_left(_Bounded):
    """An integer times 2 to the power of another, in the bits that its dtype has."""

    nargs = 2
    exact = staticmethod(lambda a, b: int(a) << int(b) if 0 <= b < 31 else None)


class shift_right(Flat):
    """An integer without its lowest bits; what is shifted in is the sign."""

    nargs = 2
    exact = staticmethod(lambda a, b: _shift_right(int(a), int(b)))


class whole_power(_Bounded):
    """An integer to the power of another, which wraps around; 0 for what is no whole number."""

    nargs = 2
    exact = staticmethod(lambda a, b: _power(int(a), int(b)) if b < 31 else None)


def _on_integers(function: Callable[..., Any]) -> Callable[..., Array]:
    """Return a function on float64 arrays that computes with Python's integers, which never overflow."""

    def compute(*arrays: Array) -> Array:
        return np.asarray(
            np.frompyfunc(lambda *v: float(function(*(int(a) for a in v))), len(arrays), 1)(*arrays),
            dtype=np.float64,
        )

    return compute


def _shift_left(a: int, b: int) -> int:
    return a << b if 0 <= b < 64 else 0


def _power(a: int, b: int) -> int:
    if b >= 0:
        return int(a**b)
    return {1: 1, -1: -1 if b % 2 else 1}.get(a, 0)


NUMPY: dict[type[sp.Basic], Callable[..., Array]] = {
    rint: np.rint,
    isnan: lambda a: np.isnan(a).astype(np.float64),
    isinf: lambda a: np.isinf(a).astype(np.float64),
    quotient: lambda a, b: np.where(b == 0, 0.0, np.trunc(a / np.where(b == 0, 1, b))),
    remainder: np.fmod,
    modulo: np.mod,
    bit_and: _on_integers(lambda a, b: a & b),
    bit_or: _on_integers(lambda a, b: a | b),
    bit_xor: _on_integers(lambda a, b: a ^ b),
    bit_not: _on_integers(lambda a: ~a),
    shift_left: _on_integers(_shift_left),
    shift_right: _on_integers(_shift_right),
    whole_power: _on_integers(_power),
}
"""What each function means on float64 arrays."""
