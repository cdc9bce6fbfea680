"""What stands above a kernel: what it computes, for whom, on what, and at what cost."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import sympy as sp

from graphc import scalar
from graphc.emit.text import C_TYPE, extent
from graphc.program.ir import Call, Compute, Index, Kernel, Load, LoopSpec, Number, Random, Statement
from graphc.types import shape_text

_LINES = 10  # formulas of one kernel; what is longer is read in the code
_WIDTH = 100
_USERS = 4  # calls of one kernel


def comment_text(text: str) -> str:
    """Return text that cannot end a comment, begin one, or leave its line."""
    plain = "".join(c if " " <= c <= "~" else "?" for c in text)
    while "*/" in plain or "/*" in plain:
        plain = plain.replace("*/", "* /").replace("/*", "/ *")
    return plain.rstrip("\\")


def shortened(parts: Sequence[str], count: int, separator: str = ", ") -> str:
    """Return the first parts, and how many more there are."""
    rest = len(parts) - count
    return separator.join(parts[:count]) + (f"{separator}and {rest} more" if rest > 0 else "")


def kernel_comment(kernel: Kernel, users: Sequence[Call], entries: Iterable[str]) -> list[str]:
    """Return the lines of a kernel's comment below its title."""
    lines = [*([kernel.formula] if kernel.template != "loops" else []), *_formulas(kernel)]
    origins = list(dict.fromkeys(call_text(call, 6) for call in users))
    lines += [f"from {text}" for text in origins[:_USERS]]
    if len(origins) > _USERS:
        lines.append(f"and from {len(origins) - _USERS} more like these")
    described = []
    reread = {"inout", *_read(kernel)}
    for operand in kernel.operands:
        access = ", written" if operand.written else ""
        access = ", read and written" if operand.name in reread else access
        described.append(f"{operand.name}: {C_TYPE[operand.dtype]} {shape_text(operand.shape)}{access}")
    cost = f"{extent(kernel.flops)} FLOP, {extent(kernel.bytes)} bytes"
    lines += _joined([*described, f"{cost}, used by {', '.join(entries)}"])
    return [comment_text(line) for line in lines]


def _read(kernel: Kernel) -> set[str]:
    """Return the operands whose elements an update reads before it writes them."""
    if not kernel.scalars:
        return set()
    bodies = (
        [kernel.epilogue.statements] if kernel.epilogue else [s.kept_statements for s in kernel.spec.sweeps]
    )
    return {kernel.operands[s.operand].name for body in bodies for s in body if isinstance(s, Load)}


def _joined(parts: Sequence[str]) -> list[str]:
    """Return the parts separated by semicolons, as many in a line as fit."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(part) + 2 <= _WIDTH:
            lines[-1] += f"; {part}"
        else:
            lines.append(part)
    return lines


def call_text(call: Call, count: int) -> str:
    """Return the nodes of a call and the user's lines, as text."""
    return f"{shortened(call.nodes, count)}, at {shortened(call.sources, 3)}"


def _formulas(kernel: Kernel) -> list[str]:
    if isinstance(kernel.spec, LoopSpec):
        spec = kernel.spec
        reduced = [f"i{a}" for a, r in enumerate(spec.reduced) if r]
        book = _Formulas(kernel)
        book.read(spec.before)
        for sweep in spec.sweeps:
            book.read(sweep.statements)
            for a in sweep.accumulators:
                book.define(a.name, f"{a.kind}({{}} over {', '.join(reduced)})", [a.value])
            book.read(sweep.kept_statements)
            for store in (*sweep.stores, *sweep.kept_stores):
                book.results.append((kernel.operands[store.operand].name, store.value))
        return book.lines()
    if kernel.epilogue is None:
        return []
    book = _Formulas(kernel)
    book.read(kernel.epilogue.statements)
    if kernel.epilogue.pool:
        (rows, columns), (down, right) = kernel.epilogue.pool.kernel, kernel.epilogue.pool.stride
        apart = "" if (rows, columns) == (down, right) else f", {down} x {right} apart"
        window = f"over each {rows} x {columns} window{apart}"
        book.define("pool_max", f"max({{}} {window})", [kernel.epilogue.pooled_value])
        book.define("pool_index", f"argmax({{}} {window})", [kernel.epilogue.pooled_value])
    book.read(kernel.epilogue.after)
    results = [(kernel.operands[s.operand].name, s.value) for s in kernel.epilogue.stores]
    if all(value == "acc" for _, value in results):
        return []
    book.results += results
    return ["then, with acc for what stands on the right:", *book.lines()]


class _Formulas:
    """Puts the formulas of intermediate values that are used once into those that use them."""

    def __init__(self, kernel: Kernel):
        self.operands = [o.name for o in kernel.operands]
        self.text: dict[str, str] = {}
        self.parts: dict[str, tuple[sp.Expr | str, list[str]]] = {}
        self.results: list[tuple[str, str]] = []

    def read(self, statements: Sequence[Statement]) -> None:
        for s in statements:
            if isinstance(s, Compute):
                numbered = {symbol: scalar.argument(k) for k, symbol in enumerate(s.symbols)}
                self.define(s.name, s.expr.xreplace(numbered), [a for a, _ in s.arguments])
            elif isinstance(s, Load):
                self.text[s.name] = self.operands[s.operand]
            elif isinstance(s, Number):
                self.text[s.name] = f"{s.value:g}" if isinstance(s.value, (int, float)) else extent(s.value)
            elif isinstance(s, Index):
                self.text[s.name] = "index"
            elif isinstance(s, Random):
                self.text[s.name] = "random"

    def define(self, name: str, expr: sp.Expr | str, arguments: list[str]) -> None:
        self.parts[name] = (expr, arguments)

    def lines(self) -> list[str]:
        """Return one line for each result, and for each value that several formulas use."""
        live = self._live()
        uses = Counter(value for _, value in self.results)
        for name in live:
            expr, arguments = self.parts[name]
            if isinstance(expr, str):
                uses.update(arguments)
            else:
                mentioned = re.findall(r"\bx(\d+)\b", scalar.describe(expr, limit=_WIDTH))
                uses.update(arguments[int(k)] for k in mentioned)
        lines = []
        for name in live:
            body = self._body(name)
            if len(body) > _WIDTH:
                for argument in dict.fromkeys(self.parts[name][1]):
                    if " " in self.text.get(argument, ""):
                        lines.append(f"{argument} = {self.text[argument]}")
                        self.text[argument] = argument
                body = self._body(name)
            if uses[name] > 1 or len(body) > _WIDTH:
                lines.append(f"{name} = {body}")
                self.text[name] = name
            else:
                self.text[name] = body
        # An anchor's own value, called acc, may be stored beside what is computed from it.
        lines += [f"{operand} = {self.text.get(value, value)}" for operand, value in self.results]
        lines = [line if len(line) <= _WIDTH else line[: _WIDTH - 4] + " ..." for line in lines]
        return lines if len(lines) <= _LINES else [*lines[: _LINES - 1], "and so on, as the code says"]

    def _live(self) -> list[str]:
        """Return the values that results need, in order."""
        needed = {value for _, value in self.results}
        for name in reversed(self.parts):
            if name in needed:
                needed.update(self.parts[name][1])
        return [name for name in self.parts if name in needed]

    def _body(self, name: str) -> str:
        expr, arguments = self.parts[name]
        texts = [self.text.get(a, a) for a in arguments]
        if isinstance(expr, str):
            return expr.format(texts[0])
        template = scalar.describe(expr, limit=_WIDTH)

        def argument(match: re.Match[str]) -> str:
            text = texts[int(match[1])]
            alone = (
                match.string[match.start() - 1 : match.start()] == "("
                and match.string[match.end() :][:1] == ")"
            )
            return text if alone or template == match[0] or _is_atomic(text) else f"({text})"

        return re.sub(r"\bx(\d+)\b", argument, template)


def _is_atomic(text: str) -> bool:
    """Whether text is a name, a number, or one call of a function, that needs no parentheses."""
    head = re.match(r"[\w.]*", text)
    assert head is not None
    rest = text[head.end() :]
    if not rest:
        return True
    depth = 0
    for position, character in enumerate(rest):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return character == ")" and position == len(rest) - 1
    return False
