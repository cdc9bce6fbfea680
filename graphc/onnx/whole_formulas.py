"""Functions of whole numbers as ONNX operators, with what ONNX leaves open decided as graphc does.

There a division by zero gives 0, and a shift by less than 0 or more bits than there are shifts all of them out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import sympy as sp

from graphc.errors import FormulaError
from graphc.onnx.emission import Emission
from graphc.scalar import whole


class Writer(Protocol):
    """What writes the operands."""

    e: Emission
    dtype: str

    def write(self, e: sp.Basic) -> str:
        """Return the name of an expression's value."""
        ...

    def number(self, e: sp.Expr) -> str:
        """Return the constant of an expression without symbols."""
        ...


def _told(kind: str) -> Callable[[Writer, sp.Expr], str]:
    return lambda f, e: f.e.cast(f.e.op(kind, f.write(e.args[0])), f.dtype)


def _plain(kind: str) -> Callable[[Writer, sp.Expr], str]:
    return lambda f, e: f.e.op(kind, *map(f.write, e.args))


def _divided(f: Writer, e: sp.Expr, by_minus_one: str, divide: Callable[[str, str], str]) -> str:
    """Return 0 for a divisor of 0; processors trap at that, and at the smallest number over -1."""
    a, b = map(f.write, e.args)
    zero, one = f.number(sp.S.Zero), f.number(sp.S.One)
    nothing, minus = f.e.op("Equal", b, zero), f.e.op("Equal", b, f.number(sp.S.NegativeOne))
    divisor = f.e.op("Where", f.e.op("Or", nothing, minus), one, b)
    rest = f.e.op("Where", minus, by_minus_one, divide(a, divisor))
    return f.e.op("Where", nothing, zero, rest)


def _quotient(f: Writer, e: sp.Expr) -> str:
    return _divided(f, e, f.e.op("Neg", f.write(e.args[0])), lambda a, b: f.e.op("Div", a, b))


def _remainder(f: Writer, e: sp.Expr) -> str:
    if "float" in f.dtype:
        return f.e.op("Mod", *map(f.write, e.args), fmod=1)
    return _divided(f, e, f.number(sp.S.Zero), lambda a, b: f.e.op("Mod", a, b, fmod=1))


def _modulo(f: Writer, e: sp.Expr) -> str:
    if "float" not in f.dtype:
        return _divided(f, e, f.number(sp.S.Zero), lambda a, b: f.e.op("Mod", a, b))
    rest, divisor, zero = _remainder(f, e), f.write(e.args[1]), f.number(sp.S.Zero)
    signs = (f.e.op("Less", value, zero) for value in (rest, divisor))
    other = f.e.op("And", f.e.op("Xor", *signs), f.e.op("Not", f.e.op("Equal", rest, zero)))
    return f.e.op("Where", other, f.e.op("Add", rest, divisor), rest)


def _shift(direction: str) -> Callable[[Writer, sp.Expr], str]:
    def write(f: Writer, e: sp.Expr) -> str:
        """Shift the bits as those of a number without sign; a negative one is its complement's complement."""
        a, b = map(f.write, e.args)
        zero, unsigned = f.number(sp.S.Zero), f"u{f.dtype}"
        inside = f.e.op("And", f.e.op("GreaterOrEqual", b, zero),
                        f.e.op("Less", b, f.number(sp.Integer(int(f.dtype[3:])))))  # fmt: skip
        count = f.e.cast(f.e.op("Where", inside, b, zero), unsigned)
        below = f.e.op("Less", a, zero)
        bits = a if direction == "LEFT" else f.e.op("Where", below, f.e.op("BitwiseNot", a), a)
        moved = f.e.cast(f.e.op("BitShift", f.e.cast(bits, unsigned), count, direction=direction), f.dtype)
        if direction == "RIGHT":
            moved = f.e.op("Where", below, f.e.op("BitwiseNot", moved), moved)
        out = f.e.op("Where", below, f.number(sp.S.NegativeOne), zero) if direction == "RIGHT" else zero
        return f.e.op("Where", inside, moved, out)

    return write


def _power(f: Writer, e: sp.Expr) -> str:
    raise FormulaError("to_onnx: the power of whole numbers wraps around, which ONNX's Pow does not")


WHOLE_RULES: dict[type[sp.Basic], Callable[[Writer, sp.Expr], str]] = {
    whole.rint: _plain("Round"),
    whole.isnan: _told("IsNaN"),
    whole.isinf: _told("IsInf"),
    whole.quotient: _quotient,
    whole.remainder: _remainder,
    whole.modulo: _modulo,
    whole.bit_and: _plain("BitwiseAnd"),
    whole.bit_or: _plain("BitwiseOr"),
    whole.bit_xor: _plain("BitwiseXor"),
    whole.bit_not: _plain("BitwiseNot"),
    whole.shift_left: _shift("LEFT"),
    whole.shift_right: _shift("RIGHT"),
    whole.whole_power: _power,
}
