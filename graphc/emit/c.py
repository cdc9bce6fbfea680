"""The C emitter: a Program becomes a header and a source that a person can read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from graphc.emit import units
from graphc.emit.comments import call_text, comment_text, kernel_comment
from graphc.emit.kernels import anchor_context, loop_context, pack_context
from graphc.emit.levels import Level, levels_context
from graphc.emit.locals import SPACES, Identifiers, Locals
from graphc.emit.movers import helper_call, helper_of
from graphc.emit.naming import kernel_name
from graphc.emit.poison import poison, poison_dead
from graphc.emit.prelude import helpers_for
from graphc.emit.stack import stack_bound
from graphc.emit.templates import render
from graphc.emit.text import C_TYPE, SUFFIX, indent, signature
from graphc.emit.threads import parallel_from, threads_text
from graphc.emit.update import STEP_NUMBER, scalar_lines, update_context
from graphc.emit.weights import CONTEXT_BYTES, weights_context
from graphc.lower.names import words
from graphc.memory import ArenaPlan
from graphc.optim import Optimizer
from graphc.program.ir import Argument, Buffer, Call, Entry, Kernel, Program, Space
from graphc.types import at, shape_text

ABI = 1
_BLOCK_SIZES = {
    Space.PARAMS: "PARAMS",
    Space.GRADS: "GRADS",
    Space.SLOTS: "SLOTS",
    Space.STATE: "STATE",
    Space.FOLDED: "FOLDED",
    Space.FROZEN: "FROZEN",
}
_ENTRY_DOCS = {
    "predict": "Computes the outputs in inference mode.",
    "evaluate": "Computes loss and metrics in inference mode.",
    "train_step": "Forward, backward and, if `commit` is not 0, the update of parameters and statistics.",
    "fold": "Computes what inference needs of the parameters alone; call it after they have changed.",
    "freeze": "Computes what is needed of the parameters that are not trained alone; call it when these are set.",
}
_UPDATES_DOC = (
    "Forward and backward; parameters are updated as gradients are computed: `commit` must not be 0."
)
_STEP_ARGUMENTS = {"lr": "lr", STEP_NUMBER: "(double)(context->step + 1)"}
# Functions and types of the module, without its prefix.
_PUBLIC = (
    "abi", "context", "context_bytes", "evaluate", "fault", "fold", "freeze", "get_step", "init", "laps", "load",
    "memory", "message", "predict", "set_seed", "set_step", "set_threads", "store", "train_step",
)  # fmt: skip
# Variables and functions of the entry points' template.
_LOCALS = words(
    "add_words all_finite arena batch check_array check_batch check_block check_commit check_values_b check_values_i "
    "check_values_l commit context context_bytes error folded frozen grads isfinite k lr memory memset params "
    "random refuse_weights seed slots snprintf state step update weights_expected weights_header weights_sums"
)


def render_c(template: str, **context: object) -> str:
    """Return a template's text."""
    return render("c", template if "." in template else f"{template}.c.j2", **context)


def _pragma(wanted: bool, loops: int) -> str:
    """Return the line before so many nested loops that divides their work over threads, where that is wanted."""
    if not wanted:
        return ""
    return f"GC_PARALLEL_FOR{f'_{loops}' if loops > 1 else ''}(threads)\n"


@dataclass(frozen=True)
class Emitted:
    """The texts: sources by file name, and the declarations for cffi."""

    sources: dict[str, str]
    cdef: str
    kernel_names: dict[str, list[str]]  # entry -> the function of each call
    profiled: bool = False
    stack_bytes: int = 0  # that a call takes at most
    device: bool = False  # its memory is a device's
    arena_bytes: int = 0  # where it is more than the plans say


@dataclass(frozen=True)
class Function:
    """A kernel's function: its texts, and what it is called with beside its buffers."""

    name: str
    text: str
    prototype: str
    uses_n: bool
    uses_threads: bool
    more: tuple[str, ...]  # arguments beside buffers, batch and threads


@dataclass(frozen=True)
class Exported:
    """What only the text of an exported module has: the digest of its graph, which its weights file must have.

    ``single_file`` leaves the kernels of a large net in one file. ``public`` names the module whose functions choose
    this one's. ``least_stack`` are bytes of stack that the header states at the least, ``threads`` those that a
    context starts with.
    """

    graph: str = ""
    single_file: bool = False
    public: str = ""
    least_stack: int = 0
    threads: int = 1


class Emitter:
    """Prints the kernels and the entry points of one program."""

    context_bytes = CONTEXT_BYTES

    def __init__(
        self,
        program: Program,
        optimizer: Optimizer | None,
        nan_guard: bool,
        poison: Mapping[str, ArenaPlan],
        profile: bool,
        exported: Exported,
    ):
        self.program = program
        self.exported = exported
        self.graph = exported.graph
        longest = max(len(e.calls) for e in program.entries)
        self.laps = longest + 1 if profile else 0  # one for the update
        self.optimizer = optimizer
        self.nan_guard = nan_guard
        self.poison = poison
        self.upper = program.name.upper()
        self.real = C_TYPE[program.dtype]
        self.functions: dict[Kernel, Function] = {}
        names = Identifiers({*_LOCALS, *(f"{program.name}_{p}" for p in _PUBLIC), *self.reserved(program)})
        # An argument is called the same in every entry point, whatever the kernels are called.
        arguments = {a.name: a for e in program.entries for a in (*e.inputs, *e.outputs)}
        self.arguments = {name: names.fresh(name, with_size=True) for name in arguments}
        self.names = names
        self.split = False

    def reserved(self, program: Program) -> set[str]:
        """Return what no argument may be called beside the names of C's templates."""
        del program
        return set()

    def emit(self) -> Emitted:
        """Return the texts."""
        calls: dict[Kernel, list[tuple[Entry, Call]]] = {}
        for entry in self.program.entries:
            for call in entry.calls:
                if not helper_of(call.kernel):
                    calls.setdefault(call.kernel, []).append((entry, call))
        anchors = sum(kernel.template != "loops" for kernel in calls)
        large = len(calls) >= units.SPLIT_FROM or anchors >= units.SPLIT_FROM_ANCHORS
        self.split = large and not self.exported.single_file
        for kernel, users in calls.items():
            entries = list(dict.fromkeys(e.name for e, _ in users))
            self.functions[kernel] = self._function(kernel, [c for _, c in users], entries)
        entries_text = [self._entry(e) for e in self.program.entries]
        update = ""
        spec = self.program.update
        if spec is not None and spec.ranges:
            assert self.optimizer is not None
            update = render_c(
                "update", parallel=_pragma, **update_context(self.program, spec, self.optimizer)
            )
        common = self._common(entries_text)
        body = indent(render_c("entries", update=update, **common))
        kernels = [f.text for f in self.functions.values()]
        helpers = helpers_for("\n".join([*kernels, body]), self.program.isa)
        stack = max(stack_bound(kernels, helpers, self.program.isa), self.exported.least_stack)
        common["stack"] = stack
        prelude = render_c(
            "prelude",
            helpers=[h.strip("\n") for h in helpers],
            kernels="\n".join([*kernels, body]),
            laps=self.laps,
            exported=bool(self.graph),
        )
        name = self.program.name
        header = indent(render_c("module.h.j2", **common))
        sources = self._units(prelude, kernels, {**common, "entries": body.strip("\n")})
        kernel_names = {
            e.name: [helper_of(c.kernel) or self.functions[c.kernel].name for c in e.calls]
            for e in self.program.entries
        }
        return Emitted(
            {file: text.rstrip("\n") + "\n" for file, text in {f"{name}.h": header, **sources}.items()},
            cdef_of(header),
            kernel_names,
            self.laps > 0,
            stack,
        )

    def _units(self, prelude: str, kernels: list[str], common: dict[str, object]) -> dict[str, str]:
        """Return the sources: one file, or the entry points and the kernels in files of their own."""
        name = self.program.name
        if not self.split:
            opening = f'#include "{name}.h"\n\n{prelude}'
            return {f"{name}.c": render_c("module", opening=opening, kernels=kernels, **common)}
        parts = units.divide(kernels)
        prototypes = [f.prototype for f in self.functions.values()]
        opening = f'#include "{name}_kernels.h"'
        sources = {
            f"{name}.c": render_c("module", opening=opening, kernels=[], **common),
            f"{name}_kernels.h": render_c("kernels.h.j2", prelude=prelude, prototypes=prototypes, **common),
        }
        for number, part in enumerate(parts, 1):
            text = render_c("unit", name=name, number=number, count=len(parts), kernels=part)
            sources[f"{name}_kernels_{number}.c"] = text
        return sources

    def _parallel_from(self, kernel: Kernel) -> int | None:
        return parallel_from(kernel, self.program.batch, self.program.fork_ns)

    def _function(self, kernel: Kernel, users: Sequence[Call], entries: Sequence[str]) -> Function:
        parallel = partial(_pragma, self._parallel_from(kernel) is not None)
        if kernel.template == "loops":
            body = render_c("loops", parallel=parallel, k=loop_context(kernel, self.program.batch))
        elif kernel.template == "pack":
            body = render_c("pack", parallel=parallel, **pack_context(kernel))
        else:
            body = render_c(kernel.template, parallel=parallel, **anchor_context(kernel, self.program.batch))
        name = self.names.fresh(kernel_name(kernel, users[0]))
        linkage = "GC_KERNEL" if self.split else "static"
        if self.split:  # visible to the linker, hence told apart from those of other modules
            name = f"{self.program.name}__{name}"
        uses = {w: bool(re.search(rf"\b{w}\b", body)) for w in ("N", "threads", "random")}
        parameters = [
            f"{'' if o.written else 'const '}{C_TYPE[o.dtype]} *restrict {o.name}" for o in kernel.operands
        ]
        parameters += ["const int64_t N"] if uses["N"] else []
        parameters += ["const int threads"] if uses["threads"] else []
        parameters += ["const gc_random *random"] if uses["random"] else []
        scalars = scalar_lines(kernel)
        steps = [w for w in ("lr", STEP_NUMBER) if any(re.search(rf"\b{w}\b", line) for line in scalars)]
        parameters += [f"const double {w}" for w in steps]
        body = "\n".join([*scalars, body.strip("\n")])
        more = (*(["&random"] if uses["random"] else []), *(_STEP_ARGUMENTS[w] for w in steps))
        head = signature(f"{linkage} void {name}", parameters)
        # Names, and what is const for the function alone, stand in the definition.
        types = [re.sub(r"^const (?=\w+ \w+$)|(?<=\*)restrict \w+$| \w+$", "", q) for q in parameters]
        prototype = signature(f"{linkage} void {name}", types)
        comment = kernel_comment(kernel, users, entries)
        text = render_c("kernel", title=name, comment=comment, signature=head, body=body.strip("\n"))
        return Function(name, indent(text), indent(prototype), uses["N"], uses["threads"], more)

    def _common(self, entries: list[dict[str, object]]) -> dict[str, object]:
        p = self.program
        bounds = {a.dtype for e in p.entries for b in e.bounds for a in e.inputs if a.name == b.input}
        return {
            "name": p.name, "upper": self.upper, "guard": f"{self.upper}_H", "abi": ABI, "T": self.real,
            "summary": f"{', '.join(e.name for e in p.entries)}; batch up to {p.batch}, {p.dtype}",
            "batch": p.batch, "params": p.params_size, "trainable": p.trainable_size, "grads": p.grads_size,
            "slots": p.slots_size, "uses_up": p.uses_up,
            "states": p.states_size, "folded": p.folded_size, "frozen": p.frozen_size, "arena": p.arena_bytes,
            "entries": entries,
            "entries_use_arrays": any(e.inputs or e.outputs for e in p.entries),
            "entries_use_batch": any(e["uses_batch"] for e in entries),
            "entries_use_blocks": any(e["uses_blocks"] for e in entries),
            "bound_types": [{"suffix": SUFFIX[d], "ctype": C_TYPE[d]} for d in sorted(bounds)],
            "guarded": self.nan_guard,
            "public": self.exported.public,
            "threads": self.exported.threads,
            "device": False,
            "laps": self.laps,
            "weights": weights_context(p, self.graph, self.context_bytes) if self.graph else None,
            "inference": bool(self.graph) and p.params_size == 0,
        }  # fmt: skip

    def _entry(self, entry: Entry) -> dict[str, object]:
        local = Locals(self.program, entry, self.arguments, self.names.taken)
        kernels = entry.calls[: entry.commit or None]
        calls = [self._call(entry, number, local) for number in range(len(kernels))]
        first = self.program.entries[0]
        for made, call, known in zip(calls, kernels, first.calls if entry is not first else (), strict=False):
            if (call.kernel, call.nodes, call.sources) != (known.kernel, known.nodes, known.sources):
                break
            # The first entry point begins with the same kernels, and tells what they are.
            made["comment"] = f"as in {first.name}" if made is calls[0] else ""
        dead = self._dead(entry, local)
        for number, made in enumerate(calls):
            made["dead"] = dead.get(number, [])
        tail = self._commit(entry, local, dead)
        arguments = [(a, False) for a in entry.inputs] + [(a, True) for a in entry.outputs]
        uses_batch = entry.name not in ("fold", "freeze")
        parameters = [f"{self.program.name}_context *context"]
        parameters += ["int64_t batch"] if uses_batch else []
        for a, written in arguments:
            pointer = f"{'' if written else 'const '}{C_TYPE[a.dtype]} *{self.arguments[a.name]}"
            parameters += [pointer, f"size_t {self.arguments[a.name]}_bytes"]
        parameters += ["double lr", "int32_t commit"] if entry.name == "train_step" else []
        block_checks = self._block_checks(entry)
        checks = self.argument_checks(entry, (*entry.inputs, *entry.outputs))
        checks += (
            ["check_commit(context, commit)"] if entry.name == "train_step" and self.program.uses_up else []
        )
        text = "\n".join([*(str(c["text"]) + str(c["guard"]) for c in calls), *tail])
        lines = self._declared(local, text)
        return {
            "name": entry.name,
            "signature": signature(f"int {self.program.name}_{entry.name}", parameters),
            "doc": self._entry_doc(entry),
            "arguments": [
                {"comment": f"{self.arguments[a.name]}: {C_TYPE[a.dtype]} {shape_text(a.shape)}"
                            f"{', written' if w else ''}"} for a, w in arguments
            ],
            "arena": at(self.program.offsets[entry.name].get("", 0), self.program.batch),
            "uses_batch": uses_batch,
            "uses_blocks": bool(block_checks),
            "uses_memory": bool(block_checks) or any("memory->" in line for line in lines),
            "uses_n": uses_batch and re.search(r"\bN\b", "\n".join([text, *lines, *checks])) is not None,
            "checks": block_checks + checks,
            "locals": lines,
            "poison": self._poison_arena(entry) if dead else [],
            "calls": calls,
            "tail": tail,
        }  # fmt: skip

    def _declared(self, local: Locals, text: str) -> list[str]:
        """Return an entry point's variables: of buffers, and of threads and random numbers where a call uses them."""
        lines = list(local.lines.values())
        if any("(arena + " in line for line in lines):
            lines.insert(0, "char *const arena = memory->arena;")
        if re.search(r"\bthreads\b", text):
            lines.append("const int threads = context->threads;")
        if re.search(r"&random\b", text):
            lines.append("const gc_random random = {context->seed, context->step};")
        return lines

    def _entry_doc(self, entry: Entry) -> str:
        if entry.name == "train_step" and self.program.uses_up:
            return _UPDATES_DOC
        return _ENTRY_DOCS.get(entry.name, "Computes one variant of a kernel, to be measured.")

    def _block_checks(self, entry: Entry) -> list[str]:
        """Return the checks of the module's memory that an entry point needs."""
        p = self.program
        needed = {s for call in entry.calls for s in (b.space for b in call.buffers)}
        if entry.name == "train_step" and p.update:
            needed |= {Space.PARAMS, Space.GRADS, Space.SLOTS}
        sizes = {Space.PARAMS: p.params_size, Space.GRADS: p.grads_size, Space.SLOTS: p.slots_size,
                 Space.STATE: p.states_size, Space.FOLDED: p.folded_size, Space.FROZEN: p.frozen_size}  # fmt: skip
        checks = [
            (SPACES[s], f"sizeof({self.real}) * {self.upper}_{_BLOCK_SIZES[s]}")
            for s, n in sizes.items()
            if s in needed and n
        ]
        if p.offsets[entry.name].get("", 0):
            checks.append(("arena", f"{self.upper}_ARENA_{entry.name.upper()}_BYTES"))
        return [f'check_block(context, "{b}", memory->{b}, memory->{b}_bytes, {size})' for b, size in checks]

    def argument_checks(self, entry: Entry, arguments: Sequence[Argument]) -> list[str]:
        """Return the checks of some of an entry point's arguments, its inputs among them: sizes, then values."""
        checks = []
        for a in arguments:
            name = self.arguments[a.name]
            checks.append(f'check_array(context, "{name}", {name}, {name}_bytes, {self.size_text(a)})')
        for b in entry.bounds:
            name = self.arguments[b.input]
            argument = next(a for a in entry.inputs if a.name == b.input)
            also = b.also if b.also is not None else b.low
            checks.append(
                f'check_values_{SUFFIX[argument.dtype]}(context, "{name}", {name}, {argument.buffer.size}, '
                f"{b.low}, {b.high}, {also})"
            )
        return checks

    def size_text(self, argument: Argument) -> str:
        """Return the bytes of an argument at the batch N."""
        size = argument.buffer.size
        return f"sizeof *{self.arguments[argument.name]} * {size if isinstance(size, int) else f'(size_t)({size})'}"

    def _dead(self, entry: Entry, local: Locals) -> dict[int, list[str]]:
        """Return by the number of a call what poisons the buffers that die with it; nothing without poison."""
        if entry.name not in self.poison:
            return {}
        buffers = {b for call in entry.calls for b in call.buffers if b.space is Space.ARENA}
        names = {b.name: local.name(b) for b in sorted(buffers, key=lambda b: b.name)}
        return poison_dead(self.poison[entry.name], local.offsets, names, self._poison)

    def _poison(self, place: int, size: int | str) -> str:
        return poison(place, size, self.program.dtype)

    def _poison_arena(self, entry: Entry) -> list[str]:
        """Return what fills the whole arena, before the first kernel."""
        del entry
        return [self._poison(0, "memory->arena_bytes")]

    def _call(self, entry: Entry, number: int, local: Locals) -> dict[str, object]:
        call = entry.calls[number]
        arguments = [local.name(b) for b in call.buffers]
        if helper_of(call.kernel):
            text = helper_call(call, threads_text(self._parallel_from(call.kernel)), *arguments)
        else:
            function = self.functions[call.kernel]
            arguments += ["N"] if function.uses_n else []
            arguments += [threads_text(self._parallel_from(call.kernel))] if function.uses_threads else []
            arguments += function.more
            text = signature(function.name, arguments) + ";"
        guards = [
            f"all_finite({local.name(buffer)}, {buffer.size})"
            for operand, buffer in zip(call.kernel.operands, call.buffers, strict=True)
            if operand.written and self._is_guarded(entry, number, buffer, local)
        ]
        return {
            "text": text,
            "comment": comment_text(call_text(call, 4)),
            "guard": " && ".join(guards),
            "number": number,
        }

    def _is_guarded(self, entry: Entry, number: int, buffer: Buffer, local: Locals) -> bool:
        """Whether what a call leaves in a buffer must be finite.

        Not in a workspace, of which a kernel may leave some unwritten, and not in a concatenation of which the next
        call writes another part: what was there before is no value.
        """
        if not self.nan_guard or buffer.dtype != self.program.dtype or buffer in local.workspaces:
            return False
        later = next((call for call in entry.calls[number + 1 :] if buffer in call.buffers), None)
        return later is None or later.reads(buffer)

    def _commit(self, entry: Entry, local: Locals, dead: Mapping[int, list[str]]) -> list[str]:
        if entry.name != "train_step":
            return []
        lines = ["if (commit) {"]
        for number, call in enumerate(entry.calls[entry.commit :] if entry.commit else (), entry.commit):
            made = self._call(entry, number, local)
            if helper_of(call.kernel) != "memcpy":  # a running statistic: its name says what it is
                lines.append(f"/* {made['comment']} */")
            lines += [str(made["text"]), *dead.get(number, [])]
        flat = self.program.update is not None and self.program.update.ranges
        lines += ["update(context, lr);"] if flat else ["(void)lr;"]
        return [*lines, "context->step++;", "}"]


def cdef_of(header: str) -> str:
    """Return the declarations of a header without preprocessor lines and comments, for cffi."""
    text = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    text = re.sub(r"#ifdef __cplusplus.*?#endif", "", text, flags=re.DOTALL)
    lines = [line for line in text.split("\n") if not line.startswith("#")]
    return "\n".join(line for line in lines if line.strip()) + "\n"


def emit_c(
    program: Program,
    optimizer: Optimizer | None = None,
    *,
    nan_guard: bool = False,
    poison: Mapping[str, ArenaPlan] | None = None,
    profile: bool = False,
    exported: Exported | None = None,
) -> Emitted:
    """Return the C source, the header and the cffi declarations of a program.

    With ``nan_guard`` an entry point stops after the kernel that wrote a NaN or Inf. ``poison`` has the plans of
    the entry points that fill with NaNs what does not live in the arena. ``profile`` notes how long every call takes.
    ``exported`` adds the functions of an exported module.
    """
    return Emitter(program, optimizer, nan_guard, poison or {}, profile, exported or Exported()).emit()


def emit_levels(program: Program, emitted: Emitted, levels: Sequence[Level]) -> dict[str, str]:
    """Return header and source of the functions that choose among levels, of a program as it was emitted."""
    name = program.name
    text = indent(render_c("levels", **levels_context(name, emitted.cdef, levels)))
    return {f"{name}.h": emitted.sources[f"{name}.h"], f"{name}.c": text.rstrip("\n") + "\n"}
