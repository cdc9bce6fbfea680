"""How a kernel is laid out over threads: which elements a thread, a warp or a block computes, and what it reads.

Loop nests without reductions have a thread for every element. Reductions have a thread, a warp or a block for every
result, by how many terms there are; partial sums are added by a fixed tree. Products (of matrices, convolutions and
both their derivatives) are tiles of rows by columns whose operands pass through shared memory; they differ in where
an element of an operand comes from, which is a formula.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any

from graphc.emit.kernels import AccumulatorText, EpilogueText, loop_body, sweep_text
from graphc.emit.text import C_TYPE, extent, linear, minus, times
from graphc.program.ir import Access, Kernel, LoopSpec
from graphc.types import Extent, Size, at, product

THREADS = 256
WARP = 32
_MOST_BLOCKS = 65535
_SERIAL = 16  # terms up to which a thread takes a sum alone
_WARP_TERMS = 1024  # and up to which a warp does
_ENOUGH = 4096  # results that keep a device busy with a thread each, where neighbours are read by neighbours
_EACH = 4  # rows and columns of a thread's part of a tile


@dataclass(frozen=True)
class Launch:
    """The blocks of a kernel, for the largest batch, their threads, and what each computes, in words."""

    grid: str
    threads: int
    mapping: str
    index: str = "int64_t"


def kernel_context(kernel: Kernel, batch: int) -> tuple[str, dict[str, Any], Launch]:
    """Return a kernel's template, what the template is given, and how the kernel is launched."""
    if kernel.template == "loops":
        return _loops(kernel, batch)
    if kernel.template in _FORMS:
        return _product(kernel, batch)
    return _elements(kernel, batch)


# ------------------------------------------------------------------ indices


@dataclass(frozen=True)
class _Axis:
    variable: str
    size: Size


def _index_type(kernel: Kernel, batch: int) -> str:
    """Return the type of indices: 32 bits, whose divisions are cheap, where every array has fewer elements."""
    sizes = [at(product(o.shape), batch) for o in kernel.operands]
    if isinstance(kernel.spec, LoopSpec):
        sizes.append(at(product(kernel.spec.extents), batch))
    return "int" if max(sizes, default=0) < 2**31 - 2**24 else "int64_t"


def _decoded(axes: Sequence[_Axis], flat: str, text: str, index: str) -> list[str]:
    """Return declarations of those axes' indices that a text reads, from the flat index over all of them."""
    lines: list[str] = []
    step: Size = 1
    for number, axis in reversed(list(enumerate(axes))):
        value = flat if step == 1 else f"{flat} / {_factor(step)}"
        if number:
            value = f"{value} % {_factor(axis.size)}"
        if re.search(rf"\b{axis.variable}\b", text):
            lines.append(f"const {index} {axis.variable} = {'0' if axis.size == 1 else value};")
        step = step * axis.size
    return lines[::-1]


def _factor(size: Size) -> str:
    text = extent(size)
    return text if re.fullmatch(r"\w+|\(.*\)", text) else f"({text})"


def _blocks(count: int) -> str:
    return str(max(1, min(count, _MOST_BLOCKS)))


# ------------------------------------------------------------------ loop nests


def _loops(kernel: Kernel, batch: int) -> tuple[str, dict[str, Any], Launch]:
    spec: LoopSpec = kernel.spec
    index = _index_type(kernel, batch)
    axes = [_Axis(f"i{a}", e) for a, e in enumerate(spec.extents)]
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
        "kept": _decoded(kept, "result", whole, index), "I": index,
        "sweeps": [
            {"text": s, "decoded": _decoded(reduced, "term", "\n".join(lines), index), "last": s is sweeps[-1],
             "loops": bool(s.accumulators or s.stores)} for s, lines in zip(sweeps, inner, strict=True)
        ],
        "threads": THREADS,
    }  # fmt: skip
    per_block = {"thread": THREADS, "warp": THREADS // WARP, "block": 1}[mode]
    launch = Launch(_blocks(-(-results // per_block)), THREADS, f"a {mode} computes a result", index)
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


# ------------------------------------------------------------------ products


@dataclass(frozen=True)
class _Side:
    """Where an operand's element comes from: lines before, a condition or "", its text; what neighbours lie along."""

    lines: tuple[str, ...]
    condition: str
    element: str
    along_depth: bool


@dataclass(frozen=True)
class _Form:
    """A product: extents, both operands' elements at (row, k) and (k, column), and the indices of the result.

    There are several products where there are ``planes``: groups of a convolution, leading axes of matrices.
    """

    rows: Size
    columns: Size
    depth: Size
    planes: Size
    a: _Side
    b: _Side
    plane: tuple[str, ...]  # lines at the start, from ``plane``
    result: tuple[str, ...]  # lines from ``row`` and ``column``
    what: str


def _product(kernel: Kernel, batch: int) -> tuple[str, dict[str, Any], Launch]:
    assert kernel.epilogue is not None
    epilogue, index = EpilogueText(kernel, kernel.epilogue), _index_type(kernel, batch)
    form = _FORMS[kernel.template](kernel, _Lines(index))
    rows, columns, planes = (at(size, batch) for size in (form.rows, form.columns, form.planes))
    height, width = (64 if count > 32 else 32 for count in (rows, columns))
    threads = height * width // _EACH**2
    result = _read(form.result, epilogue.outer_lines)
    sides = (*form.a.lines, form.a.element, *form.b.lines, form.b.element)
    context = {
        "T": C_TYPE[kernel.dtype], "I": index, "form": form, "epilogue": epilogue, "height": height, "width": width,
        "rows": extent(form.rows), "columns": extent(form.columns), "depth": extent(form.depth),
        "planes": "" if form.planes == 1 else extent(form.planes),
        "plane": _read(form.plane, "\n".join([*result, epilogue.outer_lines, *sides])), "result": result,
    }  # fmt: skip
    down, across = (min(-(-count // size), most) for count, size, most in (
        (rows, height, _MOST_BLOCKS), (columns, width, 2**31 - 1)))  # fmt: skip
    grid = f"dim3({across}, {down}, {min(planes, _MOST_BLOCKS)})"
    mapping = f"a block computes {height} x {width} {form.what}, a thread {_EACH} x {_EACH} of them"
    return "product", context, Launch(grid, threads, mapping, index)


def _read(lines: Sequence[str], text: str) -> list[str]:
    """Return the declarations whose variables a text reads."""
    return [line for line in lines if re.search(rf"\b{line.split(' = ')[0].split()[-1]}\b", text)]


class _Lines:
    """Declarations of indices, in a type."""

    def __init__(self, index: str):
        self.index = index

    def let(self, name: str, value: str) -> str:
        """Return a declaration."""
        return f"const {self.index} {name} = {value};"

    def tap(self, s: Any, flat: str) -> list[str]:
        """Return channel, row and column of a tap, from the flat index over channels and taps."""
        taps = s.kh * s.kw
        return [
            self.let("q", f"{flat} / {taps}" if taps > 1 else flat),
            self.let("ki", f"{flat} / {s.kw} % {s.kh}" if s.kh > 1 else "0"),
            self.let("kj", f"{flat} % {s.kw}" if s.kw > 1 else "0"),
        ]

    def pixel(self, flat: str, height: int, width: int) -> list[str]:
        """Return image, row and column, from the flat index over the pixels of all images."""
        return [
            self.let("n", f"{flat} / {height * width}"),
            self.let("y", f"{flat} / {width} % {height}"),
            self.let("x", f"{flat} % {width}"),
        ]

    def place(self, g: Any) -> list[str]:
        """Return where a tap of the window at (y, x) meets the image."""
        (top, _), (left, _) = g.padding
        return [
            self.let("h", f"y{times(g.stride[0])} + ki{times(g.dilation[0])}{minus(top)}"),
            self.let("w", f"x{times(g.stride[1])} + kj{times(g.dilation[1])}{minus(left)}"),
        ]


def _inside(s: Any) -> str:
    """Return the condition that (h, w) lies in the image; "" where it always does."""
    g = s.geometry
    found = []
    for axis, (variable, size, out, kernel) in enumerate((("h", s.h, s.oh, s.kh), ("w", s.w, s.ow, s.kw))):
        before = g.padding[axis][0]
        if before > 0:
            found.append(f"{variable} >= 0")
        if (out - 1) * g.stride[axis] + (kernel - 1) * g.dilation[axis] - before >= size:
            found.append(f"{variable} < {size}")
    return " && ".join(found)


def _matmul(kernel: Kernel, to: _Lines) -> _Form:
    s = kernel.spec
    lead = [_Axis(f"i{a}", e) for a, e in enumerate(s.lead)]
    names, r = [a.variable for a in lead], len(lead)
    above = [
        linear(Access(strides), names) if lead else "0" for strides in (s.lead_strides_a, s.lead_strides_b)
    ]
    bases = ["" if text == "0" else f"{text} + " for text in above]
    rows, columns, depth = (_factor(size) for size in (s.rows, s.columns, s.depth))
    a = f"a[{bases[0]}{f'k * {rows} + row' if s.transpose_a else f'row * {depth} + k'}]"
    b = f"b[{bases[1]}{f'column * {depth} + k' if s.transpose_b else f'k * {columns} + column'}]"
    return _Form(
        s.rows, s.columns, s.depth, product(s.lead), _Side((), "", a, not s.transpose_a),
        _Side((), "", b, s.transpose_b), tuple(_decoded(lead, "plane", " ".join(names), to.index)),
        (to.let(f"i{r}", "row"), to.let(f"i{r + 1}", "column")), "elements",
    )  # fmt: skip


class _Groups:
    """The channels of a convolution's group, and what to add to an index within it."""

    def __init__(self, s: Any, to: _Lines):
        self.count = s.geometry.groups
        self.inside, self.outside = s.c // self.count, s.o // self.count
        several = self.count > 1
        self.first_c = f"plane * {self.inside} + " if several else ""
        self.first_o = f"plane * {self.outside} + " if several else ""


def _convolution(kernel: Kernel, to: _Lines) -> _Form:
    s, group = kernel.spec, _Groups(kernel.spec, to)
    depth = group.inside * s.kh * s.kw
    weight = f"({group.first_o}row)" if group.first_o else "row"
    lines = [*to.tap(s, "k"), *to.pixel("column", s.oh, s.ow), *to.place(s.geometry)]
    element = f"in[((n * {s.c} + {group.first_c}q) * {s.h} + h) * {s.w} + w]"
    return _Form(
        group.outside, s.n * (s.oh * s.ow), depth, group.count,
        _Side((), "", f"weight[{weight} * {depth} + k]", True),
        _Side(tuple(lines), _inside(s), element, False), (),
        (*to.pixel("column", s.oh, s.ow), to.let("o", f"{group.first_o}row")), "channels by pixels",
    )  # fmt: skip


def _backward_data(kernel: Kernel, to: _Lines) -> _Form:
    s, g, group = kernel.spec, kernel.spec.geometry, _Groups(kernel.spec, to)
    taps, ((top, _), (left, _)) = s.kh * s.kw, g.padding
    a = _Side(
        (to.let("q", f"k / {taps}"), to.let("tap", f"k % {taps}")), "",
        f"weight[(({group.first_o}q) * {group.inside} + row) * {taps} + tap]", False,
    )  # fmt: skip
    lines = [*to.tap(s, "k"), *to.pixel("column", s.h, s.w)]
    lines.append(to.let("h", f"y{f' + {top}' if top else ''} - ki{times(g.dilation[0])}"))
    lines.append(to.let("w", f"x{f' + {left}' if left else ''} - kj{times(g.dilation[1])}"))
    whole = "".join(f" && {v} % {step} == 0" for v, step in zip("hw", g.stride, strict=True) if step > 1)
    rows, columns = (v if step == 1 else f"{v} / {step}" for v, step in zip("hw", g.stride, strict=True))
    condition = f"h >= 0 && w >= 0{whole} && {rows} < {s.oh} && {columns} < {s.ow}"
    element = f"grad[((n * {s.o} + {group.first_o}q) * {s.oh} + {rows}) * {s.ow} + {columns}]"
    return _Form(
        group.inside, s.n * (s.h * s.w), group.outside * taps, group.count, a,
        _Side(tuple(lines), condition, element, False), (),
        (*to.pixel("column", s.h, s.w), to.let("c", f"{group.first_c}row")), "channels by pixels",
    )  # fmt: skip


def _backward_weight(kernel: Kernel, to: _Lines) -> _Form:
    s, group = kernel.spec, _Groups(kernel.spec, to)
    pixels, taps = s.oh * s.ow, s.kh * s.kw
    a = _Side(
        (to.let("n", f"k / {pixels}"), to.let("pixel", f"k % {pixels}")), "",
        f"grad[(n * {s.o} + {group.first_o}row) * {pixels} + pixel]", True,
    )  # fmt: skip
    lines = [*to.tap(s, "column"), *to.pixel("k", s.oh, s.ow), *to.place(s.geometry)]
    element = f"in[((n * {s.c} + {group.first_c}q) * {s.h} + h) * {s.w} + w]"
    result = (
        to.let("o", f"{group.first_o}row"), to.let("c", f"column / {taps}"),
        to.let("i", f"column / {s.kw} % {s.kh}"), to.let("j", f"column % {s.kw}"),
    )  # fmt: skip
    return _Form(
        group.outside, group.inside * taps, s.n * pixels, group.count, a,
        _Side(tuple(lines), _inside(s), element, True), (), result, "output channels by taps",
    )  # fmt: skip


_FORMS = {
    "matmul": _matmul, "conv2d": _convolution, "conv2d_backward_data": _backward_data,
    "conv2d_backward_weight": _backward_weight,
}  # fmt: skip


# ------------------------------------------------------------------ one result a thread


def _elements(kernel: Kernel, batch: int) -> tuple[str, dict[str, Any], Launch]:
    """Pooling, its derivatives, gather and scatter: a thread computes an element of the result."""
    spec, index = kernel.spec, _index_type(kernel, batch)
    values: dict[str, Any] = {f.name: getattr(spec, f.name) for f in fields(spec)}
    if "pool2d" in kernel.template:
        g = spec.geometry
        inner = (spec.h, spec.w) if kernel.template in _IMAGE_SIDE else g.out
        axes = [_Axis(v, e) for v, e in zip("ncyx", (spec.n, spec.c, *inner), strict=True)]
        values["divisor"] = getattr(spec, "divisor", None)
    elif kernel.template == "take":
        axes = [_Axis("k", spec.count), _Axis("d", spec.width)]
    else:
        axes = [_Axis("row", spec.rows), _Axis("d", spec.width)]
    values = {k: extent(v) if isinstance(v, Extent) else v for k, v in values.items()}
    size = product([a.size for a in axes])
    epilogue = EpilogueText(kernel, kernel.epilogue) if kernel.epilogue is not None else None
    context = {
        "s": SimpleNamespace(**values), "e": epilogue, "T": C_TYPE[kernel.dtype],
        "ctypes": {o.name: C_TYPE[o.dtype] for o in kernel.operands}, "size": extent(size),
        "decode": _decoded(axes, "element", " ".join(a.variable for a in axes), index), "threads": THREADS,
        "I": index,
    }  # fmt: skip
    launch = Launch(_blocks(-(-at(size, batch) // THREADS)), THREADS, "a thread computes a result", index)
    return kernel.template, context, launch


_IMAGE_SIDE = ("max_pool2d_scatter", "avg_pool2d_backward")
