"""The C emitter: a Program becomes a header and a source that a person can read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import sympy as sp
from jinja2 import Environment, PackageLoader, StrictUndefined

from graphc import scalar
from graphc.emit.kernels import anchor_context, loop_context, pack_context
from graphc.emit.prelude import helpers_for
from graphc.emit.text import C_TYPE, SUFFIX, extent, indent, minus, times
from graphc.lower.names import c_name
from graphc.lower.loops import PARALLEL_WORK
from graphc.optim import Optimizer
from graphc.program.ir import Buffer, Call, Entry, Kernel, Program, Space
from graphc.types import ITEMSIZE, Size, at, shape_text

ABI = 1
_SPACES = {
    Space.PARAMS: "params",
    Space.GRADS: "grads",
    Space.SLOTS: "slots",
    Space.STATE: "state",
    Space.FOLDED: "folded",
}


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("graphc_templates", "c"),
        undefined=StrictUndefined,
        trim_blocks=False,
        keep_trailing_newline=False,
        autoescape=False,  # noqa: S701  # the output is C, and names were checked
    )
    environment.globals.update(times=times, minus=minus)
    return environment


def _render(template: str, **context: object) -> str:
    return (
        _environment().get_template(f"{template}.c.j2" if "." not in template else template).render(**context)
    )


@dataclass(frozen=True)
class Emitted:
    """The texts: sources by file name, and the declarations for cffi."""

    sources: dict[str, str]
    cdef: str
    kernel_names: dict[str, list[str]]  # entry -> the function of each call


@dataclass(frozen=True)
class _Function:
    name: str
    text: str
    uses_n: bool
    uses_threads: bool
    uses_random: bool


class _Emitter:
    def __init__(self, program: Program, optimizer: Optimizer | None, nan_guard: bool):
        self.program = program
        self.optimizer = optimizer
        self.nan_guard = nan_guard
        self.real = C_TYPE[program.dtype]
        self.functions: dict[Kernel, _Function] = {}
        self.taken: set[str] = {"update", "context", "memory", "batch", "error", "N", "threads", "arena", "random",
                                "params", "grads", "slots", "state", "folded", "lr", "commit", "snprintf", "isfinite", "all_finite", "check_block",
                                "check_array", "check_batch", "memset", "memory_bytes"}  # fmt: skip

    def emit(self) -> Emitted:
        calls: dict[Kernel, list[Call]] = {}
        for entry in self.program.entries:
            for call in entry.calls:
                calls.setdefault(call.kernel, []).append(call)
        for kernel, users in calls.items():
            self.functions[kernel] = self._function(kernel, users)
        entries = [self._entry(e) for e in self.program.entries]
        update = self._update() if self.program.update else ""
        common = self._common(entries)
        body = indent(_render("entries", update=update, **common))
        kernels = [f.text for f in self.functions.values()]
        helpers = helpers_for("\n".join([*kernels, body]))
        prelude = _render("prelude", helpers=[h.rstrip() + "\n" for h in helpers])
        name = self.program.name
        source = _render("module", prelude=prelude, kernels=kernels, **{**common, "entries": body})
        header = indent(_render("module.h.j2", **common))
        names = {e.name: [self.functions[c.kernel].name for c in e.calls] for e in self.program.entries}
        cdef = _cdef(header)
        return Emitted({f"{name}.h": header + "\n", f"{name}.c": source + "\n"}, cdef, names)

    def _unique(self, base: str) -> str:
        name, number = c_name(base), 1
        while name in self.taken:
            number += 1
            name = f"{c_name(base)}_{number}"
        self.taken.add(name)
        return name

    def _function(self, kernel: Kernel, users: Sequence[Call]) -> _Function:
        if kernel.template == "loops":
            body = _render("loops", k=loop_context(kernel, self.program.batch, PARALLEL_WORK))
        elif kernel.template == "pack":
            body = _render("pack", **pack_context(kernel))
        else:
            body = _render(kernel.template, **anchor_context(kernel, self.program.batch))
        first = users[0]
        titles = [n.split("(")[-1].rstrip(")") for n in first.nodes]
        kind = "_".join(dict.fromkeys(titles)) if kernel.template == "loops" else kernel.template
        name = self._unique(
            f"{first.layer}_{kind[:40]}" if first.layer else f"{kind[:40].rstrip('_')}_kernel"
        )
        uses = {w: bool(re.search(rf"\b{w}\b", body)) for w in ("N", "threads", "random")}
        parameters = [
            f"{'' if o.written else 'const '}{C_TYPE[o.dtype]} *restrict {o.name}" for o in kernel.operands
        ]
        parameters += ["const int64_t N"] if uses["N"] else []
        parameters += ["const int threads"] if uses["threads"] else []
        parameters += ["const gc_random *random"] if uses["random"] else []
        text = _render(
            "kernel", title=f"{name}: {kernel.formula}", comment=_comment(kernel, users), name=name,
            parameters=parameters, body=body.strip("\n"),
        )  # fmt: skip
        return _Function(name, indent(text), uses["N"], uses["threads"], uses["random"])

    def _common(self, entries: list[dict[str, object]]) -> dict[str, object]:
        p = self.program
        slots = len(p.update.slots) * p.trainable_size if p.update else 0
        bounds = {a.dtype for e in p.entries for b in e.bounds for a in e.inputs if a.name == b.input}
        return {
            "name": p.name, "upper": p.name.upper(), "guard": f"{p.name.upper()}_H", "abi": ABI, "T": self.real,
            "summary": f"{', '.join(e.name for e in p.entries)}, batch up to {p.batch}, {p.dtype}",
            "batch": p.batch, "params": p.params_size, "trainable": p.trainable_size, "slots": slots,
            "states": p.states_size, "folded": p.folded_size, "arena": p.arena_bytes, "entries": entries,
            "entries_use_arrays": any(e.inputs or e.outputs for e in p.entries),
            "entries_use_batch": any(e["uses_batch"] for e in entries),
            "bound_types": [{"suffix": SUFFIX[d], "ctype": C_TYPE[d]} for d in sorted(bounds)],
            "guarded": self.nan_guard,
        }  # fmt: skip

    def _entry(self, entry: Entry) -> dict[str, object]:
        local = _Locals(self, entry)
        calls: list[dict[str, object]] = []
        for number, call in enumerate(entry.calls[: entry.commit or None]):
            calls.append(self._call(call, number, local))
        tail = self._commit(entry, local)
        arguments = [(a, False) for a in entry.inputs] + [(a, True) for a in entry.outputs]
        trains = entry.name == "train_step"
        parameters = [f"{self.program.name}_context *context"]
        uses_batch = entry.name != "fold"
        parameters += ["int64_t batch"] if uses_batch else []
        for a, written in arguments:
            pointer = f"{'' if written else 'const '}{C_TYPE[a.dtype]} *{local.arguments[a.name]}"
            parameters += [pointer, f"size_t {local.arguments[a.name]}_bytes"]
        parameters += ["double lr", "int32_t commit"] if trains else []
        text = "\n".join(str(c["text"]) for c in calls) + "\n".join(tail)
        uses_n = bool(re.search(r"\bN\b", text)) or any(
            not isinstance(a.buffer.size, int) for a, _ in arguments
        )
        lines = local.declarations(text)
        uses_n = uses_n or any(re.search(r"\bN\b", line) for line in lines)
        return {
            "name": entry.name,
            "signature": f"{self.program.name}_{entry.name}({', '.join(parameters)})",
            "doc": _ENTRY_DOCS[entry.name],
            "arguments": [
                {"comment": f"{local.arguments[a.name]}: {C_TYPE[a.dtype]} {shape_text(a.shape)}"
                            f"{', written' if w else ''}"} for a, w in arguments
            ],
            "arena": at(self.program.offsets[entry.name].get("", 0), self.program.batch),
            "uses_batch": uses_batch,
            "checks": self._checks(entry, local),
            "locals": ([] if uses_n or not uses_batch else ["(void)N;"]) + lines,
            "calls": calls,
            "tail": tail,
        }  # fmt: skip

    def _checks(self, entry: Entry, local: _Locals) -> list[str]:
        p = self.program
        size = ITEMSIZE[p.dtype]
        needed = {s for call in entry.calls for s in (b.space for b in call.buffers)}
        if entry.name == "train_step" and p.update:
            needed |= {Space.PARAMS, Space.GRADS, Space.SLOTS}
        slots = len(p.update.slots) * p.trainable_size if p.update else 0
        sizes = {Space.PARAMS: p.params_size, Space.GRADS: p.trainable_size, Space.SLOTS: slots,
                 Space.STATE: p.states_size, Space.FOLDED: p.folded_size}  # fmt: skip
        checks = [
            f'check_block(context, "{_SPACES[s]}", context->memory.{_SPACES[s]}, '
            f"context->memory.{_SPACES[s]}_bytes, {n * size})"
            for s, n in sizes.items()
            if s in needed and n
        ]
        arena = p.offsets[entry.name].get("", 0)
        if arena:
            checks.append(
                f'check_block(context, "arena", context->memory.arena, context->memory.arena_bytes, {arena})'
            )
        for a in (*entry.inputs, *entry.outputs):
            name = local.arguments[a.name]
            checks.append(
                f'check_array(context, "{name}", {name}, {name}_bytes, '
                f"sizeof *{name} * (size_t)({a.buffer.size}))"
            )
        for b in entry.bounds:
            name = local.arguments[b.input]
            argument = next(a for a in entry.inputs if a.name == b.input)
            also = b.also if b.also is not None else b.low
            checks.append(
                f'check_values_{SUFFIX[argument.dtype]}(context, "{name}", {name}, {argument.buffer.size}, '
                f"{b.low}, {b.high}, {also})"
            )
        return checks

    def _call(self, call: Call, number: int, local: _Locals) -> dict[str, object]:
        function = self.functions[call.kernel]
        arguments = [local.name(b) for b in call.buffers]
        arguments += ["N"] if function.uses_n else []
        arguments += ["threads"] if function.uses_threads else []
        arguments += ["&random"] if function.uses_random else []
        guards = []
        if self.nan_guard:
            for operand, buffer in zip(call.kernel.operands, call.buffers, strict=True):
                if operand.written and buffer.dtype == self.program.dtype:
                    guards.append(f"all_finite({local.name(buffer)}, {buffer.size})")
        return {
            "text": f"{function.name}({', '.join(arguments)});",
            "comment": "",
            "guard": " && ".join(guards),
            "number": number,
        }

    def _commit(self, entry: Entry, local: _Locals) -> list[str]:
        if entry.name != "train_step":
            return []
        lines = ["if (commit) {"]
        lines += [
            str(self._call(c, 0, local)["text"])
            for c in (entry.calls[entry.commit :] if entry.commit else [])
        ]
        lines += ["update(context, lr);"] if self.program.update else ["(void)lr;"]
        return [*lines, "context->step++;", "}"]

    def _update(self) -> str:
        assert self.optimizer is not None
        program, optimizer = self.program, self.optimizer
        ranges = []
        uses_t = False
        for r in program.update.ranges:
            rule = optimizer.rule_for(r)
            names = {sp.Symbol("w", real=True): "weights[k]", sp.Symbol("g", real=True): "grads[k]"}
            names |= {sp.Symbol(s, real=True): f"{s}[k]" for s in rule.slots}
            lines, stores = [], []
            for target, expr in rule.updates:
                lines.append(f"const {self.real} {target}_new = {_rule_text(expr, names, program.dtype)};")
                stores.append(f"{'weights' if target == 'w' else target}[k] = {target}_new;")
            scalars = []
            for scalar_name, expr in rule.scalars:
                text = _rule_text(expr, {sp.Symbol("lr", positive=True): "lr"}, "float64")
                uses_t = uses_t or bool(re.search(r"\bt\b", text))
                scalars.append(f"const {self.real} {scalar_name} = ({self.real})({text});")
            ranges.append({
                "begin": r.begin, "end": r.end, "scalars": scalars, "lines": lines + stores,
                "uses_lr": any(re.search(r"\brate\b", line) for line in lines),
                "comment": _names_text(r.names),
            })  # fmt: skip
        slots = [
            {"name": s, "offset": k * program.trainable_size} for k, s in enumerate(program.update.slots)
        ]
        rule = optimizer.rule_for(program.update.ranges[0])
        comment = [f"{target} <- {scalar.describe(expr)}" for target, expr in (*rule.scalars, *rule.updates)]
        return _render(
            "update", name=program.name, T=self.real, slots=slots, ranges=ranges, uses_t=uses_t,
            description=type(optimizer).__name__ + ", one loop over each range of the flat parameter block",
            comment=comment,
        )  # fmt: skip


def _rule_text(expr: sp.Expr, names: dict[sp.Symbol, str], dtype: str) -> str:
    table = {s: names.get(s, "rate" if s.name == "lr" else s.name) for s in expr.free_symbols}
    return scalar.to_c(expr, table, dict.fromkeys(table, dtype), dtype)


def _names_text(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"


class _Locals:
    """The variables of an entry point that point at buffers."""

    def __init__(self, emitter: _Emitter, entry: Entry):
        self.emitter = emitter
        self.offsets = emitter.program.offsets[entry.name]
        self.taken = set(emitter.taken)
        self.arguments: dict[str, str] = {}
        self.names: dict[Buffer, str] = {}
        self.lines: dict[Buffer, str] = {}
        for a in (*entry.inputs, *entry.outputs):
            self.arguments[a.name] = self._unique(a.name)
            self.names[a.buffer] = self.arguments[a.name]

    def _unique(self, base: str) -> str:
        name, number = c_name(base), 1
        while name in self.taken or f"{name}_bytes" in self.taken:
            number += 1
            name = f"{c_name(base)}_{number}"
        self.taken |= {name, f"{name}_bytes"}
        return name

    def name(self, buffer: Buffer) -> str:
        """Return the variable of a buffer, declaring it at its first use."""
        if buffer not in self.names:
            name = self._unique(buffer.name)
            ctype = C_TYPE[buffer.dtype]
            if buffer.space is Space.ARENA:
                place = f"({ctype} *)((char *)context->memory.arena + {self.offsets[buffer.name]})"
            else:
                place = f"context->memory.{_SPACES[buffer.space]} + {buffer.offset}"
                if buffer.dtype != self.emitter.program.dtype:  # an integer constant among the weights
                    place = f"({ctype} *)({place})"
            self.names[buffer] = name
            self.lines[buffer] = f"{ctype} *const {name} = {place}; /* {buffer.size} */"
        return self.names[buffer]

    def declarations(self, text: str) -> list[str]:
        """Return the declarations, and those of threads and random numbers where a call uses them."""
        lines = list(self.lines.values())
        if re.search(r"\bthreads\b", text):
            lines.append("const int threads = context->threads;")
        if re.search(r"&random\b", text):
            lines.append("const gc_random random = {context->seed, context->step};")
        return lines


_ENTRY_DOCS = {
    "predict": "Computes the outputs in inference mode.",
    "evaluate": "Computes loss and metrics in inference mode.",
    "train_step": "Forward, backward and, if `commit` is not 0, the update of parameters and running statistics.",
    "fold": "Computes what inference needs of the parameters alone; call it after they have changed.",
}


def _comment(kernel: Kernel, users: Sequence[Call]) -> list[str]:
    lines = []
    for call in users[:4]:
        lines.append(f"from {', '.join(call.nodes[:6])}{' ...' if len(call.nodes) > 6 else ''}, "
                     f"at {', '.join(call.sources[:3])}")  # fmt: skip
    if len(users) > 4:
        lines.append(f"and {len(users) - 4} more calls")
    for operand in kernel.operands:
        lines.append(f"{operand.name}: {operand.dtype} {shape_text(operand.shape)}"
                     f"{' (written)' if operand.written else ''}")  # fmt: skip
    lines.append(f"{_amount(kernel.flops)} FLOP, {_amount(kernel.bytes)} bytes")
    return [line.replace("*/", "* /") for line in lines]


def _amount(size: Size) -> str:
    return extent(size)


def _cdef(header: str) -> str:
    """Return the declarations of a header without preprocessor lines and comments, for cffi."""
    text = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    text = re.sub(r"#ifdef __cplusplus.*?#endif", "", text, flags=re.DOTALL)
    lines = [line for line in text.split("\n") if not line.startswith("#")]
    return "\n".join(line for line in lines if line.strip()) + "\n"


def emit_c(program: Program, optimizer: Optimizer | None = None, *, nan_guard: bool = False) -> Emitted:
    """Return the C source, the header and the cffi declarations of a program."""
    return _Emitter(program, optimizer, nan_guard).emit()
