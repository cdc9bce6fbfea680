"""Max pooling in the kernel of a convolution: what its templates need, and the helpers that take maxima."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from graphc.ops.pool2d import PoolGeometry
from graphc.ops.pooled import pools_register_tiles, pools_winograd_tiles
from graphc.ops.winograd import TILE, WinogradSpec
from graphc.program.ir import Kernel

_TURNED = 8  # windows that are transposed together


def pooled_facts(kernel: Kernel) -> SimpleNamespace | None:
    """Return what the template of a convolution needs to pool its result, None where it does not."""
    g = kernel.epilogue.pool if kernel.epilogue is not None else None
    if g is None:
        return None
    spec = kernel.spec
    image = (spec.n, spec.o, spec.oh, spec.ow)
    if isinstance(spec, WinogradSpec):
        return _tiles(spec, g) if pools_winograd_tiles(spec, g) else _tile_rows(spec, g)
    if kernel.template != "packed_conv2d" or pools_register_tiles(g, image):
        return SimpleNamespace(kernel=g.kernel, stride=g.stride, ragged=False, walks=False)
    return SimpleNamespace(
        **_row(g, g.out[1]), **_map(g, spec.oh, spec.ow), width=g.reach[1], overlap=g.kernel[0] - g.stride[0]
    )


def _map(g: PoolGeometry, height: int, width: int) -> dict[str, Any]:
    """Return where windows leave the map, which has so many rows and columns."""
    return {
        "walks": True,
        "bottom": height,
        "above": g.padding[0],  # rows of the first windows
        "below": max(0, g.inside[0] - height),  # rows of the last windows
        "left": g.padding[1],
        "edge": g.padding[1] + width,
        "right": max(0, g.inside[1] - width),
    }


def _tiles(spec: WinogradSpec, g: PoolGeometry) -> SimpleNamespace:
    """Return how the windows of Winograd's tiles are pooled: those of a group of tiles, row by row."""
    parts, together, side = spec.groups
    columns = side // together
    count = columns * TILE // g.stride[1] if parts > 1 else g.out[1]
    return SimpleNamespace(
        **_row(g, count, ragged=parts * count != g.out[1]),
        walks=False,
        width=columns * TILE,
        step=TILE // g.stride[0],
    )


def _tile_rows(spec: WinogradSpec, g: PoolGeometry) -> SimpleNamespace:
    """Return how a task walks down the windows over Winograd's tiles, a group of rows of tiles after the other.

    With a group of ``rows`` rows of the map, ``step`` rows of windows are complete, ``late`` of which are begun by
    rows of the group before: ``overlap`` of its rows are kept.
    """
    rows = TILE * spec.groups[1]
    late = -((g.padding[0] - g.kernel[0]) // g.stride[0] + 1)
    return SimpleNamespace(
        **_row(g, g.out[1]),
        **_map(g, spec.oh, spec.ow),
        width=g.padding[1] + max(TILE * spec.tiles[1], g.inside[1]),
        overlap=g.padding[0] + late * g.stride[0],
        rows=rows,
        step=rows // g.stride[0],
        late=late,
        bands=spec.tiles[0] // spec.groups[1],
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
    {parameters},
    int64_t step, int64_t count)
{{
    for (int64_t x = 0; x < count; x++) {{
        GC_SIMD
        for (int64_t lane = 0; lane < {lanes}; lane++) {{
            const int64_t p = x * step + lane;
{body}
        }}
    }}
}}
"""


def pooling_helper(kernel: tuple[int, int], lanes: int, suffix: str, ctype: str, index: bool) -> str:
    """Return the function that takes the maxima of windows, with the tap that each was found at or without.

    Comparisons with NaN are false, so that NaN is looked for apart, in two pixels at once where no tap is wanted.
    """
    rows, columns = kernel
    values = [f"v{k}" for k in range(rows * columns)]
    lines = []
    for i in range(rows):
        places = [f"p + {j * lanes}" if j else "p" for j in range(columns)]
        read = zip(values[i * columns :], places, strict=False)
        lines.append(f"const {ctype} {', '.join(f'{v} = row{i}[{place}]' for v, place in read)};")
    lines.append(f"{ctype} most = v0{', tap = 0' if index else ''};")
    if index:
        for k, v in list(enumerate(values))[1:]:
            lines += [f"tap = {v} > most ? {k} : tap;", f"most = {v} > most ? {v} : most;"]
        lines.append(f"{ctype} wrong = {len(values)};")
        lines += [f"wrong = {v} != {v} ? {k} : wrong;" for k, v in reversed(list(enumerate(values)))]
        lines.append(f"at[x * {lanes} + lane] = wrong < {len(values)} ? wrong : tap;")
        lines.append(f"best[x * {lanes} + lane] = wrong < {len(values)} ? ({ctype})NAN : most;")
    else:
        lines += [f"most = {v} > most ? {v} : most;" for v in values[1:]]
        pairs = zip(values[::2], [*values[1::2], *values[-1:]], strict=False)
        found = [f"isunordered({v}, {w})" for v, w in pairs]
        lines += [
            f"{'wrong |=' if k else 'int wrong ='} {' | '.join(found[k : k + 3])};"
            for k in range(0, len(found), 3)
        ]
        lines.append(f"best[x * {lanes} + lane] = wrong ? ({ctype})NAN : most;")
    parameters = [f"{ctype} *restrict {name}" for name in (("best", "at") if index else ("best",))]
    parameters += [f"const {ctype} *row{i}" for i in range(rows)]
    return _HEAD.format(
        kh=rows, kw=columns, lanes=lanes, S=suffix, name="_index" if index else "",
        parameters=", ".join(parameters), more=", and the first of several counts" if index else "",
        body="\n".join(" " * 12 + line for line in lines),
    )  # fmt: skip
