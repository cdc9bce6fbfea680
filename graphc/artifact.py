"""What compiling gives, as plain data; and the cache that spares a net compiled before the whole pipeline.

The key is a digest of the graph as written (ops, attributes, types, names and source lines), the options,
and the compiler's own files, so that a change of any of them compiles anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import sympy as sp

import graphc_templates
from graphc import scalar
from graphc.build import Cache
from graphc.graph.node import Node, Op, topological
from graphc.initialisers import Initialiser
from graphc.ops.leaves import Input, RandomKey, Scope
from graphc.optim import Optimizer
from graphc.pipeline import Request

_FILE = "artifact.json"


@dataclass(frozen=True)
class Artifact:
    """The emitted texts, the manifest for the runtime, and the memory plans of the entry points."""

    manifest: dict[str, Any]
    sources: dict[str, str]
    cdef: str
    plans: dict[str, dict[str, Any]]


@lru_cache(maxsize=1)
def _compiler_digest() -> str:
    """Return a digest of the compiler's own files: name, size and time of change."""
    digest = hashlib.sha256()
    for root in (Path(__file__).parent, Path(graphc_templates.__file__).parent):
        for path in sorted(root.rglob("*")):
            if path.suffix in (".py", ".j2"):
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
    digest = hashlib.sha256(_compiler_digest().encode())
    for node in topological(roots.values()):
        operands = " ".join(str(position[i]) for i in node.inputs)
        position[node] = len(position)
        line = f"{describe.op(node.op)} [{operands}] {node.type} {node.name} {node.source}\n"
        digest.update(line.encode(errors="surrogatepass"))  # names are checked later
    ends = {name: position[node] for name, node in roots.items()}
    settings = [ends, request.name, request.batch, request.dtype, request.isa.name,
                request.winograd, request.fork_us, _formulas(request.optimizer),
                list(options)]  # fmt: skip
    digest.update(json.dumps(settings).encode())
    return digest.hexdigest()


def cached_artifact(cache: Cache, key: str, make: Callable[[], Artifact]) -> Artifact:
    """Return the artifact under the key, made and published if it is not there."""

    def fill(folder: Path) -> None:
        text = json.dumps(dataclasses.asdict(make()))
        (folder / _FILE).write_text(text, encoding="utf-8")

    entry = cache.entry(key) or cache.publish(key, fill)
    data: Mapping[str, Any] = json.loads((entry / _FILE).read_text(encoding="utf-8"))
    return Artifact(data["manifest"], data["sources"], data["cdef"], data["plans"])
