"""Products (of matrices, convolutions and both their derivatives) as tiles of rows by columns.

Operands pass through shared memory; products differ in where an element of an operand comes from, which is a formula.
Where there are too few tiles to keep a device busy, the depth is divided into shares, whose sums lie in a workspace
until a second kernel adds them, in a fixed order. How many there are depends on the largest batch alone: so do the
bits of a result.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from graphc.emit.grid import MOST_BLOCKS, THREADS, Axis, Launch, blocks, decoded, factor, index_type
from graphc.emit.kernels import EpilogueText
from graphc.emit.text import C_TYPE, extent, linear, minus, times
from graphc.emit.tiling import Problem, Tiling, tiles_to_measure, tiling
from graphc.program.ir import Access, Kernel, Tile
from graphc.types import ITEMSIZE, Precision, Size, at, coefficients_of, product

_FEW = 8  # shares that a thread adds alone


@dataclass(frozen=True)
class _Side:
    """Where an operand's element comes from: lines before, a condition or "", its text; what neighbours lie along.

    ``run`` neighbours are read together, where every run is whole and lies at a multiple of its length.
    """

    lines: tuple[str, ...]
    condition: str
    element: str
    along_depth: bool
    run: int = 1


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


def _as_product(form: _Form, kernel: Kernel, batch: int, precision: Precision) -> Problem:
    """Return what the choice of tiles depends on."""
    itemsize = ITEMSIZE[kernel.dtype]
    rows, columns, depth, planes = (at(s, batch) for s in (form.rows, form.columns, form.depth, form.planes))
    element = 2 if precision == "bf16" else itemsize
    return Problem(rows, columns, depth, planes, itemsize, element, min(form.a.run, form.b.run) == 1)


def tiles_of(kernel: Kernel, batch: int, precision: Precision) -> list[Tile]:
    """Return the tiles of a product that are worth measuring, the cost model's first."""
    form = FORMS[kernel.template](kernel, _Lines(index_type(kernel, batch)))
    return tiles_to_measure(_as_product(form, kernel, batch, precision))


def product_context(kernel: Kernel, batch: int, precision: Precision) -> tuple[str, dict[str, Any], Launch]:
    """Return a product's template, what the template is given, and how the kernel is launched."""
    assert kernel.epilogue is not None
    epilogue, index = EpilogueText(kernel, kernel.epilogue), index_type(kernel, batch)
    form = FORMS[kernel.template](kernel, _Lines(index))
    tiles = tiling(_as_product(form, kernel, batch, precision), kernel.tile)
    result = _read(form.result, epilogue.outer_lines)
    sides = (*form.a.lines, form.a.element, *form.b.lines, form.b.element)
    plane = _read(form.plane, "\n".join([*result, epilogue.outer_lines, *sides]))
    context = {
        **_common(kernel, form, tiles, index), "sums": _sums(kernel, tiles, precision), "form": form,
        "plane": plane, "epilogue": epilogue, "result": result,
    }  # fmt: skip
    planes, results = at(form.planes, batch), at(form.rows * form.columns * form.planes, batch)
    deep = planes * tiles.shares if tiles.shares > 1 else min(planes, MOST_BLOCKS)
    each = f"{4 * tiles.patches} x {4 * tiles.patches}"
    if precision != "fp32":
        each += " (by tensor cores)"
    mapping = f"a block computes {tiles.height} x {tiles.width} {form.what}, a thread {each} of them"
    if tiles.shares > 1:
        mapping += f", over one of {tiles.shares} shares of the depth"
    grid = f"dim3({tiles.across}, {min(tiles.down, MOST_BLOCKS)}, {deep})"
    workspace = tiles.shares * results * ITEMSIZE[kernel.dtype] if tiles.shares > 1 else 0
    # With little to compute of indices, the registers of two large blocks fit into a multiprocessor.
    plain = not form.a.lines and not form.b.lines
    lean = tiles.patches > 1 and min(form.a.run, form.b.run) > 1 and (plain or precision == "fp32")
    lean = lean and index == "int"
    return "product", context, Launch(grid, tiles.threads, mapping, index, workspace, 2 if lean else 1)


def shares_context(kernel: Kernel, batch: int, precision: Precision) -> tuple[str, dict[str, Any], Launch]:
    """Return the same of the kernel that adds the shares of a product's depth, if it has several."""
    _, context, whole = product_context(kernel, batch, precision)
    form, shares = context["form"], context["shares"]
    parts = 1 if shares <= _FEW else _FEW
    outer = "\n".join([*context["result"], context["epilogue"].outer_lines])
    plane = _read(form.plane, outer)
    axes = [Axis("plane", form.planes), Axis("row", form.rows), Axis("column", form.columns)]
    places = decoded(axes, "element", "\n".join([outer, *plane]), whole.index)
    context = {**context, "parts": parts, "places": places, "plane": plane, "threads": THREADS}
    who = "a thread adds" if parts == 1 else f"{parts} threads add"
    grid = blocks(-(-at(product(a.size for a in axes), batch) // (THREADS // parts)))
    launch = Launch(grid, THREADS, f"{who} the shares of a result", whole.index, whole.workspace)
    return "product_shares", context, launch


def workspace_bytes(kernel: Kernel, batch: int, precision: Precision) -> int:
    """Return how many bytes a kernel needs for a while beside its operands."""
    return product_context(kernel, batch, precision)[2].workspace if kernel.template in FORMS else 0


def _sums(kernel: Kernel, tiles: Tiling, precision: Precision) -> str:
    """Return the type of a warp's sums."""
    if precision == "fp32":
        return f"gc_sums<{C_TYPE[kernel.dtype]}, {tiles.patches}>"
    return f"gc_tensor_sums<gc_{precision}, {tiles.patches}>"


def _common(kernel: Kernel, form: _Form, tiles: Tiling, index: str) -> dict[str, Any]:
    results = extent(form.rows * form.columns * form.planes)
    return {
        "T": C_TYPE[kernel.dtype], "I": index, "height": tiles.height, "width": tiles.width,
        "rows": extent(form.rows), "columns": extent(form.columns), "depth": extent(form.depth),
        "planes": "" if form.planes == 1 else extent(form.planes), "results": results,
        "shares": tiles.shares,
        "length": tiles.length,
    }  # fmt: skip


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


def _run(kernel: Kernel, *steps: Size) -> int:
    """Return how many neighbours are read together: 16 bytes where all rows begin at multiples of that, else one."""
    run = 16 // ITEMSIZE[kernel.dtype]
    return 1 if any(c % run for step in steps for c in coefficients_of(step)) else run


def _is_pointwise(s: Any) -> bool:
    """Whether a convolution has a single tap, and pixels of both images correspond."""
    g = s.geometry
    return (s.kh, s.kw, *g.stride, *g.padding) == (1, 1, 1, 1, (0, 0), (0, 0))


def _pointwise(kernel: Kernel, to: _Lines, image: str, channel: str, pixel: str, along_depth: bool) -> _Side:
    """Return the side of an image of whose channels a pixel is read."""
    pixels = kernel.spec.h * kernel.spec.w
    lines = (to.let("n", f"{pixel} / {pixels}"), to.let("pixel", f"{pixel} % {pixels}"))
    element = f"{image}[(n * {channel}) * {pixels} + pixel]"
    return _Side(lines, "", element, along_depth, _run(kernel, pixels))


def _matmul(kernel: Kernel, to: _Lines) -> _Form:
    s = kernel.spec
    lead = [Axis(f"i{a}", e) for a, e in enumerate(s.lead)]
    names, r = [a.variable for a in lead], len(lead)
    above = [
        linear(Access(strides), names) if lead else "0" for strides in (s.lead_strides_a, s.lead_strides_b)
    ]
    bases = ["" if text == "0" else f"{text} + " for text in above]
    rows, columns, depth = (factor(size) for size in (s.rows, s.columns, s.depth))
    a = f"a[{bases[0]}{f'k * {rows} + row' if s.transpose_a else f'row * {depth} + k'}]"
    b = f"b[{bases[1]}{f'column * {depth} + k' if s.transpose_b else f'k * {columns} + column'}]"
    run_a = _run(kernel, s.rows if s.transpose_a else s.depth, *s.lead_strides_a)
    run_b = _run(kernel, s.depth if s.transpose_b else s.columns, *s.lead_strides_b)
    return _Form(
        s.rows, s.columns, s.depth, product(s.lead), _Side((), "", a, not s.transpose_a, run_a),
        _Side((), "", b, s.transpose_b, run_b), tuple(decoded(lead, "plane", " ".join(names), to.index)),
        (to.let(f"i{r}", "row"), to.let(f"i{r + 1}", "column")), "elements",
    )  # fmt: skip


class _Groups:
    """The channels of a convolution's group, and what to add to an index within it."""

    def __init__(self, s: Any):
        self.count = s.geometry.groups
        self.inside, self.outside = s.c // self.count, s.o // self.count
        several = self.count > 1
        self.first_c = f"plane * {self.inside} + " if several else ""
        self.first_o = f"plane * {self.outside} + " if several else ""


def _convolution(kernel: Kernel, to: _Lines) -> _Form:
    s, group = kernel.spec, _Groups(kernel.spec)
    depth = group.inside * s.kh * s.kw
    weight = f"({group.first_o}row)" if group.first_o else "row"
    lines = [*to.tap(s, "k"), *to.pixel("column", s.oh, s.ow), *to.place(s.geometry)]
    element = f"in[((n * {s.c} + {group.first_c}q) * {s.h} + h) * {s.w} + w]"
    image = _Side(tuple(lines), _inside(s), element, False)
    if _is_pointwise(s):
        image = _pointwise(kernel, to, "in", f"{s.c} + {group.first_c}k", "column", False)
    return _Form(
        group.outside, s.n * (s.oh * s.ow), depth, group.count,
        _Side((), "", f"weight[{weight} * {depth} + k]", True, _run(kernel, depth)), image, (),
        (*to.pixel("column", s.oh, s.ow), to.let("o", f"{group.first_o}row")), "channels by pixels",
    )  # fmt: skip


def _backward_data(kernel: Kernel, to: _Lines) -> _Form:
    s, g, group = kernel.spec, kernel.spec.geometry, _Groups(kernel.spec)
    taps, ((top, _), (left, _)) = s.kh * s.kw, g.padding
    filters = f"weight[(({group.first_o}q) * {group.inside} + row) * {taps} + tap]"
    a = _Side((to.let("q", f"k / {taps}"), to.let("tap", f"k % {taps}")), "", filters, False)
    lines = [*to.tap(s, "k"), *to.pixel("column", s.h, s.w)]
    lines.append(to.let("h", f"y{f' + {top}' if top else ''} - ki{times(g.dilation[0])}"))
    lines.append(to.let("w", f"x{f' + {left}' if left else ''} - kj{times(g.dilation[1])}"))
    whole = "".join(f" && {v} % {step} == 0" for v, step in zip("hw", g.stride, strict=True) if step > 1)
    rows, columns = (v if step == 1 else f"{v} / {step}" for v, step in zip("hw", g.stride, strict=True))
    condition = f"h >= 0 && w >= 0{whole} && {rows} < {s.oh} && {columns} < {s.ow}"
    element = f"grad[((n * {s.o} + {group.first_o}q) * {s.oh} + {rows}) * {s.ow} + {columns}]"
    image = _Side(tuple(lines), condition, element, False)
    if _is_pointwise(s):
        image = _pointwise(kernel, to, "grad", f"{s.o} + {group.first_o}k", "column", False)
        filters = f"weight[({group.first_o}k) * {group.inside} + row]"
        a = _Side((), "", filters, False, _run(kernel, group.inside))
    return _Form(
        group.inside, s.n * (s.h * s.w), group.outside * taps, group.count, a, image, (),
        (*to.pixel("column", s.h, s.w), to.let("c", f"{group.first_c}row")), "channels by pixels",
    )  # fmt: skip


def _backward_weight(kernel: Kernel, to: _Lines) -> _Form:
    s, group = kernel.spec, _Groups(kernel.spec)
    pixels, taps = s.oh * s.ow, s.kh * s.kw
    a = _Side(
        (to.let("n", f"k / {pixels}"), to.let("pixel", f"k % {pixels}")), "",
        f"grad[(n * {s.o} + {group.first_o}row) * {pixels} + pixel]", True, _run(kernel, pixels),
    )  # fmt: skip
    lines = [*to.tap(s, "column"), *to.pixel("k", s.oh, s.ow), *to.place(s.geometry)]
    element = f"in[((n * {s.c} + {group.first_c}q) * {s.h} + h) * {s.w} + w]"
    image = _Side(tuple(lines), _inside(s), element, True)
    if _is_pointwise(s):
        image = _pointwise(kernel, to, "in", f"{s.c} + {group.first_c}column", "k", True)
    result = (
        to.let("o", f"{group.first_o}row"), to.let("c", f"column / {taps}"),
        to.let("i", f"column / {s.kw} % {s.kh}"), to.let("j", f"column % {s.kw}"),
    )  # fmt: skip
    return _Form(
        group.outside, group.inside * taps, s.n * pixels, group.count, a,
        image, (), result, "output channels by taps",
    )  # fmt: skip


FORMS = {
    "matmul": _matmul, "conv2d": _convolution, "conv2d_backward_data": _backward_data,
    "conv2d_backward_weight": _backward_weight,
}  # fmt: skip
