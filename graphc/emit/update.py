"""The optimizer's step: its symbolic rule as loops over the flat parameter block."""

from __future__ import annotations

import re

import sympy as sp

from graphc import scalar
from graphc.emit.comments import comment_text, shortened
from graphc.emit.text import C_TYPE
from graphc.emit.threads import nanoseconds
from graphc.optim import LR, Optimizer, T
from graphc.program.ir import Kernel, Program, UpdateRange, UpdateSpec
from graphc.types import ITEMSIZE, DType

STEP_NUMBER = "steps"
"""What a kernel calls the number of the training step, from 1."""


def update_context(program: Program, spec: UpdateSpec, optimizer: Optimizer) -> dict[str, object]:
    """Return what the template of the update needs."""
    ranges = [_range(r, optimizer, program) for r in spec.ranges]
    slots = [{"name": s, "offset": k * program.trainable_size} for k, s in enumerate(spec.slots)]
    rule = optimizer.rule_for(spec.ranges[0])
    formulas = [f"{target} <- {scalar.describe(expr)}" for target, expr in (*rule.scalars, *rule.updates)]
    return {
        "name": program.name,
        "T": C_TYPE[program.dtype],
        "slots": slots,
        "ranges": ranges,
        "uses_t": any(r["uses_t"] for r in ranges),
        "description": f"{type(optimizer).__name__}, one loop over each range of the flat parameter block",
        "comment": [comment_text(line) for line in formulas],
    }


def scalar_lines(kernel: Kernel) -> list[str]:
    """Return the declarations of what an update computes once a call, from ``lr`` and the number of the step."""
    real = C_TYPE[kernel.dtype]
    names = {LR: "lr", T: STEP_NUMBER}
    lines = []
    for name, expr in kernel.scalars:
        lines.append(f"const {real} {name} = ({real}){_bound(_text(expr, names, 'float64'))};")
    return lines


def _bound(text: str) -> str:
    """Return text as an operand of a cast."""
    return text if re.fullmatch(r"\w+", text) else f"({text})"


def _range(update: UpdateRange, optimizer: Optimizer, program: Program) -> dict[str, object]:
    rule, dtype = optimizer.rule_for(update), program.dtype
    real = C_TYPE[dtype]
    names = {sp.Symbol("w", real=True): "weights[k]", sp.Symbol("g", real=True): "grads[k]"}
    names |= {sp.Symbol(s, real=True): f"{s}[k]" for s in rule.slots}
    lines, stores = [], []
    for target, expr in rule.updates:
        lines.append(f"const {real} {target}_new = {_text(expr, names, dtype)};")
        stores.append(f"{'weights' if target == 'w' else target}[k] = {target}_new;")
    scalars = []
    for name, expr in rule.scalars:
        text = _text(expr, {sp.Symbol("lr", positive=True): "lr"}, "float64")
        scalars.append(f"const {real} {name} = ({real})({text});")
    return {
        "parallel": nanoseconds(0, _moved(update, len(rule.slots), dtype), 1) >= program.fork_ns,
        "begin": update.begin,
        "end": update.end,
        "scalars": scalars,
        "lines": lines + stores,
        "uses_lr": any(re.search(r"\brate\b", line) for line in lines),
        "uses_t": any(re.search(r"\bt\b", line) for line in scalars),
        "comment": comment_text(shortened(update.names, 8)),
    }


def _moved(update: UpdateRange, slots: int, dtype: DType) -> int:
    """Return the bytes that an update reads and writes: weights and slots both ways, gradients one."""
    return (update.end - update.begin) * (3 + 2 * slots) * ITEMSIZE[dtype]


def _text(expr: sp.Expr, names: dict[sp.Symbol, str], dtype: DType) -> str:
    table = {s: names.get(s, "rate" if s.name == "lr" else s.name) for s in expr.free_symbols}
    return scalar.to_c(expr, table, dict.fromkeys(table, dtype), dtype)
