"""What compiling gives, as plain data; and the cache that spares a net compiled before the whole pipeline.

The key is a digest of the graph as written (ops, attributes, types, names and source lines), the options,
and the compiler's own files, so that a change of any of them compiles anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import sympy as sp

import graphc_templates
from graphc import scalar
from graphc.build import Cache
from graphc.emit.c import ABI, Emitted
from graphc.graph.node import Node, Op, topological
from graphc.initialisers import Initialiser
from graphc.ops.leaves import Input, RandomKey, Scope
from graphc.optim import Optimizer
from graphc.pipeline import Request
from graphc.program.ir import Argument, Program
from graphc.types import Size, coefficients_of

_FILE = "artifact.json"


@dataclass(frozen=True)
class Artifact:
    """The emitted texts, the manifest for the runtime, and the memory plans of the entry points."""

    manifest: dict[str, Any]
    sources: dict[str, str]
    cdef: str
    plans: dict[str, dict[str, Any]]


@lru_cache(maxsize=1)
def compiler_digest() -> str:
    """Return a digest of the compiler's own files: name, size and time of change."""
    digest = hashlib.sha256()
    for root in (Path(__file__).parent, Path(graphc_templates.__file__).parent):
        for path in sorted(root.rglob("*")):
            if path.suffix in (".py", ".j2", ".h"):
                status = path.stat()
                digest.update(f"{path.relative_to(root)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


@lru_cache(maxsize=4096)
def _expression(expr: sp.Basic) -> str:
    return str(sp.srepr(expr))


class _Describer:
    """Writes ops down exactly; objects that are compared by identity get numbers in order of appearance."""

    def __init__(self) -> None:
        self._numbers: dict[object, int] = {}

    def _number(self, thing: object) -> str:
        return f"{type(thing).__name__} {self._numbers.setdefault(thing, len(self._numbers))}"

    def value(self, value: Any) -> str:
        if isinstance(value, sp.Basic):
            return _expression(value)
        if isinstance(value, Scope):
            return f"{self._number(value)} {value.kind} {value.name}"
        if isinstance(value, RandomKey):
            return self._number(value)
        if isinstance(value, bytes):
            return hashlib.sha256(value).hexdigest()
        return repr(value)

    def op(self, op: Op) -> str:
        if not dataclasses.is_dataclass(op):
            return type(op).__name__
        skipped = {"identity"} if isinstance(op, Input) else set()
        parts = [
            f"{f.name}={self.value(getattr(op, f.name))}"
            for f in dataclasses.fields(op)
            # First values are no part of the code; the module sets them when it is loaded.
            if f.name not in skipped and not isinstance(getattr(op, f.name), Initialiser)
        ]
        return f"{type(op).__name__}({', '.join(parts)})"


def _formulas(optimizer: Optimizer | None) -> list[str]:
    """Return the optimizer and its formulas: those of a user's own class may change while its name stays."""
    if optimizer is None:
        return []
    described = [repr(optimizer)]
    for overrides in ({}, *optimizer.groups.values()):
        values = {**optimizer.hyperparameters, **overrides}
        rule = optimizer.rule({name: scalar.number(value) for name, value in values.items()})
        described += [f"{name} = {_expression(expr)}" for name, expr in (*rule.scalars, *rule.updates)]
    return described


def fingerprint(request: Request, options: Iterable[str] = ()) -> str:
    """Return the digest that identifies what the pipeline would give for a request."""
    roots: dict[str, Node] = {**request.outputs, **{f"metric.{k}": v for k, v in request.metrics.items()}}
    if request.loss is not None:
        roots["loss"] = request.loss
    describe = _Describer()
    position: dict[Node, int] = {}
    digest = hashlib.sha256(compiler_digest().encode())
    for node in topological(roots.values()):
        operands = " ".join(str(position[i]) for i in node.inputs)
        position[node] = len(position)
        line = f"{describe.op(node.op)} [{operands}] {node.type} {node.name} {node.source}\n"
        digest.update(line.encode(errors="surrogatepass"))  # names are checked later
    ends = {name: position[node] for name, node in roots.items()}
    settings = [ends, request.name, request.batch, request.dtype, request.isa.name,
                request.winograd, request.fork_us, request.memory_budget, str(request.rewrites),
                request.keep_gradients, request.frozen, request.mixed, request.target, request.precision,
                _formulas(request.optimizer), list(options)]  # fmt: skip
    digest.update(json.dumps(settings).encode())
    return digest.hexdigest()


def _extent(size: Size) -> int | list[int]:
    return size if isinstance(size, int) else list(coefficients_of(size))


def _argument(argument: Argument) -> dict[str, Any]:
    shape = [_extent(d) for d in argument.shape]
    return {"name": argument.name, "dtype": argument.dtype, "shape": shape}


def make_manifest(program: Program, emitted: Emitted, optimizer: Optimizer | None) -> dict[str, Any]:
    """Return what the runtime needs to know of a module, as plain JSON types."""
    entries = []
    for entry in program.entries:
        names = emitted.kernel_names[entry.name]
        entries.append({
            "name": entry.name,
            "before_commit": entry.commit or len(entry.calls),
            "inputs": [_argument(a) for a in entry.inputs],
            "outputs": [_argument(a) for a in entry.outputs],
            "calls": [
                {"kernel": k, "nodes": list(c.nodes), "sources": list(c.sources), "flops": _extent(c.kernel.flops),
                 "bytes": _extent(c.kernel.bytes)}
                for k, c in zip(names, entry.calls, strict=True)
            ],
        })  # fmt: skip
    slots = list(program.update.slots) if program.update else []
    trains = any(e.name == "train_step" for e in program.entries)
    # Without the comments, which name the user's lines: a net that moves within its file stays the same net.
    code = (re.sub(r"/\*.*?\*/", "", emitted.sources[k], flags=re.DOTALL) for k in sorted(emitted.sources))
    digest = hashlib.sha256("".join(code).encode())
    return {
        "abi": ABI,
        "device": emitted.device,
        "name": program.name,
        "dtype": program.dtype,
        "batch": program.batch,
        "fingerprint": digest.hexdigest(),
        "entries": entries,
        "params": [_slot(s) for s in program.params],
        "states": [_slot(s) for s in program.states],
        "slots": slots,
        "sizes": {
            "params": program.params_size, "grads": program.grads_size if trains else 0,
            "trainable": program.trainable_size, "slots": program.slots_size,
            "state": program.states_size, "folded": program.folded_size, "frozen": program.frozen_size,
            "arena_bytes": emitted.arena_bytes or program.arena_bytes,
        },
        "lr": optimizer.lr if optimizer is not None else None,
        "profiled": emitted.profiled,
        "sources": emitted.sources,
    }  # fmt: skip


def _slot(slot: Any) -> dict[str, Any]:
    return {"name": slot.name, "shape": list(slot.shape), "offset": slot.offset, "trainable": slot.trainable,
            "dtype": slot.dtype, "constant": slot.constant, "gradient": slot.gradient}  # fmt: skip


def cached_artifact(cache: Cache, key: str, make: Callable[[], Artifact]) -> Artifact:
    """Return the artifact under the key, made and published if it is not there."""

    def fill(folder: Path) -> None:
        text = json.dumps(dataclasses.asdict(make()))
        (folder / _FILE).write_text(text, encoding="utf-8")

    entry = cache.entry(key) or cache.publish(key, fill)
    data: Mapping[str, Any] = json.loads((entry / _FILE).read_text(encoding="utf-8"))
    return Artifact(data["manifest"], data["sources"], data["cdef"], data["plans"])
