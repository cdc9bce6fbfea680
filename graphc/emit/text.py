"""Pieces of C text that every template needs: addresses, statements, constants, indentation."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sympy as sp

from graphc import scalar
from graphc.program.ir import Access, Compute, Index, Load, Number, Operand, Random, Statement, Store
from graphc.types import DType, Extent, Size, wrapped

C_TYPE = scalar.C_TYPE
_WIDTH = 110
_LONG = 72  # characters of a formula, with what it is stored to
_ATOM = re.compile(r"[\w.]+(\[[^\[\]]*\])?")
_LINKAGE = ('extern "C" {', '} /* extern "C" */')
SUFFIX = {
    "float32": "f", "float64": "d", "int32": "i", "int64": "l", "uint8": "b", "bool": "b",
    "int8": "i8", "int16": "i16", "uint16": "u16", "uint32": "u32", "uint64": "u64",
}  # fmt: skip
SUFFIXED = {s: C_TYPE[d] for d, s in SUFFIX.items()}
"""The C type of a suffix."""


def modular(ctype: str) -> str:
    """Return the unsigned type in which sums of an integer type wrap; nothing of them is undefined in C."""
    return "uint64_t" if "64" in ctype else "uint32_t"


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
    kind = {"uint64": "uint64", "int64": "int64", "uint32": "int64"}.get(dtype, "int32")
    return scalar.literal(sp.Integer(wrapped(int(value), dtype)), kind)


@dataclass(frozen=True)
class _Pending:
    """A value whose only reader may take its formula instead of its name."""

    statement: Statement
    text: str


class BodyText:
    """Prints statements; ``names`` maps values that live in arrays to their subscripted form.

    A value that one other reads, in the same block, is written into the formula that reads it: rounding is that of
    the single operations all the same. It keeps its line where the formula would get long, where another type
    would appear, and where it reads an array that the kernel writes, since reads and writes must keep their order.
    """

    def __init__(
        self,
        operands: Sequence[Operand],
        variables: Sequence[str],
        names: Mapping[str, str] | None = None,
        uses: Mapping[str, int] | None = None,
    ):
        """Print for the given kernel parameters and loop variables; ``uses`` counts the readers of every value."""
        self.operands = operands
        self.variables = variables
        self.names = dict(names or {})
        self.uses = uses or {}
        self._pending: dict[str, _Pending] = {}

    def name(self, value: str) -> str:
        """Return how a value is written."""
        return self.names.get(value, value)

    def block(
        self, statements: Sequence[Statement], stores: Sequence[Store] = (), sums: Sequence[str] = ()
    ) -> tuple[list[str], list[str], list[str]]:
        """Return the lines of a block, of its stores, and the texts of the values in ``sums``."""
        read = Counter(value for s in statements if isinstance(s, Compute) for value, _ in s.arguments)
        read += Counter([*(s.value for s in stores), *sums])
        lines: list[str] = []
        for s in statements:
            text = self._composed(s, lines)
            if read[s.name] == self.uses.get(s.name) == 1 and self._may_move(s) and len(text) <= _LONG:
                self._pending[s.name] = _Pending(s, text)
            else:
                lines.append(self._defined(s, text))
        written = [
            self._target(s) + " = " + self._taken(s.value, lines, self._target(s)) + ";" for s in stores
        ]
        return lines, written, [self._taken(value, lines) for value in sums]

    def _may_move(self, s: Statement) -> bool:
        if s.name in self.names:
            return False
        if isinstance(s, Load):
            return not self.operands[s.operand].written
        if isinstance(s, Compute):
            return s.dtype.startswith("float") and all(dtype == s.dtype for _, dtype in s.arguments)
        return isinstance(s, Number)

    def _composed(self, s: Statement, lines: list[str]) -> str:
        """Return the text of a value, with the formulas of values that it alone reads."""
        if not isinstance(s, Compute):
            return self._value(s)
        marks = [f"argument{k}_" for k in range(len(s.arguments))]
        template = self._formula(s, marks)
        # A choice reads both its branches: a read in one of them would be a masked one, which gcc 12 gets wrong.
        chooses = "?" in template or "gc_select" in template
        inside = [
            value if value in self._pending and template.count(mark) == 1 and not chooses else None
            for mark, (value, _) in zip(marks, s.arguments, strict=True)
        ]
        text = template
        for mark, taken, (value, _) in zip(marks, inside, s.arguments, strict=True):
            text = text.replace(mark, self.name(value)) if taken is None else self._put_in(text, mark, taken)
        if len(text) > _LONG:
            text, inside = (
                self._formula(s, [self.name(value) for value, _ in s.arguments]),
                [None] * len(marks),
            )
        for (value, _), taken in zip(s.arguments, inside, strict=True):
            if taken is None:
                self._flush(value, lines)
            else:
                del self._pending[taken]
        return text

    def _put_in(self, text: str, mark: str, value: str) -> str:
        """Return text with the formula of a value for a mark, in parentheses where something could bind tighter."""
        formula = self._pending[value].text
        begin = text.index(mark)
        before, after = text[:begin], text[begin + len(mark) :]
        stands_alone = before.endswith(("(", ", ")) and after.startswith((")", ","))
        bare = text == mark or stands_alone or _ATOM.fullmatch(formula)
        return f"{before}{formula if bare else f'({formula})'}{after}"

    def _taken(self, value: str, lines: list[str], target: str = "") -> str:
        """Return the formula of a value that is stored or summed, or its name."""
        if value in self._pending and len(self._pending[value].text) + len(target) <= _LONG:
            return self._pending.pop(value).text
        self._flush(value, lines)
        return self.name(value)

    def _flush(self, value: str, lines: list[str]) -> None:
        if value in self._pending:
            pending = self._pending.pop(value)
            lines.append(self._defined(pending.statement, pending.text))

    def _defined(self, s: Statement, text: str) -> str:
        if s.name in self.names:
            return f"{self.names[s.name]} = {text};"
        return f"const {C_TYPE[s.dtype]} {s.name} = {text};"

    def _value(self, s: Statement) -> str:
        if isinstance(s, Load):
            return f"{self.operands[s.operand].name}[{linear(s.access, self.variables)}]"
        if isinstance(s, Index):
            return linear(s.access, self.variables)
        if isinstance(s, Random):
            index = linear(s.access, self.variables)
            return f"gc_uniform_{SUFFIX[s.dtype]}(random, {s.stream}, (uint64_t)({index}))"
        assert isinstance(s, Number)
        if isinstance(s.value, Extent):
            return f"({C_TYPE[s.dtype]})({s.value})"
        return literal(float(s.value), s.dtype)

    def _formula(self, s: Compute, names: Sequence[str]) -> str:
        symbols = s.symbols or [scalar.argument(k) for k in range(len(s.arguments))]
        dtypes = {x: d for x, (_, d) in zip(symbols, s.arguments, strict=True)}
        return scalar.to_c(s.expr, dict(zip(symbols, names, strict=True)), dtypes, s.dtype)

    def _target(self, s: Store) -> str:
        return f"{self.operands[s.operand].name}[{linear(s.access, self.variables)}]"


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
