"""Max pooling in the kernel of a convolution: what its templates need, and the helpers that take maxima."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from graphc.ops.pool2d import PoolGeometry
from graphc.ops.winograd import TILE, WinogradSpec
from graphc.program.ir import Kernel

_TURNED = 8  # windows that are transposed together


def pooled_facts(kernel: Kernel) -> SimpleNamespace | None:
    """Return what the template of a convolution needs to pool its result, None where it does not."""
    g = kernel.epilogue.pool if kernel.epilogue is not None else None
    if g is None:
        return None
    if isinstance(kernel.spec, WinogradSpec):
        return _tiles(kernel.spec, g)
    return SimpleNamespace(kernel=g.kernel, stride=g.stride, ragged=False)


def _tiles(spec: WinogradSpec, g: PoolGeometry) -> SimpleNamespace:
    """Return how the windows of Winograd's tiles are pooled: those of a group of tiles, row by row."""
    parts, together, side = spec.groups
    columns = side // together
    count = columns * TILE // g.stride[1] if parts > 1 else g.out[1]
    return SimpleNamespace(
        **_row(g, count, ragged=parts * count != g.out[1]),
        columns=columns,
        width=columns * TILE,
        step=TILE // g.stride[0],
    )


def _row(g: PoolGeometry, count: int, ragged: bool = False) -> dict[str, Any]:
    """Divide ``count`` windows of a row into equal parts; ``ragged`` says that some rows have fewer."""
    tile = -(-count // -(-count // _TURNED))
    return {
        "kernel": g.kernel, "stride": g.stride, "padding": g.padding, "out": g.out, "ragged": ragged,
        "count": count, "tile": tile, "tiles": count // tile, "rest": count % tile,
    }  # fmt: skip


_HEAD = """\
/* The maxima of `count` windows of {kh} x {kw} pixels, `step` apart, whose rows begin at the pointers. A pixel is a
 * vector of {lanes} channels. NaN counts as the largest number{more}. */
static inline void gc_pool{name}{kh}x{kw}_{lanes}_{S}(
    {parameters}, int64_t step, int64_t count)
{{
    for (int64_t x = 0; x < count; x++) {{
        GC_SIMD
        for (int64_t lane = 0; lane < {lanes}; lane++) {{
            const int64_t p = x * step + lane;
{body}
            best[x * {lanes} + lane] = most;
{end}        }}
    }}
}}
"""


def pooling_helper(kernel: tuple[int, int], lanes: int, suffix: str, ctype: str, index: bool) -> str:
    """Return the function that takes the maxima of windows, with the tap that each was found at or without."""
    rows, columns = kernel
    lines = [f"{ctype} most = row0[p]{', tap = 0' if index else ''};"]
    for k in range(1, rows * columns):
        i, j = divmod(k, columns)
        value = f"row{i}[p + {j * lanes}]" if j else f"row{i}[p]"
        lines.append(f"const {ctype} v{k} = {value};")
        if index:
            lines += [
                f"const int wins{k} = (v{k} > most) | ((v{k} != v{k}) & (most == most));",
                f"most = wins{k} ? v{k} : most;",
                f"tap = wins{k} ? {k} : tap;",
            ]
        else:
            lines.append(f"most = ((v{k} > most) | (v{k} != v{k})) ? v{k} : most;")
    written = ["best", "at"] if index else ["best"]
    parameters = [f"{ctype} *restrict {name}" for name in written]
    parameters += [f"const {ctype} *row{i}" for i in range(rows)]
    body = "\n".join(f"            {line}" for line in lines)
    return _HEAD.format(
        kh=rows, kw=columns, lanes=lanes, S=suffix, name="_index" if index else "",
        parameters=", ".join(parameters), more=", and the first of several counts" if index else "", body=body,
        end=f"            at[x * {lanes} + lane] = tap;\n" if index else "",
    )  # fmt: skip
