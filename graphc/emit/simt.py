"""How a kernel is laid out over threads: which elements a thread, a warp or a block computes, and what it reads.

Loop nests without reductions have a thread for every element. Reductions have a thread, a warp or a block for every
result, by how many terms there are; partial sums are added by a fixed tree. Products (matrix products, convolutions and
both their derivatives) are tiles of rows by columns whose operands pass through shared memory; they differ in where an
element of an operand comes from, which is a formula.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any

from graphc.emit.kernels import AccumulatorText, EpilogueText, loop_body, sweep_text
from graphc.emit.text import C_TYPE, SUFFIX, extent, linear, minus, times
from graphc.program.ir import Access, Kernel, LoopSpec
from graphc.types import Extent, Shape, Size, at, product

THREADS = 256
WARP = 32
_MOST_BLOCKS = 65535
_SERIAL = 16  # terms up to which a thread takes a sum alone
_WARP_TERMS = 1024  # and up to which a warp does
_ENOUGH = 4096  # results that keep a device busy with a thread each, where neighbours are read by neighbours
_DEPTH = 16  # of a tile of a product
_EACH = 4  # rows and columns of a thread's part of a tile


@dataclass(frozen=True)
class Launch:
    """The blocks of a kernel, for the largest batch, their threads, and what each computes, in words."""

    grid: str
    threads: int
    mapping: str


def kernel_context(kernel: Kernel, batch: int) -> tuple[str, dict[str, Any], Launch]:
    """Return a kernel's template, what the template is given, and how the kernel is launched."""
    if kernel.template == "loops":
        return _loops(kernel, batch)
    if kernel.template in _PRODUCTS:
        return _product(kernel, batch)
    return _elements(kernel, batch)


# ------------------------------------------------------------------ indices


@dataclass(frozen=True)
class _Axis:
    variable: str
    size: Size


def _decoded(axes: Sequence[_Axis], flat: str, text: str) -> list[str]:
    """Return declarations of those axes' indices that a text reads, from the flat index over all of them."""
    lines, step = [], _one()
    for number, axis in reversed(list(enumerate(axes))):
        value = flat if step == 1 else f"{flat} / {_factor(step)}"
        if number:
            value = f"{value} % {_factor(axis.size)}"
        if re.search(rf"\b{axis.variable}\b", text):
            lines.append(f"const int64_t {axis.variable} = {'0' if axis.size == 1 else value};")
        step = step * axis.size
    return lines[::-1]


def _one() -> Size:
    return 1


def _factor(size: Size) -> str:
    text = extent(size)
    return text if re.fullmatch(r"\w+|\(.*\)", text) else f"({text})"


def _blocks(count: int) -> str:
    return str(max(1, min(count, _MOST_BLOCKS)))


# ------------------------------------------------------------------ loop nests


def _loops(kernel: Kernel, batch: int) -> tuple[str, dict[str, Any], Launch]:
    spec: LoopSpec = kernel.spec
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
        "kept": _decoded(kept, "result", whole),
        "sweeps": [
            {"text": s, "decoded": _decoded(reduced, "term", "\n".join(lines)), "last": s is sweeps[-1],
             "loops": bool(s.accumulators or s.stores)} for s, lines in zip(sweeps, inner, strict=True)
        ],
        "threads": THREADS,
    }  # fmt: skip
    per_block = {"thread": THREADS, "warp": THREADS // WARP, "block": 1}[mode]
    what = {"thread": "thread", "warp": "warp", "block": "block"}[mode]
    launch = Launch(_blocks(-(-results // per_block)), THREADS, f"a {what} computes a result")
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

_PRODUCTS = ("matmul", "conv2d", "conv2d_backward_data", "conv2d_backward_weight")


@dataclass(frozen=True)
class _Side:
    """Where an operand's element comes from: lines before, a condition or "", its text; what neighbours lie along."""

    lines: tuple[str, ...]
    condition: str
    element: str
    along_depth: bool


@dataclass(frozen=True)
class _Form:
    """A product: extents, both operands' elements at (i, k) and (k, j), and the indices of the result."""

    rows: Size
    columns: Size
    depth: Size
    planes: Shape
    a: _Side
    b: _Side
    plane: tuple[str, ...]  # lines at the start, from ``plane``, the number of the product among several
    result: tuple[str, ...]  # lines that give the result's indices, from i and j
    what: str


def _product(kernel: Kernel, batch: int) -> tuple[str, dict[str, Any], Launch]:
    assert kernel.epilogue is not None
    epilogue = EpilogueText(kernel, kernel.epilogue)
    form = {
        "matmul": _matmul, "conv2d": _convolution, "conv2d_backward_data": _backward_data,
        "conv2d_backward_weight": _backward_weight,
    }[kernel.template](kernel)  # fmt: skip
    rows, columns, planes = (at(size, batch) for size in (form.rows, form.columns, product(form.planes)))
    height, width = (64 if count > 32 else 32 for count in (rows, columns))
    threads = height * width // _EACH**2
    result = [line for line in form.result if re.search(rf"\b{_declared(line)}\b", epilogue.outer_lines)]
    needed = "\n".join([*result, epilogue.outer_lines, *form.a.lines, *form.b.lines, form.a.element, form.b.element])
    context = {
        "T": C_TYPE[kernel.dtype], "suffix": SUFFIX[kernel.dtype], "form": form, "epilogue": epilogue,
        "rows": extent(form.rows), "columns": extent(form.columns), "depth": extent(form.depth),
        "height": height, "width": width, "threads": threads, "tile_depth": _DEPTH, "each": _EACH,
        "plane": [line for line in form.plane if re.search(rf"\b{_declared(line)}\b", needed)],
        "result": result,
    }  # fmt: skip
    across, down = -(-columns // width), -(-rows // height)
    grid = f"dim3({across}, {min(down, _MOST_BLOCKS)}, {min(planes, _MOST_BLOCKS)})"
    mapping = f"a block computes {height} x {width} of {form.what}, a thread {_EACH} x {_EACH} of them"
    return "product", context, Launch(grid, threads, mapping)


def _declared(line: str) -> str:
    """Return the variable that a declaration declares."""
    found = re.match(r"const [\w ]+?[ *]+(?:const )?(\w+) =", line)
    assert found is not None, line
    return found[1]


def _matmul(kernel: Kernel) -> _Form:
    s = kernel.spec
    lead = [_Axis(f"i{a}", e) for a, e in enumerate(s.lead)]
    r = len(lead)
    names = [a.variable for a in lead]
    above = [linear(Access(strides), names) if lead else "" for strides in (s.lead_strides_a, s.lead_strides_b)]
    bases = [f"{text} + " if text and text != "0" else "" for text in above]
    rows, columns, depth = (_factor(size) for size in (s.rows, s.columns, s.depth))
    a = f"a[{bases[0]}{f'k * {rows} + row' if s.transpose_a else f'row * {depth} + k'}]"
    b = f"b[{bases[1]}{f'column * {depth} + k' if s.transpose_b else f'k * {columns} + column'}]"
    plane = _decoded(lead, "plane", " ".join(names)) if lead else []
    return _Form(
        s.rows, s.columns, s.depth, s.lead, _Side((), "", a, not s.transpose_a), _Side((), "", b, s.transpose_b),
        tuple(plane), (f"const int64_t i{r} = row;", f"const int64_t i{r + 1} = column;"), "the product",
    )  # fmt: skip


def _tap(s: Any, flat: str) -> list[str]:
    """Return the indices of a tap of the kernel, from the flat index over channels and taps."""
    lines = [f"const int64_t q = {flat} / {s.kh * s.kw};" if s.kh * s.kw > 1 else f"const int64_t q = {flat};"]
    lines.append(f"const int64_t ki = {flat} / {s.kw} % {s.kh};" if s.kh > 1 else "const int64_t ki = 0;")
    lines.append(f"const int64_t kj = {flat} % {s.kw};" if s.kw > 1 else "const int64_t kj = 0;")
    return lines


def _pixel(flat: str, height: int, width: int, names: tuple[str, str, str]) -> list[str]:
    """Return image, row and column from the flat index over pixels of all images."""
    n, y, x = names
    return [
        f"const int64_t {n} = {flat} / {height * width};",
        f"const int64_t {y} = {flat} / {width} % {height};",
        f"const int64_t {x} = {flat} % {width};",
    ]


def _image_place(g: Any, y: str, x: str) -> list[str]:
    """Return where a tap of the window at (y, x) meets the image."""
    (top, _), (left, _) = g.padding
    return [
        f"const int64_t h = {y}{times(g.stride[0])} + ki{times(g.dilation[0])}{minus(top)};",
        f"const int64_t w = {x}{times(g.stride[1])} + kj{times(g.dilation[1])}{minus(left)};",
    ]


_INSIDE = "h >= 0 && h < {h} && w >= 0 && w < {w}"


def _groups(s: Any, rows: int) -> tuple[int, int, list[str], str, str]:
    """Return channels in and out of a group, lines, and what to add to a channel of the image and of the result."""
    g = s.geometry.groups
    inside, outside = s.c // g, s.o // g
    if g == 1:
        return inside, outside, [], "", ""
    return inside, outside, ["const int64_t group = plane;"], f"group * {inside} + ", f"group * {outside} + "


def _convolution(kernel: Kernel) -> _Form:
    s, g = kernel.spec, kernel.spec.geometry
    inside, outside, plane, first_c, first_o = _groups(s, s.o)
    depth = inside * s.kh * s.kw
    a = _Side((), "", f"weight[({first_o}row) * {depth} + k]" if first_o else f"weight[row * {depth} + k]", True)
    lines = [*_tap(s, "k"), *_pixel("column", s.oh, s.ow, ("n", "y", "x")), *_image_place(g, "y", "x")]
    element = f"in[((n * {s.c} + {first_c}q) * {s.h} + h) * {s.w} + w]"
    b = _Side(tuple(lines), _INSIDE.format(h=s.h, w=s.w), element, False)
    result = (*_pixel("column", s.oh, s.ow, ("n", "y", "x")), f"const int64_t o = {first_o}row;")
    return _Form(
        outside, s.n * (s.oh * s.ow), depth, (g.groups,), a, b, tuple(plane), result, "channels by pixels"
    )  # fmt: skip


def _backward_data(kernel: Kernel) -> _Form:
    s, g = kernel.spec, kernel.spec.geometry
    inside, outside, plane, first_c, first_o = _groups(s, s.c)
    taps = s.kh * s.kw
    a = _Side(
        (f"const int64_t q = k / {taps};", f"const int64_t tap = k % {taps};"), "",
        f"weight[(({first_o}q) * {inside} + row) * {taps} + tap]", False,
    )  # fmt: skip
    (top, _), (left, _) = g.padding
    lines = [*_tap(s, "k"), *_pixel("column", s.h, s.w, ("n", "y", "x"))]
    lines.append(f"const int64_t h = y + {top} - ki{times(g.dilation[0])};")
    lines.append(f"const int64_t w = x + {left} - kj{times(g.dilation[1])};")
    whole = "".join(f" && {v} % {st} == 0" for v, st in zip("hw", g.stride, strict=True) if st > 1)
    rows, columns = (v if st == 1 else f"{v} / {st}" for v, st in zip("hw", g.stride, strict=True))
    condition = f"h >= 0 && w >= 0{whole} && {rows} < {s.oh} && {columns} < {s.ow}"
    element = f"grad[((n * {s.o} + {first_o}q) * {s.oh} + {rows}) * {s.ow} + {columns}]"
    b = _Side(tuple(lines), condition, element, False)
    result = (*_pixel("column", s.h, s.w, ("n", "y", "x")), f"const int64_t c = {first_c}row;")
    return _Form(
        inside, s.n * (s.h * s.w), outside * taps, (g.groups,), a, b, tuple(plane), result, "channels by pixels"
    )  # fmt: skip


def _backward_weight(kernel: Kernel) -> _Form:
    s, g = kernel.spec, kernel.spec.geometry
    inside, outside, plane, first_c, first_o = _groups(s, s.o)
    pixels = s.oh * s.ow
    a = _Side(
        (f"const int64_t n = k / {pixels};", f"const int64_t pixel = k % {pixels};"), "",
        f"grad[(n * {s.o} + {first_o}row) * {pixels} + pixel]", True,
    )  # fmt: skip
    lines = [*_tap(s, "column"), *_pixel("k", s.oh, s.ow, ("n", "y", "x")), *_image_place(g, "y", "x")]
    element = f"in[((n * {s.c} + {first_c}q) * {s.h} + h) * {s.w} + w]"
    b = _Side(tuple(lines), _INSIDE.format(h=s.h, w=s.w), element, True)
    taps = s.kh * s.kw
    result = (
        f"const int64_t o = {first_o}row;", f"const int64_t c = column / {taps};",
        f"const int64_t i = column / {s.kw} % {s.kh};", f"const int64_t j = column % {s.kw};",
    )  # fmt: skip
    return _Form(
        outside, inside * taps, s.n * pixels, (g.groups,), a, b, tuple(plane), result,
        "weights, by output channels",
    )  # fmt: skip


# ------------------------------------------------------------------ one result a thread


def _elements(kernel: Kernel, batch: int) -> tuple[str, dict[str, Any], Launch]:
    """Pooling, its derivatives, gather and scatter: a thread computes an element of the result."""
    spec = kernel.spec
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
        "decode": _decoded(axes, "element", " ".join(a.variable for a in axes)), "threads": THREADS,
    }  # fmt: skip
    count = at(size, batch)
    return kernel.template, context, Launch(_blocks(-(-count // THREADS)), THREADS, "a thread computes a result")


_IMAGE_SIDE = ("max_pool2d_scatter", "avg_pool2d_backward")
