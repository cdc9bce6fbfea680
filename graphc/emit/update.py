"""The optimizer's step: its symbolic rule as loops over the flat parameter block."""

from __future__ import annotations

import re

import sympy as sp

from graphc import scalar
from graphc.emit.comments import comment_text, shortened
from graphc.emit.text import C_TYPE
from graphc.optim import Optimizer
from graphc.program.ir import Program, UpdateRange
from graphc.types import DType


def update_context(program: Program, optimizer: Optimizer) -> dict[str, object]:
    """Return what the template of the update needs."""
    ranges = [_range(r, optimizer, program.dtype) for r in program.update.ranges]
    slots = [{"name": s, "offset": k * program.trainable_size} for k, s in enumerate(program.update.slots)]
    rule = optimizer.rule_for(program.update.ranges[0])
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


def _range(update: UpdateRange, optimizer: Optimizer, dtype: DType) -> dict[str, object]:
    rule = optimizer.rule_for(update)
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
        "begin": update.begin,
        "end": update.end,
        "scalars": scalars,
        "lines": lines + stores,
        "uses_lr": any(re.search(r"\brate\b", line) for line in lines),
        "uses_t": any(re.search(r"\bt\b", line) for line in scalars),
        "comment": comment_text(shortened(update.names, 8)),
    }


def _text(expr: sp.Expr, names: dict[sp.Symbol, str], dtype: DType) -> str:
    table = {s: names.get(s, "rate" if s.name == "lr" else s.name) for s in expr.free_symbols}
    return scalar.to_c(expr, table, dict.fromkeys(table, dtype), dtype)
