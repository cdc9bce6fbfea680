"""Scalar expressions as comments and error messages write them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import sympy as sp
from sympy.printing.str import StrPrinter

from graphc.scalar.symbols import substitute


class _CommentPrinter(StrPrinter):  # type: ignore[misc]  # sympy is untyped
    """sympy's text, with choices written as a person would."""

    def _print_Piecewise(self, e: sp.Piecewise) -> str:  # noqa: N802  # sympy dispatches on class names
        parts = []
        for value, condition in e.args:
            if condition == sp.true:
                parts.append(self._print(value))
            else:
                parts.append(f"{self._print(value)} if {self._print(condition)}")
        return f"({' else '.join(parts)})"

    _print_Choice = _print_Piecewise  # noqa: N815

    def _print_Abs(self, e: sp.Abs) -> str:  # noqa: N802
        return f"|{self._print(e.args[0])}|"


@lru_cache(maxsize=16384)
def _text(expr: sp.Basic) -> str:
    return str(_CommentPrinter().doprint(expr))


def describe(expr: sp.Basic, names: Mapping[sp.Symbol, str] | None = None, limit: int = 200) -> str:
    """Return the expression as a comment writes it, ``1 - y**2``, cut at ``limit`` characters."""
    if names:
        expr = substitute(expr, {s: sp.Symbol(name, real=True) for s, name in names.items()})
    text = _text(expr)
    return text if len(text) <= limit else text[: limit - 4].rstrip() + " ..."
