"""Reads a user's formula, ``"x*tanh(log(1 + exp(x)))"``, without ever evaluating it as Python.

Python's own grammar does the parsing (``ast``); a whitelist of nodes and functions does the rest.
What a formula may cost is bounded: its length, its depth, its constants and its exponents.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache, reduce
from typing import NoReturn

import sympy as sp
from sympy.logic.boolalg import Boolean

from graphc.errors import FormulaError
from graphc.scalar.functions import expm1, larger, log1p, sigmoid, smaller, softplus
from graphc.scalar.stable import stabilise
from graphc.scalar.symbols import argument, compare, is_condition, number, piecewise, relu

MAX_LENGTH = 4000
MAX_DEPTH = 40
MAX_NUMBER_BITS = 2048
MAX_EXPONENT = 64
MAX_NODES = 5000

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CONSTANTS = {"pi": sp.pi, "e": sp.E}


def _fold(function: Callable[[sp.Expr, sp.Expr], sp.Expr]) -> Callable[..., sp.Expr]:
    return lambda *operands: reduce(function, operands)


# name -> (builder, least and most operands)
_FUNCTIONS: dict[str, tuple[Callable[..., sp.Expr], int, int]] = {
    "abs": (sp.Abs, 1, 1),
    "acos": (sp.acos, 1, 1),
    "acosh": (sp.acosh, 1, 1),
    "asin": (sp.asin, 1, 1),
    "asinh": (sp.asinh, 1, 1),
    "atan": (sp.atan, 1, 1),
    "atan2": (sp.atan2, 2, 2),
    "atanh": (sp.atanh, 1, 1),
    "ceil": (sp.ceiling, 1, 1),
    "cos": (sp.cos, 1, 1),
    "cosh": (sp.cosh, 1, 1),
    "erf": (sp.erf, 1, 1),
    "exp": (sp.exp, 1, 1),
    "expm1": (expm1, 1, 1),
    "floor": (sp.floor, 1, 1),
    "log": (sp.log, 1, 1),
    "log1p": (log1p, 1, 1),
    "max": (_fold(larger), 2, 16),
    "min": (_fold(smaller), 2, 16),
    "relu": (relu, 1, 1),
    "rsqrt": (lambda u: u ** sp.Rational(-1, 2), 1, 1),
    "sigmoid": (sigmoid, 1, 1),
    "sign": (sp.sign, 1, 1),
    "sin": (sp.sin, 1, 1),
    "sinh": (sp.sinh, 1, 1),
    "softplus": (softplus, 1, 1),
    "sqrt": (sp.sqrt, 1, 1),
    "tan": (sp.tan, 1, 1),
    "tanh": (sp.tanh, 1, 1),
}
FUNCTIONS: tuple[str, ...] = tuple(sorted([*_FUNCTIONS, "where"]))
"""The functions a formula may call."""

_COMPARISONS: dict[type[ast.cmpop], type[sp.Basic]] = {
    ast.Lt: sp.Lt,
    ast.LtE: sp.Le,
    ast.Gt: sp.Gt,
    ast.GtE: sp.Ge,
    ast.Eq: sp.Eq,
    ast.NotEq: sp.Ne,
}


def parse_formula(text: str, variables: Sequence[str] | None = None) -> tuple[sp.Expr, tuple[str, ...]]:
    """Return the formula over ``argument(0)``, ``argument(1)``, ... and the variables they stand for.

    The order is that of ``variables`` where given, else of first appearance. A comparison is 1 or 0
    where a number is wanted; a number is true where it is not 0. ``max(u, 0)`` is relu(u): against a
    number, max and min clamp, with derivative 0 at the bound; between two variables a tie shares it.

    Raises: FormulaError with the column and what is allowed there. The text is never executed.
    """
    if not isinstance(text, str):
        raise FormulaError(f"a formula is text such as 'x*sigmoid(x)', got {type(text).__name__}")
    reader = _Reader(text, variables)
    if len(text) > MAX_LENGTH:
        reader.fail(None, f"it has {len(text)} characters, at most {MAX_LENGTH} are read")
    tree = reader.tree(text)
    expr = reader.number(tree, 0)
    if expr.has(sp.re, sp.im, sp.conjugate, sp.cot):
        # sympy doubts that a root is real, and turns tan(x + pi/2) into a cotangent.
        expr = stabilise(expr)
    if expr.has(sp.zoo, sp.nan, sp.oo, -sp.oo, sp.I):
        reader.fail(None, "a constant in it is not a finite real number")
    return expr, reader.variables


@lru_cache(maxsize=65536)
def _size(expr: sp.Basic) -> int:
    """Return the nodes of the expression as a tree: relu writes its operand twice."""
    return 1 + sum(_size(a) for a in expr.args)


class _Reader:
    """Turns one formula's syntax tree into sympy."""

    def __init__(self, text: str, variables: Sequence[str] | None) -> None:
        short = text if len(text) <= 80 else text[:77] + "..."
        self.shown = f"formula {short!r}"
        self.fixed = variables is not None
        self.names: dict[str, sp.Symbol] = {}
        self.line, self.indent = "", 0
        for name in variables or ():
            if not isinstance(name, str) or not _NAME.fullmatch(name) or name in self.names:
                raise FormulaError(f"{self.shown}: {name!r} is no valid variable name, or is given twice")
            self.names[name] = argument(len(self.names))

    @property
    def variables(self) -> tuple[str, ...]:
        return tuple(self.names)

    def fail(self, node: ast.expr | None, message: str) -> NoReturn:
        where = f" at column {self.column(node.col_offset)}" if node is not None else ""
        raise FormulaError(f"{self.shown}: {message}{where}")

    def column(self, byte: int) -> int:
        """Return the column in the text as given, counted from 1 (ast counts UTF-8 bytes)."""
        return len(self.line.encode()[:byte].decode(errors="ignore")) + self.indent + 1

    def tree(self, text: str) -> ast.expr:
        """Return the syntax tree; line breaks count as blanks, so a formula may be indented."""
        blank = re.sub(r"[\n\r\t\f]", " ", text)
        self.line = blank.strip(" ")
        self.indent = len(blank) - len(blank.lstrip(" "))
        try:
            with warnings.catch_warnings():
                # Python warns of 1(x) and the like; the whitelist refuses them with a better message.
                warnings.simplefilter("ignore", SyntaxWarning)
                return ast.parse(self.line, mode="eval").body
        except SyntaxError as problem:
            at = max((problem.offset or 1) + self.indent, 1)
            why = f"{problem.msg} at column {at}"
        except (RecursionError, MemoryError):
            why = "it is nested too deeply to be read"
        except ValueError as problem:
            why = str(problem)
        raise FormulaError(f"{self.shown}: {why}; write for example 'x*sigmoid(x)'")

    def number(self, node: ast.expr, depth: int) -> sp.Expr:
        """Return a node's value as a number; a truth value becomes 1 or 0."""
        value = self.any(node, depth)
        if is_condition(value):
            value = piecewise((sp.S.One, value), (sp.S.Zero, sp.true))
        return self.checked(node, value)

    def condition(self, node: ast.expr, depth: int) -> Boolean:
        """Return a node's value as a truth value; a number is true where it is not 0."""
        value = self.any(node, depth)
        return value if is_condition(value) else compare(sp.Ne, value, sp.S.Zero)

    def any(self, node: ast.expr, depth: int) -> sp.Basic:  # noqa: RET503  # ``fail`` never returns
        if depth > MAX_DEPTH:
            self.fail(node, f"nested more than {MAX_DEPTH} levels deep")
        match node:
            case ast.Constant():
                return self.constant(node)
            case ast.Name():
                return self.name(node)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -self.number(operand, depth + 1)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self.number(operand, depth + 1)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return sp.Not(self.condition(operand, depth + 1))
            case ast.BinOp():
                return self.binary(node, depth)
            case ast.Compare():
                return self.comparison(node, depth)
            case ast.BoolOp(op=op, values=values):
                join = sp.And if isinstance(op, ast.And) else sp.Or
                return join(*[self.condition(v, depth + 1) for v in values])
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return self.choose(test, body, orelse, depth)
            case ast.Call():
                return self.call(node, depth)
        self.fail(
            node,
            f"{type(node).__name__} is not allowed; use numbers, names, + - * / **, "
            "comparisons and functions",
        )

    def constant(self, node: ast.Constant) -> sp.Expr:
        value = node.value
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(node, f"{value!r:.40} is not a real number")
        if isinstance(value, float) and value == float("inf"):
            self.fail(node, "the number is too large for float64")
        return self.checked(node, number(value))

    def name(self, node: ast.Name) -> sp.Expr:
        name = node.id
        if name in self.names:
            return self.names[name]
        if name in _CONSTANTS:
            return _CONSTANTS[name]
        if name in FUNCTIONS:
            self.fail(node, f"{name} is a function: write {name}(...)")
        if self.fixed:
            known = ", ".join([*self.names, *_CONSTANTS])
            self.fail(node, f"unknown name {name!r} (known: {known})")
        if not _NAME.fullmatch(name):
            self.fail(node, f"the name {name!r} is not plain ASCII")
        self.names[name] = argument(len(self.names))
        return self.names[name]

    def binary(self, node: ast.BinOp, depth: int) -> sp.Expr:
        """Read a chain a + b - c + ... in a loop: long sums are flat, not deep."""
        chain: list[ast.BinOp] = []
        first: ast.expr = node
        while isinstance(first, ast.BinOp) and isinstance(first.op, ast.Add | ast.Sub | ast.Mult | ast.Div):
            chain.append(first)
            first = first.left
        if not chain:
            return self.power(node, depth)
        result = self.number(first, depth + 1)
        for link in reversed(chain):
            right = self.number(link.right, depth + 1)
            if isinstance(link.op, ast.Add):
                result = result + right
            elif isinstance(link.op, ast.Sub):
                result = result - right
            elif isinstance(link.op, ast.Mult):
                result = result * right
            elif right == 0:
                self.fail(link.right, "division by zero")
            else:
                result = result / right
        return result

    def power(self, node: ast.BinOp, depth: int) -> sp.Expr:
        if isinstance(node.op, ast.BitXor):
            self.fail(node, "^ is not a power here: write x**2 for x squared,")
        if not isinstance(node.op, ast.Pow):
            self.fail(node, f"the operator {type(node.op).__name__} is not allowed; use + - * / **,")
        exponent = self.number(node.right, depth + 1)
        base = self.number(node.left, depth + 1)
        if exponent.is_number and abs(float(exponent.evalf(17))) > MAX_EXPONENT:
            self.fail(node.right, f"an exponent is at most {MAX_EXPONENT} in magnitude, got one too large")
        if base == 0 and exponent.is_negative:
            self.fail(node, "division by zero")
        return base**exponent

    def comparison(self, node: ast.Compare, depth: int) -> Boolean:
        operands = [self.number(n, depth + 1) for n in (node.left, *node.comparators)]
        tests = []
        for op, left, right in zip(node.ops, operands, operands[1:], strict=False):
            build = _COMPARISONS.get(type(op))
            if build is None:
                self.fail(node, f"the comparison {type(op).__name__} is not allowed; use < <= > >= == !=,")
            tests.append(compare(build, left, right))
        return sp.And(*tests) if len(tests) > 1 else tests[0]

    def choose(self, test: ast.expr, yes: ast.expr, no: ast.expr, depth: int) -> sp.Expr:
        condition = self.condition(test, depth + 1)
        return piecewise((self.number(yes, depth + 1), condition), (self.number(no, depth + 1), sp.true))

    def call(self, node: ast.Call, depth: int) -> sp.Expr:
        name = node.func.id if isinstance(node.func, ast.Name) else None
        if name is None or name not in FUNCTIONS:
            shown = f"unknown function {name!r}" if name else "only a plain function name can be called"
            self.fail(node, f"{shown} (known: {', '.join(FUNCTIONS)})")
        if node.keywords or any(isinstance(a, ast.Starred) for a in node.args):
            self.fail(node, f"{name} takes plain arguments only")
        if name == "where":
            if len(node.args) != 3:
                self.fail(node, f"where(condition, yes, no) takes 3 arguments, got {len(node.args)}")
            test, yes, no = node.args
            return self.choose(test, yes, no, depth)
        build, least, most = _FUNCTIONS[name]
        if not least <= len(node.args) <= most:
            wanted = str(least) if least == most else f"{least} to {most}"
            self.fail(node, f"{name} takes {wanted} argument(s), got {len(node.args)}")
        return build(*[self.number(a, depth + 1) for a in node.args])

    def checked(self, node: ast.expr, value: sp.Expr) -> sp.Expr:
        """Refuse what grows without bound, and a constant that is not a finite real number."""
        if _size(value) > MAX_NODES:
            self.fail(node, f"it expands to more than {MAX_NODES} operations")
        for part in (value, *value.args):
            if part.is_Rational:
                if max(int(part.p).bit_length(), int(part.q).bit_length()) > MAX_NUMBER_BITS:
                    self.fail(node, f"a constant needs more than {MAX_NUMBER_BITS} bits")
                if abs(part) > sp.Integer(2) ** 1023:
                    self.fail(node, "a constant is too large for float64")
            elif part in (sp.zoo, sp.nan, sp.oo, -sp.oo):
                self.fail(node, "a constant is infinite or undefined")
            elif part.is_number and not is_condition(part):
                evaluated = part.evalf(17)
                if not (evaluated.is_Float or evaluated.is_Rational):
                    self.fail(node, "a constant is not a finite real number")
                if abs(evaluated) > sp.Integer(2) ** 1023:
                    self.fail(node, "a constant is too large for float64")
        if value.is_Pow and value.exp.is_number and abs(float(value.exp.evalf(17))) > MAX_EXPONENT**2:
            self.fail(node, "the exponents multiply to one too large")
        return value
