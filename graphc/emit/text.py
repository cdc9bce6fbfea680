"""Pieces of C text that every template needs: addresses, statements, constants, indentation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from graphc import scalar
from graphc.program.ir import Access, Compute, Index, Load, Number, Operand, Random, Statement, Store
from graphc.types import DType, Extent, Size

C_TYPE = scalar.C_TYPE
_WIDTH = 110
_LINKAGE = ('extern "C" {', '} /* extern "C" */')
SUFFIX = {"float32": "f", "float64": "d", "int32": "i", "int64": "l", "uint8": "b", "bool": "b"}


def extent(size: Size) -> str:
    """Return a size as C text that binds tighter than multiplication."""
    text = str(size)
    return f"({text})" if isinstance(size, Extent) and " " in text else text


def times(factor: Size) -> str:
    """Return ``" * factor"``, or nothing for 1."""
    return "" if factor == 1 else f" * {extent(factor)}"


def minus(amount: int) -> str:
    """Return ``" - amount"``, or nothing for 0."""
    return f" - {amount}" if amount else ""


def linear(access: Access, variables: Sequence[str]) -> str:
    """Return the index ``offset + sum(variable * stride)`` as C text."""
    terms = [f"{v}{times(s)}" for v, s in zip(variables, access.strides, strict=True) if s != 0]
    if access.offset != 0 or not terms:
        terms.append(str(access.offset))
    return " + ".join(terms)


def literal(value: float, dtype: DType) -> str:
    """Return a number as a C constant of the dtype."""
    if dtype.startswith("float"):
        if math.isnan(value):
            return "NAN"
        if math.isinf(value):
            return "INFINITY" if value > 0 else "-INFINITY"
        return scalar.literal(scalar.number(value), dtype)
    return str(int(value))


class BodyText:
    """Prints statements; ``names`` maps values that live in arrays to their subscripted form."""

    def __init__(
        self, operands: Sequence[Operand], variables: Sequence[str], names: Mapping[str, str] | None = None
    ):
        """Print for the given kernel parameters and loop variables."""
        self.operands = operands
        self.variables = variables
        self.names = dict(names or {})

    def name(self, value: str) -> str:
        """Return how a value is written."""
        return self.names.get(value, value)

    def statement(self, s: Statement) -> str:
        """Return one line of C."""
        value = self._value(s)
        if s.name in self.names:
            return f"{self.names[s.name]} = {value};"
        return f"const {C_TYPE[s.dtype]} {s.name} = {value};"

    def _value(self, s: Statement) -> str:
        if isinstance(s, Load):
            return f"{self.operands[s.operand].name}[{linear(s.access, self.variables)}]"
        if isinstance(s, Index):
            return linear(s.access, self.variables)
        if isinstance(s, Random):
            index = linear(s.access, self.variables)
            return f"gc_uniform_{SUFFIX[s.dtype]}(random, {s.stream}, (uint64_t)({index}))"
        if isinstance(s, Number):
            if isinstance(s.value, Extent):
                return f"({C_TYPE[s.dtype]})({s.value})"
            return literal(float(s.value), s.dtype)
        assert isinstance(s, Compute)
        symbols = [scalar.argument(k) for k in range(len(s.arguments))]
        names = {x: self.name(a) for x, (a, _) in zip(symbols, s.arguments, strict=True)}
        dtypes = {x: d for x, (_, d) in zip(symbols, s.arguments, strict=True)}
        return scalar.to_c(s.expr, names, dtypes, s.dtype)

    def store(self, s: Store) -> str:
        """Return the assignment of a result."""
        operand = self.operands[s.operand]
        return f"{operand.name}[{linear(s.access, self.variables)}] = {self.name(s.value)};"


def signature(head: str, parameters: Sequence[str]) -> str:
    """Return ``head(parameters)``, on as many lines as it needs."""
    lines = [f"{head}("]
    for number, parameter in enumerate(parameters):
        piece = parameter + ("," if number < len(parameters) - 1 else ")")
        if not lines[-1].endswith("(") and len(lines[-1]) + len(piece) >= _WIDTH - 4:
            lines.append(piece)
        else:
            lines[-1] += piece if lines[-1].endswith("(") else f" {piece}"
    if not parameters:
        lines[-1] += ")"
    return "\n".join(lines)


def statement(function: str, *arguments: object) -> str:
    """Return a call as a statement, on as many lines as it needs."""
    return signature(function, list(map(str, arguments))) + ";"


def indent(text: str) -> str:
    """Return C text indented by its braces and parentheses, without empty lines at the start of blocks.

    Templates are written flat, since the depth of a loop nest depends on the kernel; this gives the
    layout that a formatter would.
    """
    depth = 0  # of braces
    open_parentheses = 0  # of a statement that goes on in the next line
    hanging = 0  # one-line bodies of for and if without braces
    in_comment = False
    lines: list[str] = []
    for raw in text.split("\n"):
        line = raw.strip()
        if not line:
            if lines and lines[-1] and not lines[-1].endswith("{"):
                lines.append("")
            continue
        if line.startswith("#") or line.startswith(_LINKAGE):
            lines.append(line)
            continue
        if in_comment or line.startswith("/*"):
            lines.append("    " * (depth + hanging) + (" " if in_comment else "") + line)
            in_comment = "*/" not in line
            continue
        if line.startswith("}"):
            while lines and not lines[-1]:
                lines.pop()
        closing = len(line) - len(line.lstrip("}"))
        lines.append("    " * max(0, depth - closing + hanging + (open_parentheses > 0)) + line)
        code = line.partition("/*")[0]
        depth += code.count("{") - code.count("}")
        open_parentheses += code.count("(") - code.count(")")
        opens_body = line.startswith(("for (", "if (", "else")) and not code.rstrip().endswith(
            ("{", ";", "}")
        )
        hanging = hanging + 1 if opens_body and open_parentheses == 0 else 0
    return "\n".join(lines)
