"""What each kernel's template is given: texts and numbers, prepared from the frozen description."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from types import SimpleNamespace
from typing import Any

from graphc.emit.chunked import chunked_facts
from graphc.emit.packed import flat_pixels, packed_facts
from graphc.emit.pooled import pooled_facts
from graphc.emit.pooling import pool_facts
from graphc.emit.text import C_TYPE, SUFFIX, BodyText, extent, linear, literal, modular
from graphc.emit.winograd import winograd_facts
from graphc.program.ir import Access, Accumulate, Compute, Epilogue, Kernel, Load, LoopSpec, Statement, Sweep
from graphc.types import DType, Extent, Size, at, contiguous_strides, product

LANES = 16
# A tile row of a direct convolution lives on the stack of its thread.
_BLOCKS = (4, 2, 1)


@dataclass(frozen=True)
class Axis:
    """A loop: its variable and its extent as C text."""

    var: str
    extent: str


@dataclass(frozen=True)
class AccumulatorText:
    """An accumulator as the loop template needs it."""

    name: str
    kind: str
    ctype: str
    start: str
    value: str
    suffix: str
    index: str = ""
    best: str = ""
    best_array: str = ""
    best_start: str = ""
    value_ctype: str = ""
    value_suffix: str = ""

    @property
    def modular(self) -> str:
        """The unsigned type that an integer sum is computed in; "" for floats."""
        return "" if self.ctype in ("float", "double") else modular(self.ctype)

    @property
    def real(self) -> bool:
        """Whether a value that is compared may be NaN."""
        return (self.value_ctype if self.best else self.ctype) in ("float", "double")


@dataclass
class SweepText:
    """A sweep as the loop template needs it."""

    lines: list[str]
    accumulators: list[AccumulatorText]
    stores: list[str]
    kept_lines: list[str]
    kept_stores: list[str]
    scalar: bool
    uses_vector: bool = True


@dataclass
class LoopText:
    """A loop nest as its template needs it."""

    mode: str
    kept: list[Axis]
    reduced: list[Axis]
    before: list[str]
    sweeps: list[SweepText]
    collapse: bool
    lanes: bool
    lanes_exact: bool
    vector: Axis | None = None
    vector_exact: bool = False
    declarations: list[str] = field(default_factory=list)

    def reads_vector(self, lines: list[str]) -> bool:
        """Whether statements read the index of the vectorised axis; an unread variable is a warning in C."""
        return self.vector is not None and any(re.search(rf"\b{self.vector.var}\b", line) for line in lines)


def _start(kind: str, dtype: DType) -> str:
    if kind == "sum":
        return literal(0.0, dtype)
    if kind in ("argmax", "argmin"):
        return "0"
    return _lowest(dtype) if kind == "max" else _highest(dtype)


def _lowest(dtype: DType) -> str:
    if dtype.startswith("int"):
        return f"{dtype.upper()}_MIN"
    return "-INFINITY" if dtype.startswith("float") else "0"


def _highest(dtype: DType) -> str:
    if dtype == "bool":
        return "1"
    return "INFINITY" if dtype.startswith("float") else f"{dtype.upper()}_MAX"


def loop_context(kernel: Kernel, batch: int) -> LoopText:
    """Return the context of the loop template."""
    spec: LoopSpec = kernel.spec
    variables = [f"i{a}" for a in range(len(spec.extents))]
    axes = [Axis(v, extent(e)) for v, e in zip(variables, spec.extents, strict=True)]
    kept = [a for a, r in zip(axes, spec.reduced, strict=True) if not r]
    reduced = [a for a, r in zip(axes, spec.reduced, strict=True) if r]
    columns = bool(reduced) and not spec.reduced[-1] and bool(kept)
    subscripted: dict[str, str] = {}
    declarations: list[str] = []
    if columns:
        for statement in _kept_statements(spec):
            subscripted[statement.name] = f"{statement.name}[lane]"
            declarations.append(f"{C_TYPE[statement.dtype]} {statement.name}[GC_LANES];")
        for sweep in spec.sweeps:
            subscripted |= {a.name: f"{a.name}[lane]" for a in sweep.accumulators}
    body = BodyText(kernel.operands, variables, subscripted, _uses_in_loops(spec))
    inner = spec.extents[-1] if spec.extents else 1
    lanes = bool(reduced) and not columns and (isinstance(inner, Extent) or inner >= 2 * LANES)
    kept_extents = [e for e, r in zip(spec.extents, spec.reduced, strict=True) if not r]
    outer = at(kept_extents[0], batch) if kept_extents else 1
    may_collapse = len(kept) >= 3 if not reduced else len(kept) - columns >= 2
    return LoopText(
        mode="columns" if columns else "rows",
        kept=kept,
        reduced=reduced,
        before=body.block(spec.before)[0],
        sweeps=[_sweep(s, body, columns, variables) for s in spec.sweeps],
        collapse=may_collapse and outer < 64,
        lanes=lanes,
        lanes_exact=isinstance(inner, int) and inner % LANES == 0,
        vector=kept[-1] if columns else None,
        vector_exact=columns and isinstance(kept_extents[-1], int) and kept_extents[-1] % LANES == 0,
        declarations=declarations,
    )


def loop_body(kernel: Kernel, variables: Sequence[str]) -> BodyText:
    """Return what prints the statements of a loop nest, every value in a variable of its own."""
    return BodyText(kernel.operands, variables, {}, _uses_in_loops(kernel.spec))


def sweep_text(sweep: Sweep, body: BodyText, variables: Sequence[str]) -> SweepText:
    """Return the text of a sweep whose results are in variables."""
    return _sweep(sweep, body, False, variables)


def _kept_statements(spec: LoopSpec) -> list[Statement]:
    statements = list(spec.before)
    for sweep in spec.sweeps:
        statements += sweep.kept_statements
    return statements


def _sweep(sweep: Sweep, body: BodyText, columns: bool, variables: Sequence[str]) -> SweepText:
    sums = [a.value for a in sweep.accumulators if a.kind == "sum"]
    lines, stores, values = body.block(sweep.statements, sweep.stores, sums)
    texts = dict(zip(sums, values, strict=True))
    accumulators = [
        _accumulator(a, body, columns, texts[a.value] if a.kind == "sum" else body.name(a.value))
        for a in sweep.accumulators
    ]
    kept_lines, kept_stores, _ = body.block(sweep.kept_statements, sweep.kept_stores)
    text = " ".join([*lines, *stores, *values])
    return SweepText(
        lines,
        accumulators,
        stores,
        kept_lines,
        kept_stores,
        scalar=any(a.best for a in accumulators),
        uses_vector=bool(variables) and re.search(rf"\b{variables[-1]}\b", text) is not None,
    )


def _uses_in_loops(spec: LoopSpec) -> Counter[str]:
    """Return how often each value is read."""
    lists = [spec.before, *(s.statements for s in spec.sweeps), *(s.kept_statements for s in spec.sweeps)]
    found = _uses(statement for statements in lists for statement in statements)
    for sweep in spec.sweeps:
        found.update(s.value for s in (*sweep.stores, *sweep.kept_stores))
        found.update(name for a in sweep.accumulators for name in (a.value, a.index) if name)
    return found


def _uses(statements: Iterable[Statement]) -> Counter[str]:
    return Counter(name for s in statements if isinstance(s, Compute) for name, _ in s.arguments)


def _accumulator(a: Accumulate, body: BodyText, columns: bool, value: str) -> AccumulatorText:
    is_index = a.kind in ("argmax", "argmin")
    dtype: DType = "int64" if is_index else a.dtype
    best = f"{a.name}_best" if is_index else ""
    return AccumulatorText(
        a.name, a.kind, C_TYPE[dtype], _start(a.kind, dtype), value, SUFFIX[dtype], a.index,
        f"{best}[lane]" if best and columns else best, best,
        _lowest(a.dtype) if a.kind == "argmax" else _highest(a.dtype), C_TYPE[a.dtype], SUFFIX[a.dtype],
    )  # fmt: skip


class EpilogueText:
    """The epilogue of an anchored kernel, as lines of C for its template."""

    def __init__(self, kernel: Kernel, epilogue: Epilogue):
        """Print the epilogue with the loop variables that the template uses."""
        uses = _uses((*epilogue.statements, *epilogue.after))
        uses.update([*(s.value for s in epilogue.stores), epilogue.pooled_value])
        body = BodyText(kernel.operands, epilogue.axes, uses=uses)
        self.pool = epilogue.pool.kernel if epilogue.pool else None
        self.pooled_value = epilogue.pooled_value
        before, stores, _ = body.block(epilogue.statements, () if self.pool else epilogue.stores)
        after, pooled_stores, _ = body.block(epilogue.after, epilogue.stores if self.pool else ())
        self.inner_lines = "\n".join(before)
        self.outer_lines = "\n".join([*after, *pooled_stores] if self.pool else [*before, *stores])
        read = [s.access.strides for s in epilogue.statements if hasattr(s, "access")]
        self.inner_uses = [any(strides[a] != 0 for strides in read) for a in range(len(epilogue.axes))]
        # Whether the sums themselves are pooled: in all lanes at once, since nothing of a channel is needed.
        self.pools_sums = self.pool is not None and self.pooled_value == "acc" and not epilogue.statements
        self.uses_index = any(s.value == "pool_index" for s in epilogue.stores)
        used: set[str] = set()
        for item in (*epilogue.statements, *epilogue.after, *epilogue.stores):
            if not hasattr(item, "access"):
                continue
            used |= {v for v, s in zip(epilogue.axes, item.access.strides, strict=True) if s != 0}
        if kernel.template == "take":  # the flattened result takes no epilogue but its store
            target = kernel.operands[epilogue.stores[0].operand].name
            self.outer_lines = f"{target}[k * {extent(kernel.spec.width)} + d] = acc;"
        alone = not epilogue.statements and not epilogue.after and _fills_its_array(kernel, epilogue)
        # The name of an operand that just receives the result, its elements in their order.
        self.flat = kernel.operands[epilogue.stores[0].operand].name if alone else ""
        self.uses = [axis in used for axis in epilogue.axes]
        loaded = {s.operand for s in epilogue.statements if isinstance(s, Load)}
        self.fetches = "\n".join(
            f"GC_PREFETCH({kernel.operands[s.operand].name} + {linear(s.access, epilogue.axes)});"
            for s in epilogue.stores
            if s.operand in loaded
        )  # of what is read and written


def _fills_its_array(kernel: Kernel, epilogue: Epilogue) -> bool:
    """Whether the bare result is all that is stored, its elements in their order."""
    if len(epilogue.stores) != 1 or epilogue.stores[0].value != "acc":
        return False
    store = epilogue.stores[0]
    wanted = contiguous_strides(kernel.operands[store.operand].shape)
    return store.access in (Access(wanted), Access(()))


def _block(extent_: int) -> int:
    return next(b for b in _BLOCKS if extent_ % b == 0)


def anchor_context(kernel: Kernel, batch: int) -> dict[str, Any]:
    """Return the context of an anchor's template: ``s`` the spec with derived numbers, ``e`` the epilogue."""
    if kernel.template == "packed_conv2d":
        kernel = flat_pixels(kernel)
    spec = kernel.spec
    values: dict[str, Any] = {f.name: getattr(spec, f.name) for f in fields(spec)}
    if kernel.template.startswith("conv2d"):
        g = spec.geometry
        (top, _), (left, _) = g.padding
        reach_w = (spec.ow - 1) * g.stride[1] + (spec.kw - 1) * g.dilation[1] - left
        reach_h = (spec.oh - 1) * g.stride[0] + (spec.kh - 1) * g.dilation[0] - top
        values["padded_w"] = left > 0 or reach_w >= spec.w
        values["padded_h"] = top > 0 or reach_h >= spec.h
        values["block"] = _block(
            (spec.c if kernel.template == "conv2d_backward_data" else spec.o) // g.groups
        )
    if "pool2d" in kernel.template:
        values |= pool_facts(kernel)
    if kernel.template.startswith("packed_"):
        values |= packed_facts(kernel, batch)
    if kernel.template == "chunked_matmul":
        values |= chunked_facts(kernel, batch)
    if kernel.template.startswith("winograd_"):
        values |= winograd_facts(kernel.template, spec)
    values["pooled"] = pooled_facts(kernel)
    if kernel.template == "matmul":
        values |= _matmul_tiles(spec)
    values = {k: extent(v) if isinstance(v, Extent) else v for k, v in values.items()}
    assert kernel.epilogue is not None
    return {
        "s": SimpleNamespace(**values),
        "e": EpilogueText(kernel, kernel.epilogue),
        "T": C_TYPE[kernel.dtype],
        "suffix": SUFFIX[kernel.dtype],
        "form": f"{values.get('lanes', 0)}_{SUFFIX[kernel.dtype]}",
        "V": f"gc_vec{values.get('lanes', 0)}_{SUFFIX[kernel.dtype]}",
        "ctypes": {o.name: C_TYPE[o.dtype] for o in kernel.operands},
    }


def pack_context(kernel: Kernel) -> dict[str, Any]:
    """Return the context of the packing template: loops over the remaining axes, and two addresses."""
    spec = kernel.spec
    names = [f"i{a}" for a in range(len(spec.extents))]
    inner = Access((spec.channel_stride, *spec.strides), spec.offset)
    size = product(spec.extents)
    return {
        "s": spec,
        "blocks": -(-spec.channels // spec.lanes),
        "axes": [Axis(v, extent(e)) for v, e in zip(names, spec.extents, strict=True)],
        "source": linear(inner, ["channel", *names]),
        "target": linear(Access((size, *contiguous_strides(spec.extents))), ["block", *names]),
        "T": C_TYPE[kernel.dtype],
    }


def _matmul_tiles(spec: Any) -> dict[str, Any]:
    dot = spec.transpose_b and not spec.transpose_a
    height = 4 if not isinstance(spec.rows, int) or spec.rows >= 4 else spec.rows
    columns: Size = spec.columns
    width = 4 if dot else 64
    if isinstance(columns, int) and columns < width:
        width = columns
    lead = [f"i{a}" for a in range(len(spec.lead))]
    return {
        "tile_rows": height,
        "tile_columns": width,
        "rows_exact": isinstance(spec.rows, int) and spec.rows % height == 0,
        "columns_exact": isinstance(columns, int) and columns % width == 0,
        "depth_factor": extent(spec.depth),
        "lead": [extent(e) for e in spec.lead],
        "lead_a": linear(Access(spec.lead_strides_a), lead) if lead else "0",
        "lead_b": linear(Access(spec.lead_strides_b), lead) if lead else "0",
    }
