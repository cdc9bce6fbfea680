"""The CUDA emitter: the same Program as in C becomes kernels for a device, and host code that launches them.

What changes from call to call (batch, learning rate, step) lies in device memory, so that the launches of an entry
point are captured once and replayed. Entry points take the caller's arrays, as in C; the arena has room for copies of
them behind what the plan places there, and behind these for the sums of products whose depth is divided.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from graphc.emit.c import Emitted, Emitter, Exported, Function, cdef_of, render_c
from graphc.emit.comments import call_text, comment_text, kernel_comment
from graphc.emit.grid import THREADS, Launch
from graphc.emit.locals import Locals
from graphc.emit.movers import helper_of
from graphc.emit.naming import kernel_name
from graphc.emit.poison import poison_on_device
from graphc.emit.prelude import helpers_for
from graphc.emit.products import shares_context, workspace_bytes
from graphc.emit.simt import kernel_context
from graphc.emit.staging import (
    ALIGN,
    NAMES,
    result_bytes,
    results_context,
    rounded,
    staged_bytes,
    staging_context,
)
from graphc.emit.templates import as_it_stands, render
from graphc.emit.text import C_TYPE, SUFFIXED, indent, modular, signature
from graphc.emit.update import STEP_NUMBER, scalar_lines, update_context
from graphc.emit.weights import DEVICE_CONTEXT_BYTES
from graphc.memory import ArenaPlan
from graphc.optim import Optimizer
from graphc.program.ir import Call, Entry, Kernel, Program
from graphc.types import ITEMSIZE, Precision, at

_BLOCK = THREADS  # of the update
# Functions of the host code; ranges of parameters are updated by kernels called update_1 and so on.
_TAKEN = {"launch_update", "graph", "shares", "check_finite", "note_laps", *NAMES}
_TAKEN |= {f"update_{k}" for k in range(1, 100)}
_PUBLIC = ("allocate", "close", "device_error", "device_memory", "release", "unstage")
_HEAD = {
    "N": "const {index} N = ({index})run->batch;",
    "random": "const gc_random numbers = {run->seed, run->step}, *const random = &numbers;",
    "lr": "const double lr = run->lr;",
    STEP_NUMBER: f"const double {STEP_NUMBER} = (double)(run->step + 1);",
}
"""What a kernel declares of a call, by the word in its text that asks for it."""


def _render(template: str, **context: object) -> str:
    return render("cuda", f"{template}.cu.j2", **context)


@dataclass(frozen=True)
class _Copy:
    """An argument's copy in device memory: its offset in the arena."""

    variable: str
    bytes: str
    ctype: str
    offset: int
    written: bool


@dataclass(frozen=True)
class _Part:
    """A function that does a kernel's work, or the first or the second half of it, and which operands it takes."""

    name: str
    launch: Launch
    operands: tuple[int, ...]
    more: tuple[str, ...]  # arguments beside operands


class _CudaEmitter(Emitter):
    """Emits kernels and host code; what an entry point checks and declares is that of C."""

    def __init__(
        self,
        program: Program,
        optimizer: Optimizer | None,
        graph: str,
        precision: Precision,
        nan_guard: bool,
        poison: Mapping[str, ArenaPlan],
        profile: bool,
    ):
        # Kernels run one after the other: they share one workspace.
        self.workspaces = {
            entry.name: max(
                (workspace_bytes(c.kernel, program.batch, precision) for c in entry.calls), default=0
            )
            for entry in program.entries
        }
        whole = _with_copies(program, self.workspaces)
        super().__init__(whole, optimizer, nan_guard, poison, profile, Exported(graph))
        # Calls that are watched are launched one by one: the host looks in between, and events within a captured
        # graph tell no times.
        self.watched = nan_guard or profile
        self.planned, self.precision = program, precision
        self.parts: dict[Kernel, list[_Part]] = {}

    context_bytes = DEVICE_CONTEXT_BYTES

    def reserved(self, program: Program) -> set[str]:
        """Return what neither arguments nor kernels may be called."""
        entries = [f"{of}{entry.name}" for entry in program.entries for of in ("stage_", "staged_")]
        launches = {f"launch_{entry.name}" for entry in program.entries}
        return _TAKEN | launches | {f"{program.name}_{name}" for name in (*_PUBLIC, *entries)}

    def helper(self, kernel: Kernel) -> str:
        """Return the function of the runtime that does a kernel's work, if there is one."""
        return helper_of(kernel) if helper_of(kernel) in ("memset", "memcpy") else ""

    def emit(self) -> Emitted:
        """Return header and source."""
        calls: dict[Kernel, list[tuple[Entry, Call]]] = {}
        for entry in self.program.entries:
            for call in entry.calls:
                if not self.helper(call.kernel):
                    calls.setdefault(call.kernel, []).append((entry, call))
        for kernel, users in calls.items():
            entries = list(dict.fromkeys(e.name for e, _ in users))
            self.functions[kernel] = self._function(kernel, [c for _, c in users], entries)
        entries_text = [self._entry(e) for e in self.program.entries]
        update, spec = "", self.program.update
        if spec is not None and spec.ranges:
            assert self.optimizer is not None
            context = update_context(self.program, spec, self.optimizer)
            update = _render("update", block=_BLOCK, grid=_grid, **context)
        common = {**self._common(entries_text), "stack": 0, "device": True, "block": _BLOCK}
        common |= {"staged_bytes": staged_bytes(self.program), "result_bytes": result_bytes(self.program)}
        common |= {"watched": self.watched, "checks": ""}
        if self.watched:
            common["checks"] = _render("checks", **common).strip("\n")
        if self.graph:
            common["weights_functions"] = render_c("weights", **common)
        entry_texts = indent(_render("entries", update=update, **common)).strip("\n")
        kernels = [f.text for f in self.functions.values()]
        body = "\n".join([*kernels, entry_texts])
        helpers = [_on_device(h) for h in helpers_for(body, self.program.isa)]
        reductions = sorted(
            set(re.findall(r"\bgc_(warp|block)_(sum|max|min|argmax|argmin)_([a-z0-9]+)\(", body))
        )
        tile = (
            indent(_render("tile", shares="gc_add_shares<" in body, precision=self.precision)).strip("\n")
            if "gc_product<" in body
            else ""
        )
        summed = indent(
            _render("reductions", reductions=reductions, block=THREADS, types=SUFFIXED, modular=modular)
        ).strip("\n")
        prelude = _render(
            "prelude", tile=tile, precision=self.precision, helpers=[h.strip("\n") for h in helpers],
            reductions=summed, **common,
        )  # fmt: skip
        name = self.program.name
        texts = {"prelude": prelude, "kernels": kernels, "entries": entry_texts}
        source = _render("module", **{**common, **texts})
        header = indent(render_c("module.h.j2", **common))
        names = {
            e.name: [self.helper(c.kernel) or self.functions[c.kernel].name for c in e.calls]
            for e in self.program.entries
        }
        sources = {f"{name}.h": header, f"{name}.cu": source}
        return Emitted(
            {file: text.rstrip("\n") + "\n" for file, text in sources.items()},
            cdef_of(header),
            names,
            profiled=self.laps > 0,
            device=True,
            arena_bytes=self.program.arena_bytes,
        )

    def _function(self, kernel: Kernel, users: Sequence[Call], entries: Sequence[str]) -> Function:
        # Products read 16 bytes together: every array begins at a multiple of that.
        assert all(b.offset * ITEMSIZE[b.dtype] % 16 == 0 for call in users for b in call.buffers)
        first = self.names.fresh(kernel_name(kernel, users[0]))
        made = [(first, *kernel_context(kernel, self.program.batch, self.precision))]
        if made[0][3].workspace:
            made.append((f"{first}_shares", *shares_context(kernel, self.program.batch, self.precision)))
            self.names.taken.add(made[1][0])
        comment, texts = kernel_comment(kernel, users, entries), []
        for name, template, context, launch in made:
            body = "\n".join([*scalar_lines(kernel), _render(template, **context).strip("\n")])
            text, part = _part(kernel, name, launch, comment, body)
            texts.append(text)
            self.parts.setdefault(kernel, []).append(part)
            comment = [f"The second part of {first}: sums of the depth's shares become results"]
        return Function(first, "\n\n".join(texts), "", False, False, ())

    def _call(self, entry: Entry, number: int, local: Locals) -> dict[str, object]:
        call = entry.calls[number]
        arguments = [local.name(b) for b in call.buffers]
        helper = self.helper(call.kernel)
        if helper:
            most = at(call.buffers[-1].size, self.program.batch) * ITEMSIZE[call.buffers[-1].dtype]
            given = ["0"] if helper == "memset" else [arguments.pop(0)]
            kind = [] if helper == "memset" else ["cudaMemcpyDeviceToDevice"]
            parameters = [*arguments, *given, str(most), *kind, "stream"]
            text = signature(f"cuda{helper.capitalize()}Async", parameters) + ";"
        else:
            text = "\n".join(_launch(part, arguments) for part in self.parts[call.kernel])
        checks = [
            f"error = check_finite(context, {number}, {local.name(buffer)}, {buffer.size});"
            for operand, buffer in zip(call.kernel.operands, call.buffers, strict=True)
            if operand.written and self._is_guarded(entry, number, buffer, local)
        ]
        guard = "\n".join(f"{check}\nif (error) return error;" for check in checks)
        return {"text": text, "comment": comment_text(call_text(call, 4)), "guard": guard, "number": number}

    def _entry(self, entry: Entry) -> dict[str, object]:
        made: dict[str, Any] = super()._entry(entry)
        text = "\n".join([*(c["text"] for c in made["calls"]), *made["tail"]])
        return {
            **made, "copies": [vars(copy) for copy in _copies(self, entry)],
            "run": rounded(self.planned.offsets[entry.name].get("", 0)),
            "uses_run": re.search(r"\brun\b", text) is not None,
            "shares": _shares(self, entry),
            "staging": staging_context(self, entry),
            "results": results_context(self, entry.outputs if entry.name == "train_step" else ()),
            "uses_arena": any("(arena +" in line for line in made["locals"]),
            "uses_n_in_checks": any(re.search(r"\bN\b", check) for check in made["checks"]),
            "steps": entry.name == "train_step",
            "guards_use_n": any(re.search(r"\bN\b", c["guard"]) for c in made["calls"]),
        }  # fmt: skip

    def _declared(self, local: Locals, text: str) -> list[str]:
        """Return the variables of buffers: kernels find the rest in the run."""
        del text
        return list(local.lines.values())

    def _poison(self, place: int, size: int | str) -> str:
        return poison_on_device(place, int(size))

    def _poison_arena(self, entry: Entry) -> list[str]:
        """Return what fills the arena, but for the copies of arguments."""
        lines = [self._poison(0, self.planned.offsets[entry.name][""])]
        return [*lines, *self._poison_shares(entry)]

    def _poison_shares(self, entry: Entry) -> list[str]:
        shares = _shares(self, entry)
        if shares is None:
            return []
        return [self._poison(int(str(shares["offset"])), self.workspaces[entry.name]) + " /* shares */"]

    def _dead(self, entry: Entry, local: Locals) -> dict[int, list[str]]:
        found = super()._dead(entry, local)
        for number, call in enumerate(entry.calls if found else ()):
            if any(part.launch.workspace for part in self.parts.get(call.kernel, ())):
                found.setdefault(number, []).extend(self._poison_shares(entry))
        return found

    def _commit(self, entry: Entry, local: Locals, dead: Mapping[int, list[str]]) -> list[str]:
        if entry.name != "train_step":
            return []
        lines = []
        for number, _ in enumerate(entry.calls[entry.commit :] if entry.commit else (), entry.commit):
            made = self._call(entry, number, local)
            lines += [f"/* {made['comment']} */", str(made["text"]), *dead.get(number, [])]
        spec = self.program.update
        if spec is not None and spec.ranges:
            lines.append("launch_update(context, stream, run);")
        return ["if (commit) {", *lines, "}"] if lines else ["(void)commit;"]


def _part(kernel: Kernel, name: str, launch: Launch, comment: list[str], body: str) -> tuple[str, _Part]:
    """Return the text of one of a kernel's functions, and what it is called with."""
    head = [
        line.replace("{index}", launch.index)
        for word, line in _HEAD.items()
        if re.search(rf"\b{word}\b", body)
    ]
    operands = [(k, o) for k, o in enumerate(kernel.operands) if re.search(rf"\b{o.name}\b", body)]
    parameters = [
        f"{'' if o.written else 'const '}{C_TYPE[o.dtype]} *__restrict__ {o.name}" for _, o in operands
    ]
    more = [("shares", f"{C_TYPE[kernel.dtype]} *__restrict__ shares")] * bool(launch.workspace)
    more += [("run", "const gc_run *__restrict__ run")] * bool(head)
    # Told of one block at the least, ptxas does not put a register into memory to have more blocks at a time.
    bounds = f"__launch_bounds__({launch.threads}, {launch.resident})"
    made = _render(
        "kernel", title=name, comment=[*comment, f"{launch.mapping}; a block has {launch.threads} threads"],
        body="\n".join([*head, body]),
        signature=signature(
            f"static __global__ void {bounds} {name}", parameters + [text for _, text in more]
        ),
    )  # fmt: skip
    return indent(made), _Part(name, launch, tuple(k for k, _ in operands), tuple(word for word, _ in more))


def _launch(part: _Part, arguments: Sequence[str]) -> str:
    given = [part.name, part.launch.grid, str(part.launch.threads), "stream"]
    given += [*(arguments[k] for k in part.operands), *part.more]
    return signature("GC_LAUNCH", given) + ";"


def _grid(count: int) -> int:
    """Return how many blocks go over so many elements, one a thread."""
    return max(1, min(-(-count // _BLOCK), 65535))


def _copies(emitter: _CudaEmitter, entry: Entry) -> list[_Copy]:
    """Return where the arguments' copies lie: behind what the plan places, and what changes from call to call."""
    offset = rounded(emitter.planned.offsets[entry.name].get("", 0)) + ALIGN
    found = []
    for written, arguments in ((False, entry.inputs), (True, entry.outputs)):
        for a in arguments:
            variable = emitter.arguments[a.name]
            found.append(_Copy(variable, f"{variable}_bytes", C_TYPE[a.dtype], offset, written))
            offset += rounded(at(a.buffer.size, emitter.program.batch) * ITEMSIZE[a.dtype])
    return found


def _shares(emitter: _CudaEmitter, entry: Entry) -> dict[str, object] | None:
    """Return type and place of the workspace, at the end of the arena, if there is one."""
    size = emitter.workspaces[entry.name]
    if not size:
        return None
    return {
        "ctype": C_TYPE[emitter.program.dtype],
        "offset": emitter.program.offsets[entry.name][""] - rounded(size),
    }


def _with_copies(program: Program, workspaces: Mapping[str, int]) -> Program:
    """Return the program with an arena that has room for the run, the arguments and the workspace of every entry."""
    offsets = {}
    for entry in program.entries:
        planned = program.offsets[entry.name]
        size = rounded(planned.get("", 0)) + ALIGN
        for a in (*entry.inputs, *entry.outputs):
            size += rounded(at(a.buffer.size, program.batch) * ITEMSIZE[a.dtype])
        offsets[entry.name] = {**planned, "": size + rounded(workspaces[entry.name])}
    return replace(program, offsets=offsets, arena_bytes=max(o[""] for o in offsets.values()))


def _on_device(helper: str) -> str:
    """Return a helper function as one of the device's."""
    text = re.sub(r"\bstatic (inline|GC_INLINE)\b", "static __device__ __forceinline__", helper)
    return "" if "#define GC_INLINE" in text else text


def emit_cuda(
    program: Program,
    optimizer: Optimizer | None = None,
    *,
    graph: str = "",
    precision: Precision = "fp32",
    nan_guard: bool = False,
    poison: Mapping[str, ArenaPlan] | None = None,
    profile: bool = False,
) -> Emitted:
    """Return the CUDA source, the header and the cffi declarations of a program.

    With ``nan_guard`` an entry point stops after the call that wrote a NaN or Inf. ``poison`` has the plans of the
    entry points that fill with NaNs what does not live in the arena. ``profile`` notes how long every call takes on
    the device.

    Numerics: products round their operands to ``precision`` and sum in float32.
    """
    return _CudaEmitter(program, optimizer, graph, precision, nan_guard, poison or {}, profile).emit()


def emulator() -> dict[str, str]:
    """Return the emulator's header by its name, which lies beside a source that a C++ compiler is to compile."""
    return {"gc_simt.h": as_it_stands("cuda", "gc_simt.h")}
