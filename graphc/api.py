"""``compile``: the one place where the compiler, the build and the runtime meet."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


from graphc.build import BuildOptions, build_extension
from graphc.emit.c import ABI, Emitted, emit_c
from graphc.errors import GraphError, RangeError, UnknownNameError
from graphc.graph.node import Node
from graphc.initialisers import stream
from graphc.memory import ArenaPlan
from graphc.optim import Optimizer
from graphc.pipeline import Compiled, Request, compile_program
from graphc.program.ir import Program
from graphc.types import Size, check_dtype, coefficients_of
from graphc_runtime.module import Module as RuntimeModule


class Module(RuntimeModule):
    """A compiled module that still knows how it was compiled."""

    compiled: Compiled

    def plan(self, mode: str = "inference") -> ArenaPlan:
        """Return the memory plan of ``"inference"``, ``"train"`` or ``"evaluate"``.

        Raises:
            RangeError: the module has no such entry point.
        """
        entry = {"inference": "predict", "train": "train_step"}.get(mode, mode)
        if entry not in self.compiled.plans:
            raise RangeError(f"no plan for {mode!r}; this module has {', '.join(self.compiled.plans)}")
        return self.compiled.plans[entry]


def compile(
    outputs: Mapping[str, Node] | Node,
    loss: Node | None = None,
    optimizer: Optimizer | None = None,
    *,
    metrics: Mapping[str, Node] | None = None,
    batch: int = 1,
    target: str = "c",
    seed: int = 0,
    dtype: str = "float32",
    name: str = "net",
    nan_guard: bool = False,
    build: BuildOptions | None = None,
    dump_dir: str | Path | None = None,
) -> Module:
    """Return the compiled module.

    ``outputs`` names what ``predict`` returns. With a loss the module also evaluates and trains;
    ``metrics`` are further scalars that a step reports. ``batch`` is the largest batch. ``dump_dir``
    receives every intermediate result as text.

    Raises:
        GraphcError: whatever is wrong with the graph, the names or the build.
    """
    request = _request(outputs, loss, optimizer, metrics or {}, batch, target, dtype, name)
    dump = _dumper(Path(dump_dir)) if dump_dir is not None else None
    compiled = compile_program(request, dump)
    emitted = emit_c(compiled.program, optimizer if loss is not None else None, nan_guard=nan_guard)
    if dump is not None:
        for file, text in emitted.sources.items():
            dump(f"99-{file}", text)
    manifest = make_manifest(compiled.program, emitted, optimizer)
    library = build_extension(request.name, emitted.sources, emitted.cdef, build or BuildOptions())
    initial = {
        key: initialiser(_shape_of(compiled.program, key), stream(seed, key))
        for key, initialiser in compiled.initial.items()
    }
    module = Module(manifest, library, initial, seed)
    module.compiled = compiled
    return module


def _request(
    outputs: Mapping[str, Node] | Node, loss: Node | None, optimizer: Optimizer | None, metrics: Mapping[str, Node],
    batch: int, target: str, dtype: str, name: str,
) -> Request:  # fmt: skip
    named = {"out": outputs} if isinstance(outputs, Node) else dict(outputs)
    for key, node in [*named.items(), *metrics.items(), *([("loss", loss)] if loss is not None else [])]:
        if not isinstance(node, Node):
            raise GraphError(f"compile: {key!r} must be a tensor, got {type(node).__name__}")
    if not named and loss is None:
        raise GraphError("compile: needs at least one output or a loss")
    if target != "c":
        raise RangeError(f"compile: target {target!r} is unknown; there is 'c'")
    if not isinstance(batch, int) or isinstance(batch, bool) or not 1 <= batch <= 2**20:
        raise RangeError(f"compile: batch must be an int in 1..{2**20}, got {batch!r}")
    if dtype not in ("float32", "float64"):
        raise RangeError(f"compile: dtype must be 'float32' or 'float64', got {dtype!r}")
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,40}", name):
        raise UnknownNameError(f"compile: name {name!r} must be a short lower-case identifier")
    if optimizer is not None and loss is None:
        raise GraphError("compile: an optimizer needs a loss")
    return Request(name, named, loss, dict(metrics), optimizer, batch, check_dtype(dtype))


def _dumper(folder: Path) -> Any:
    folder.mkdir(parents=True, exist_ok=True)

    def dump(step: str, text: str) -> None:
        suffix = "" if "." in step else ".txt"
        (folder / f"{step}{suffix}").write_text(text)

    return dump


def _shape_of(program: Program, name: str) -> tuple[int, ...]:
    return next(s.shape for s in (*program.params, *program.states) if s.name == name)


def _extent(size: Size) -> int | list[int]:
    return size if isinstance(size, int) else list(coefficients_of(size))


def make_manifest(program: Program, emitted: Emitted, optimizer: Optimizer | None) -> dict[str, Any]:
    """Return what the runtime needs to know of a module, as plain JSON types."""
    entries = []
    for entry in program.entries:
        names = emitted.kernel_names[entry.name]
        entries.append({
            "name": entry.name,
            "inputs": [{"name": a.name, "dtype": a.dtype, "shape": [_extent(d) for d in a.shape]} for a in entry.inputs],
            "outputs": [{"name": a.name, "dtype": a.dtype, "shape": [_extent(d) for d in a.shape]} for a in entry.outputs],
            "calls": [
                {"kernel": k, "nodes": list(c.nodes), "sources": list(c.sources)}
                for k, c in zip(names, entry.calls, strict=True)
            ],
        })  # fmt: skip
    slots = list(program.update.slots) if program.update else []
    digest = hashlib.sha256("".join(emitted.sources[k] for k in sorted(emitted.sources)).encode())
    return {
        "abi": ABI,
        "name": program.name,
        "dtype": program.dtype,
        "batch": program.batch,
        "fingerprint": digest.hexdigest(),
        "entries": entries,
        "params": [_slot(s) for s in program.params],
        "states": [_slot(s) for s in program.states],
        "slots": slots,
        "sizes": {
            "params": program.params_size, "grads": program.trainable_size if any(e.name == "train_step" for e in program.entries) else 0,
            "slots": len(slots) * program.trainable_size, "state": program.states_size,
            "folded": program.folded_size, "arena_bytes": program.arena_bytes,
        },
        "lr": optimizer.lr if optimizer is not None else None,
        "sources": emitted.sources,
    }  # fmt: skip


def _slot(slot: Any) -> dict[str, Any]:
    return {"name": slot.name, "shape": list(slot.shape), "offset": slot.offset, "trainable": slot.trainable}


def dump_manifest(manifest: Mapping[str, Any]) -> str:
    """Return the manifest as JSON text."""
    return json.dumps(manifest, indent=1, sort_keys=True)
