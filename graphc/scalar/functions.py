"""The elementwise functions that sympy lacks, each with derivative, inverse and exact evaluation.

None simplifies itself: what NaN and Inf do in an expression is decided by who wrote it.
"""

# sympy prints a function under its class name, so the classes carry the mathematical names.
# ruff: noqa: N801

from __future__ import annotations

from typing import Any, ClassVar

import sympy as sp
from sympy.core.function import ArgumentIndexError

from graphc.scalar.symbols import at_least, at_most, compare, piecewise


class _Elementary(sp.Function):  # type: ignore[misc]  # sympy is untyped
    """A function that could be written with exp and log, and is kept whole to stay accurate."""

    at_zero: ClassVar[sp.Expr | None] = None
    """The exact value at 0: the only one that is filled in when an expression is built."""

    @classmethod
    def eval(cls, *args: sp.Expr) -> sp.Expr | None:
        """Return the exact value at 0, else leave the call as it is."""
        return cls.at_zero if args == (sp.S.Zero,) else None

    def elementary(self) -> sp.Expr:
        """Return the textbook form; exact in mathematics, and only there."""
        raise NotImplementedError

    def _eval_is_extended_real(self) -> bool | None:
        return True if all(a.is_extended_real for a in self.args) else None

    def _eval_evalf(self, prec: int) -> Any:
        # More working digits than asked for: the textbook forms cancel.
        return self.elementary()._evalf(2 * prec + 20)._evalf(prec) if not self.free_symbols else None

    def _only(self, index: int) -> sp.Expr:
        if index != 1:
            raise ArgumentIndexError(self, index)
        return self.args[0]


class sigmoid(_Elementary):
    """1/(1 + exp(-x)), without overflow."""

    nargs = 1
    at_zero = sp.S.Half

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        """Return s*(1 - s), which costs no second exponential."""
        s = sigmoid(self._only(argindex))
        return s * (1 - s)

    def inverse(self, argindex: int = 1) -> Any:
        """Return the logit."""
        t = sp.Dummy(real=True)
        return sp.Lambda(t, sp.log(t / (1 - t)))

    def elementary(self) -> sp.Expr:
        """Return 1/(1 + exp(-x))."""
        return 1 / (1 + sp.exp(-self.args[0]))


class softplus(_Elementary):
    """log(1 + exp(x)), without overflow."""

    nargs = 1
    at_zero = sp.log(2)

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        """Return the sigmoid."""
        return sigmoid(self._only(argindex))

    def inverse(self, argindex: int = 1) -> Any:
        """Return log(exp(y) - 1)."""
        t = sp.Dummy(real=True)
        return sp.Lambda(t, sp.log(expm1(t)))

    def elementary(self) -> sp.Expr:
        """Return log(1 + exp(x))."""
        return sp.log(1 + sp.exp(self.args[0]))


class log1p(_Elementary):
    """log(1 + x), accurate near 0."""

    nargs = 1
    at_zero = sp.S.Zero

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        """Return 1/(1 + x)."""
        return 1 / (1 + self._only(argindex))

    def inverse(self, argindex: int = 1) -> Any:
        """Return expm1."""
        return expm1

    def elementary(self) -> sp.Expr:
        """Return log(1 + x)."""
        return sp.log(1 + self.args[0])

    def _eval_is_extended_real(self) -> bool | None:
        return None  # complex below -1


class expm1(_Elementary):
    """exp(x) - 1, accurate near 0."""

    nargs = 1
    at_zero = sp.S.Zero

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        """Return exp(x), which is relatively accurate where expm1(x) + 1 is not."""
        return sp.exp(self._only(argindex))

    def inverse(self, argindex: int = 1) -> Any:
        """Return log1p."""
        return log1p

    def elementary(self) -> sp.Expr:
        """Return exp(x) - 1."""
        return sp.exp(self.args[0]) - 1


class logcosh(_Elementary):
    """log(cosh(x)), without overflow and accurate near 0."""

    nargs = 1
    at_zero = sp.S.Zero

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        """Return tanh."""
        return sp.tanh(self._only(argindex))

    def elementary(self) -> sp.Expr:
        """Return log(cosh(x))."""
        return sp.log(sp.cosh(self.args[0]))


class logaddexp(_Elementary):
    """log(exp(a) + exp(b)), without overflow."""

    nargs = 2

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        """Return the softmax weight of the operand."""
        a, b = self.args
        if argindex == 1:
            return sigmoid(a - b)
        if argindex == 2:
            return sigmoid(b - a)
        raise ArgumentIndexError(self, argindex)

    def elementary(self) -> sp.Expr:
        """Return log(exp(a) + exp(b))."""
        return sp.log(sp.exp(self.args[0]) + sp.exp(self.args[1]))


class _Extremum(sp.Function):  # type: ignore[misc]  # sympy is untyped
    """The larger or smaller of two numbers; NaN in either operand gives NaN, as in PyTorch."""

    nargs = 2

    def _eval_is_extended_real(self) -> bool | None:
        return True if all(a.is_extended_real for a in self.args) else None


def _share(loses: type[sp.Basic], own: sp.Expr, other: sp.Expr) -> sp.Expr:
    """Return the operand's share of the gradient: none when it loses, half at a tie, else all of it."""
    return piecewise(
        (sp.S.Zero, compare(loses, own, other)),
        (sp.S.Half, compare(sp.Eq, own, other)),
        (sp.S.One, sp.true),
    )


class maximum(_Extremum):
    """The larger of two numbers (sympy's Max differentiates to Heaviside)."""

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        """Return 1 for the larger operand, and 1/2 for each at a tie, as torch.maximum does."""
        if argindex not in (1, 2):
            raise ArgumentIndexError(self, argindex)
        own, other = self.args if argindex == 1 else reversed(self.args)
        return _share(sp.Lt, own, other)

    def _eval_evalf(self, prec: int) -> Any:
        return sp.Max(*self.args)._evalf(prec) if not self.free_symbols else None


class minimum(_Extremum):
    """The smaller of two numbers (sympy's Min differentiates to Heaviside)."""

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        """Return 1 for the smaller operand, and 1/2 for each at a tie, as torch.minimum does."""
        if argindex not in (1, 2):
            raise ArgumentIndexError(self, argindex)
        own, other = self.args if argindex == 1 else reversed(self.args)
        return _share(sp.Gt, own, other)

    def _eval_evalf(self, prec: int) -> Any:
        return sp.Min(*self.args)._evalf(prec) if not self.free_symbols else None


def larger(a: sp.Expr, b: sp.Expr) -> sp.Expr:
    """Return max(a, b): against a number a clamp, so that max(x, 0) is ReLU, derivative at 0 included."""
    if b.is_number:
        return at_least(a, b)
    return at_least(b, a) if a.is_number else maximum(a, b)


def smaller(a: sp.Expr, b: sp.Expr) -> sp.Expr:
    """Return min(a, b): against a number a clamp, with derivative 0 at the bound."""
    if b.is_number:
        return at_most(a, b)
    return at_most(b, a) if a.is_number else minimum(a, b)
