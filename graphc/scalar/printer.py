"""Scalar expressions as C text: one printer for kernels, epilogues and update rules.

sympy's own C printer writes ``pow(x, 3)``, doubles and ``-1.0*x``; this one writes what a person would.
"""

from __future__ import annotations

import operator as op
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

import sympy as sp
from sympy.logic.boolalg import BooleanFalse, BooleanTrue

from graphc.errors import FormulaError
from graphc.scalar.catalogue import CATALOGUE
from graphc.scalar.describe import describe
from graphc.scalar.helpers import C_TYPE, LARGEST_POWER, SUFFIX, c_function
from graphc.scalar.literals import constant, literal
from graphc.scalar.symbols import is_condition, symbols_of
from graphc.types import integer_range

_ATOM, _UNARY, _MUL, _ADD = 4, 3, 2, 1
# What may be written twice: a name, or an element of an array.
_REPEATABLE = re.compile(r"[A-Za-z_]\w*(\[[\w +*.\-]*\])?")
# What binds tightly whatever stands beside it: a name, a member, an element, a call.
_PRIMARY = re.compile(r"[A-Za-z_][\w.]*(->\w+)*(\[[^\[\]]*\])*(\([^()]*\))?")
_RELATION = {
    sp.StrictLessThan: "<",
    sp.LessThan: "<=",
    sp.StrictGreaterThan: ">",
    sp.GreaterThan: ">=",
    sp.Equality: "==",
    sp.Unequality: "!=",
}
_COMPARE = {"<": op.lt, "<=": op.le, ">": op.gt, ">=": op.ge, "==": op.eq, "!=": op.ne}

_Text = tuple[str, int]


def to_c(expr: sp.Basic, names: Mapping[sp.Symbol, str], dtypes: Mapping[sp.Symbol, str], dtype: str) -> str:
    """Return the expression as C11 text whose value has the dtype: a float, an integer, uint8 or bool.

    ``names`` gives each symbol's C text and ``dtypes`` what it holds; other operands are cast. A sum
    is not parenthesised; choices and comparisons are.

    Numerics: constants are folded at full precision and rounded once to the dtype. Comparisons and
    sums of integers are made in integers, never through a float.
    Raises: FormulaError for a function that has no C form, or a symbol that has no name.
    """
    if dtype not in C_TYPE:
        raise FormulaError(f"no C type for dtype {dtype!r}; known: {', '.join(C_TYPE)}")
    symbols = sorted(symbols_of(expr), key=lambda s: str(s.name))
    table = []
    for s in symbols:
        if s not in names:
            raise FormulaError(f"symbol {s} has no C name in {describe(expr)}")
        name = names[s]
        table.append((s, name if _PRIMARY.fullmatch(name) else f"({name})", dtypes.get(s, dtype)))
    return _print(expr, tuple(table), dtype)


@lru_cache(maxsize=65536)
def _print(expr: sp.Basic, table: tuple[tuple[sp.Symbol, str, str], ...], dtype: str) -> str:
    names = {s: name for s, name, _ in table}
    dtypes = {s: kind for s, _, kind in table}
    if is_condition(expr):
        text = _Printer(names, dtypes, "float64").condition(expr)[0]
        return f"({C_TYPE[dtype]}){text}" if dtype.startswith("float") else text
    kind = dtype if dtype.startswith("float") else _computing_dtype(expr, dtypes, dtype)
    text, level = _Printer(names, dtypes, kind).value(expr)
    if dtype == "bool":
        if _is_indicator(expr) or (isinstance(expr, sp.Symbol) and dtypes[expr] == "bool"):
            return names.get(expr, text)
        return f"({_paren(text, level, _ADD)} != {literal(sp.S.Zero, kind)})"
    if kind == dtype:
        return text
    if kind.startswith("float"):
        return f"gc_to_{dtype}{SUFFIX[kind]}({text})"
    return f"({C_TYPE[dtype]}){_paren(text, level, _UNARY)}"


def _outcome(operator: str, dtype: str, number: int) -> bool | None:
    """Return what comparing any value of an integer dtype with a number gives; None if that depends on the value."""
    low, high = (0, 255) if dtype == "bool" else integer_range(dtype)  # a caller's byte may be any
    near = {low, high, *(v for v in (number - 1, number, number + 1) if low <= v <= high)}
    outcomes = {_COMPARE[operator](value, number) for value in near}
    return outcomes.pop() if len(outcomes) == 1 else None


def _paren(text: str, level: int, needed: int) -> str:
    return text if level >= needed else f"({text})"


def _bare(text: str) -> str:
    """Return a comparison without the parentheses around it, where they enclose all of it."""
    return text[1:-1] if text.startswith("(") else text


def _is_indicator(expr: sp.Basic) -> bool:
    """Whether the expression is 1 where a condition holds and 0 elsewhere."""
    if not isinstance(expr, sp.Piecewise) or len(expr.args) != 2:
        return False
    (one, _), (zero, last) = expr.args
    return bool(one == 1 and zero == 0 and last == sp.true)


def _whole(expr: sp.Basic, dtypes: Mapping[sp.Symbol, str]) -> bool:
    """Whether the expression can be computed exactly in integers."""
    if isinstance(expr, sp.Symbol):
        return not dtypes[expr].startswith("float")
    if isinstance(expr, sp.Integer):
        return True
    if isinstance(expr, sp.Piecewise):
        return expr.args[-1].args[1] == sp.true and all(_whole(v, dtypes) for v, _ in expr.args)
    if isinstance(expr, sp.Pow):
        return bool(expr.exp.is_Integer and expr.exp > 0) and _whole(expr.base, dtypes)
    row = CATALOGUE.get(type(expr))
    if isinstance(expr, sp.Add | sp.Mul) or (row is not None and row.integer):
        return all(_whole(a, dtypes) for a in expr.args)
    return False


def _computing_dtype(expr: sp.Basic, dtypes: Mapping[sp.Symbol, str], wanted: str) -> str:
    """Return the dtype to compute in when the result is to be an integer or a truth value."""
    used = {dtypes[s] for s in symbols_of(expr)} | {wanted}
    if _whole(expr, dtypes):
        return _integer_kind(used)
    return "float32" if "float32" in used and "float64" not in used else "float64"


def _integer_kind(used: Iterable[str]) -> str:
    """Return the type that integers are computed in: one that holds the values of all, where there is one."""
    if "uint64" in used:
        return "uint64"
    return "int64" if {"int64", "uint32"} & set(used) else "int32"


def _range(e: sp.Basic, dtypes: Mapping[sp.Symbol, str]) -> tuple[int, int] | None:
    """Return bounds of a whole expression without any overflow; None where they are not known."""
    if isinstance(e, sp.Symbol):
        return integer_range(dtypes[e])
    if isinstance(e, sp.Integer):
        return int(e), int(e)
    if isinstance(e, sp.Piecewise):
        parts = [_range(value, dtypes) for value, _ in e.args]
        known = [p for p in parts if p is not None]
        return (min(p[0] for p in known), max(p[1] for p in known)) if len(known) == len(parts) else None
    if isinstance(e, sp.Add):
        terms = [_range(a, dtypes) for a in e.args]
        added = [t for t in terms if t is not None]
        return (sum(t[0] for t in added), sum(t[1] for t in added)) if len(added) == len(terms) else None
    if isinstance(e, sp.Mul | sp.Pow):
        factors = e.args if isinstance(e, sp.Mul) else (e.base,) * int(e.exp)
        low, high = 1, 1
        for factor in factors:
            found = _range(factor, dtypes)
            if found is None:
                return None
            corners = [a * b for a in (low, high) for b in found]
            low, high = min(corners), max(corners)
        return low, high
    return None


class _Printer:
    """Prints with one computing dtype; each method returns the text and how tightly it binds."""

    def __init__(
        self, names: Mapping[sp.Symbol, str], dtypes: Mapping[sp.Symbol, str], kind: str, within: str = ""
    ) -> None:
        """Print in a kind; ``within`` is the signed kind whose sums and products wrap in an unsigned one."""
        self.names, self.dtypes, self.kind, self.within = names, dtypes, kind, within

    def _may_overflow(self, e: sp.Expr) -> bool:
        """Whether the signed arithmetic could leave its type, which C leaves undefined."""
        if self.kind not in ("int32", "int64"):
            return False
        low, high = integer_range(self.kind)
        found = _range(e, self.dtypes)
        return found is None or found[0] < low or found[1] > high

    def value(self, e: sp.Basic) -> _Text:
        """Return a number's text."""
        if isinstance(e, sp.Symbol):
            name = self.names[e]
            if self.dtypes[e] == self.kind:
                return name, _ATOM
            return f"({C_TYPE[self.kind]}){name}", _UNARY
        if isinstance(e, sp.Add | sp.Mul | sp.Pow) and symbols_of(e) and self._may_overflow(e):
            text, level = _Printer(self.names, self.dtypes, f"u{self.kind}", self.kind).value(e)
            return f"({C_TYPE[self.kind]}){_paren(text, level, _UNARY)}", _UNARY
        if self.within and isinstance(e, sp.Piecewise | sp.Function):
            text, level = _Printer(self.names, self.dtypes, self.within).value(e)
            return f"({C_TYPE[self.kind]}){_paren(text, level, _UNARY)}", _UNARY
        if not symbols_of(e) and not is_condition(e):
            text = literal(e, self.kind)
            return text, _ADD if text.startswith("-") else _ATOM
        if isinstance(e, sp.Add):
            return self._sum(e)
        if isinstance(e, sp.Mul):
            return self._product(e)
        if isinstance(e, sp.Pow):
            return self._product(e) if self._negative_power(e) else self._power(e.base, e.exp)
        if isinstance(e, sp.Piecewise):
            return self._choice(e)
        return self._call(e)

    def condition(self, e: sp.Basic) -> _Text:
        """Return a truth value's text, parenthesised."""
        if isinstance(e, BooleanTrue | BooleanFalse):
            return ("1" if e else "0"), _ATOM
        if isinstance(e, sp.Not):
            return f"!{self.condition(e.args[0])[0]}", _UNARY
        if isinstance(e, sp.And | sp.Or):
            operator = " && " if isinstance(e, sp.And) else " || "
            parts = sorted(self._joined(a) for a in e.args)  # sympy keeps them as a set
            return f"({operator.join(parts)})", _ATOM
        if isinstance(e, sp.ITE):
            test, yes, no = (self.condition(a)[0] for a in e.args)
            return f"({_bare(test)} ? {yes} : {no})", _ATOM
        operator = _RELATION.get(type(e), "")
        if not operator:
            raise FormulaError(f"no C form for the condition {describe(e)}")
        return self._comparison(e.lhs, operator, e.rhs), _ATOM

    def _joined(self, e: sp.Basic) -> str:
        """Return a part of a conjunction; && inside || keeps its parentheses, which gcc asks for."""
        text = self.condition(e)[0]
        return text if isinstance(e, sp.And | sp.Or) else _bare(text)

    def _comparison(self, lhs: sp.Expr, operator: str, rhs: sp.Expr) -> str:
        if isinstance(lhs, sp.Symbol) and _whole(lhs, self.dtypes) and rhs.is_Integer:
            # gcc refuses to compare an unsigned byte with what it never is: n >= 0.
            outcome = _outcome(operator, self.dtypes[lhs], int(rhs))
            if outcome is not None:
                return str(int(outcome))
        used = {self.dtypes[s] for s in symbols_of(lhs) | symbols_of(rhs)}
        if _whole(lhs, self.dtypes) and _whole(rhs, self.dtypes) and used:
            kind = _integer_kind(used)
        elif "float64" in used or not used & {"float32"}:
            kind = "float64" if self.kind != "float32" or "float64" in used else "float32"
        else:
            kind = "float32"
        side = self if kind == self.kind else _Printer(self.names, self.dtypes, kind)
        left, right = side.value(lhs), side.value(rhs)
        return f"({_paren(*left, _ADD)} {operator} {_paren(*right, _ADD)})"

    def _sum(self, e: sp.Add) -> _Text:
        terms = [self._signed(t) for t in e.args if symbols_of(t)]
        folded = constant(sp.Add(*[t for t in e.args if not symbols_of(t)]))
        if folded != 0:
            terms.append(self._signed(folded))
        # The first positive term leads, so that the text does not start with a minus.
        lead = next((i for i, (negative, _) in enumerate(terms) if not negative), 0)
        terms.insert(0, terms.pop(lead))
        text = ("-" if terms[0][0] else "") + terms[0][1]
        for negative, body in terms[1:]:
            text += (" - " if negative else " + ") + body
        return text, _ADD if len(terms) > 1 or terms[0][0] else _MUL

    def _signed(self, term: sp.Expr) -> tuple[bool, str]:
        """Return whether a term of a sum is negative, and its magnitude's text."""
        if not symbols_of(term):
            value = constant(term)
            negative = bool(value.is_extended_negative)
            return negative, literal(-value if negative else value, self.kind)
        if isinstance(term, sp.Mul):
            text, level = self._product(term)
            if text.startswith("-"):
                return True, text[1:]
            return False, _paren(text, level, _MUL)
        text, level = self.value(term)
        return False, _paren(text, level, _MUL)

    @staticmethod
    def _negative_power(e: sp.Basic) -> bool:
        return isinstance(e, sp.Pow) and e.exp.is_Rational and e.exp < 0

    def _product(self, e: sp.Expr) -> _Text:
        """Print number*numerator/denominator; a product or one negative power."""
        factors = sp.Mul.make_args(e)
        coefficient = constant(sp.Mul(*[f for f in factors if not symbols_of(f)]))
        above, below = [], []
        for f in factors:
            if not symbols_of(f):
                continue
            if self._negative_power(f):
                below.append(self._factor(f.base, -f.exp))
            else:
                above.append(self._factor(f.base, f.exp) if isinstance(f, sp.Pow) else self.value(f))
        negative = bool(coefficient.is_extended_negative)
        if negative:
            coefficient = -coefficient
        parts = [_paren(*a, _MUL) for a in above]
        if coefficient != 1 or not parts:
            parts.insert(0, literal(coefficient, self.kind))
        text, level = "*".join(parts), _MUL if len(parts) > 1 else (above[0][1] if above else _ATOM)
        if below:
            under = "*".join(_paren(*b, _MUL) for b in below)
            single = len(below) == 1 and below[0][1] != _MUL
            text, level = f"{_paren(text, level, _MUL)}/{under if single else f'({under})'}", _MUL
        if negative:
            return f"-{_paren(text, level, _MUL)}", _ADD
        return text, level

    def _factor(self, base: sp.Expr, exponent: sp.Expr) -> _Text:
        return self.value(base) if exponent == 1 else self._power(base, exponent)

    def _power(self, base: sp.Expr, exponent: sp.Expr) -> _Text:
        """Print base**exponent; a rational exponent is positive here."""
        suffix = SUFFIX[self.kind]
        if exponent.is_Integer and 2 <= exponent <= LARGEST_POWER:
            text, _ = self.value(base)
            n = int(exponent)
            if n <= 4 and _REPEATABLE.fullmatch(text):
                return ("*".join([text] * n) if n < 4 else f"({text}*{text})*({text}*{text})"), _MUL
            return f"gc_pow{n}{suffix}({text})", _ATOM
        if not self.kind.startswith("float"):
            raise FormulaError(f"power {describe(base**exponent)} has no form in {self.kind}")
        if exponent.is_Rational and exponent.q == 2 and 1 <= exponent.p <= LARGEST_POWER:
            text, _ = self.value(base)
            root, n = f"sqrt{suffix}({text})", int(exponent.p)
            if n == 1:
                return root, _ATOM
            if n == 3 and _REPEATABLE.fullmatch(text):
                return f"{text}*{root}", _MUL
            return f"gc_pow{n}{suffix}({root})", _ATOM
        if base == 2:
            return f"exp2{suffix}({self.value(exponent)[0]})", _ATOM
        return f"pow{suffix}({self.value(base)[0]}, {self.value(exponent)[0]})", _ATOM

    def _choice(self, e: sp.Piecewise) -> _Text:
        if not self.kind.startswith("float"):
            if _is_indicator(e):
                return self.condition(e.args[0].args[1])
            if e.args[-1].args[1] != sp.true:
                raise FormulaError(f"{describe(e)} has no last branch, and {self.kind} has no NaN")
        # gcc keeps a jump round arithmetic in a branch of ?:, and does not vectorise the loop around it.
        masks = self.kind == "float32" and any(
            symbols_of(v) and not isinstance(v, sp.Symbol) for v, _ in e.args
        )
        text = "NAN"
        for value, test in reversed(e.args):
            body, level = self.value(value)
            choice = _bare(self.condition(test)[0])
            if test == sp.true:
                text = body if masks else _paren(body, level, _ADD)
            elif masks:
                text = f"gc_selectf({choice}, {body}, {text})"
            else:
                text = f"{choice} ? {_paren(body, level, _ADD)} : {text}"
        return (text if masks else f"({text})"), _ATOM

    def _call(self, e: sp.Basic) -> _Text:
        row = CATALOGUE.get(type(e))
        if row is None:
            known = ", ".join(sorted(c.__name__ for c in CATALOGUE))
            raise FormulaError(f"no C form for {type(e).__name__} in {describe(e)}; known: {known}")
        name = row.c_name
        if not self.kind.startswith("float"):
            if not row.integer:
                raise FormulaError(f"{type(e).__name__} has no form in {self.kind}")
            name = name.replace("fabs", "gc_abs")
        arguments = ", ".join(self.value(a)[0] for a in e.args)
        return f"{c_function(name, self.kind)}({arguments})", _ATOM
