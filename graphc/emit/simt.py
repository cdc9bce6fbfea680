"""How a kernel is laid out over threads: which elements a thread, a warp or a block computes, and what it reads.

Loop nests without reductions have a thread for every element. Reductions have a thread, a warp or a block for every
result, by how many terms there are; partial sums are added by a fixed tree. Products have a file of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

from graphc.emit.grid import THREADS, Axis, Launch, blocks, decoded, index_type
from graphc.emit.kernels import AccumulatorText, EpilogueText, loop_body, sweep_text
from graphc.emit.products import FORMS, product_context
from graphc.emit.text import C_TYPE, extent
from graphc.program.ir import Kernel, LoopSpec
from graphc.types import Extent, Precision, at, product

WARP = 32
_SERIAL = 16  # terms up to which a thread takes a sum alone
_WARP_TERMS = 1024  # and up to which a warp does
_ENOUGH = 4096  # results that keep a device busy with a thread each, where neighbours are read by neighbours


def kernel_context(
    kernel: Kernel, batch: int, precision: Precision = "fp32"
) -> tuple[str, dict[str, Any], Launch]:
    """Return a kernel's template, what the template is given, and how the kernel is launched."""
    if kernel.template == "loops":
        return _loops(kernel, batch)
    if kernel.template in FORMS:
        return product_context(kernel, batch, precision)
    return _elements(kernel, batch)


# ------------------------------------------------------------------ loop nests


def _loops(kernel: Kernel, batch: int) -> tuple[str, dict[str, Any], Launch]:
    spec: LoopSpec = kernel.spec
    index = index_type(kernel, batch)
    axes = [Axis(f"i{a}", e) for a, e in enumerate(spec.extents)]
    kept = [a for a, r in zip(axes, spec.reduced, strict=True) if not r]
    reduced = [a for a, r in zip(axes, spec.reduced, strict=True) if r]
    body = loop_body(kernel, [a.variable for a in axes])
    before = body.block(spec.before)[0]
    sweeps = [sweep_text(s, body, [a.variable for a in axes]) for s in spec.sweeps]
    results, terms = (at(product([a.size for a in part]), batch) for part in (kept, reduced))
    mode = _mode(spec, results, terms)
    inner = [[*s.lines, *s.stores, *_values(s.accumulators)] for s in sweeps]
    outer = [*before, *(line for s in sweeps for line in (*s.kept_lines, *s.kept_stores))]
    whole = "\n".join([*outer, *(line for lines in inner for line in lines)])
    context = {
        "mode": mode, "results": extent(product([a.size for a in kept])),
        "terms": extent(product([a.size for a in reduced])), "before": before,
        "kept": decoded(kept, "result", whole, index), "I": index,
        "sweeps": [
            {"text": s, "decoded": decoded(reduced, "term", "\n".join(lines), index), "last": s is sweeps[-1],
             "loops": bool(s.accumulators or s.stores)} for s, lines in zip(sweeps, inner, strict=True)
        ],
        "threads": THREADS,
    }  # fmt: skip
    per_block = {"thread": THREADS, "warp": THREADS // WARP, "block": 1}[mode]
    launch = Launch(blocks(-(-results // per_block)), THREADS, f"a {mode} computes a result", index)
    return "loops", context, launch


def _values(accumulators: Sequence[AccumulatorText]) -> list[str]:
    return [text for a in accumulators for text in (a.value, a.index) if text]


def _mode(spec: LoopSpec, results: int, terms: int) -> str:
    """Return who computes a result: a thread, a warp or a block."""
    if not any(spec.reduced) or terms <= _SERIAL:
        return "thread"
    if not spec.reduced[-1] and results >= _ENOUGH:
        return "thread"
    return "warp" if terms <= _WARP_TERMS else "block"


# ------------------------------------------------------------------ one result a thread


def _elements(kernel: Kernel, batch: int) -> tuple[str, dict[str, Any], Launch]:
    """Pooling, its derivatives, gather and scatter: a thread computes an element of the result."""
    spec, index = kernel.spec, index_type(kernel, batch)
    values: dict[str, Any] = {f.name: getattr(spec, f.name) for f in fields(spec)}
    if "pool2d" in kernel.template:
        g = spec.geometry
        inner = (spec.h, spec.w) if kernel.template in _IMAGE_SIDE else g.out
        axes = [Axis(v, e) for v, e in zip("ncyx", (spec.n, spec.c, *inner), strict=True)]
        values["divisor"] = getattr(spec, "divisor", None)
    elif kernel.template == "take":
        axes = [Axis("k", spec.count), Axis("d", spec.width)]
    else:
        axes = [Axis("row", spec.rows), Axis("d", spec.width)]
    values = {k: extent(v) if isinstance(v, Extent) else v for k, v in values.items()}
    size = product([a.size for a in axes])
    epilogue = EpilogueText(kernel, kernel.epilogue) if kernel.epilogue is not None else None
    context = {
        "s": SimpleNamespace(**values), "e": epilogue, "T": C_TYPE[kernel.dtype],
        "ctypes": {o.name: C_TYPE[o.dtype] for o in kernel.operands}, "size": extent(size),
        "decode": decoded(axes, "element", " ".join(a.variable for a in axes), index), "threads": THREADS,
        "I": index,
    }  # fmt: skip
    launch = Launch(blocks(-(-at(size, batch) // THREADS)), THREADS, "a thread computes a result", index)
    return kernel.template, context, launch


_IMAGE_SIDE = ("max_pool2d_scatter", "avg_pool2d_backward")
