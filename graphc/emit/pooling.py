"""Pooling: which windows leave the image, and how the templates lay a small image out so that vectors fill."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

from graphc.ops.pool2d import PoolGeometry
from graphc.program.ir import Kernel

_WINDOWS = 128
# An image of pooling is copied to rows that are a multiple of this, if it is small.
_VECTOR, _PLANE_BYTES = 16, 2**18
_WIDEST, _USUAL = {"max_pool2d": 64}, 128  # the others' loops over single rows are slower


def pool_facts(kernel: Kernel) -> dict[str, Any]:
    """Return which windows leave the image, and the count of an average where all windows have the same."""
    spec, g = kernel.spec, kernel.spec.geometry
    small = spec.w <= _WIDEST.get(kernel.template, _USUAL)
    columns = _columns(g, spec.w)
    shifts = [column.shift for column in columns] or [0]
    margin = max(0, *shifts)
    leaves = [
        p > 0 or (o - 1) * s + (k - 1) * d - p >= size
        for p, o, s, k, d, size in zip(
            g.padding, g.out, g.stride, g.kernel, g.dilation, (spec.h, spec.w), strict=True
        )
    ]
    line = max(spec.w + margin - min(shifts), margin + (g.out[1] - 1) * g.stride[1] + 1)
    bands = [b for b in range(1, g.out[0] + 1) if g.out[0] % b == 0 and b * g.out[1] <= _WINDOWS]
    return {
        "band": max(bands, default=1),  # rows of windows whose cotangents are spread at a time
        "leaves_h": leaves[0],
        "leaves_w": leaves[1],
        "ragged": g.out[0] * g.kernel[0] != spec.h or g.out[1] * g.kernel[1] != spec.w,
        "constant_count": spec.divisor or (None if any(leaves) else g.area),
        "columns": columns,
        # A row of windows spread out by the stride, with room for every shift: what a pixel reads lies side by
        # side, and no two writes meet (gcc 12 reorders adds to neighbours that overlap).
        "margin": margin,
        "line": line,
        "plane": _plane(spec) if small else None,
        "spread": _spread(spec, line, margin, shifts) if small else None,
    }


def _vectors(extent_: int) -> int:
    return -(-extent_ // _VECTOR) * _VECTOR


def _plane(spec: Any) -> SimpleNamespace | None:
    """Return how a small image lies in rows of whole vectors with a border around it; None where it is large.

    Rows of windows lie in the same way, so that one loop goes over all of them.
    """
    g = spec.geometry
    rows, columns = (
        (o - 1) * s + (k - 1) * d + 1
        for o, s, k, d in zip(g.out, g.stride, g.kernel, g.dilation, strict=True)
    )
    unit = math.lcm(_VECTOR, g.stride[1])
    pitch = -(-columns // unit) * unit
    if 8 * (rows + 2 * g.out[0]) * pitch > _PLANE_BYTES:
        return None
    return SimpleNamespace(
        rows=rows, pitch=pitch, windows=g.out[0] * pitch // g.stride[1],
        top=g.out[0] * pitch + (g.kernel[1] - 1) * g.dilation[1],
        inside=min(spec.h, rows - g.padding[0]), count=min(spec.w, pitch - g.padding[1]),
    )  # fmt: skip


def _spread(spec: Any, line: int, margin: int, shifts: list[int]) -> SimpleNamespace | None:
    """Return how the cotangents of a small image lie, at the distance of their windows; None where it is large."""
    g = spec.geometry
    rows = max((g.out[0] - 1) * g.stride[0] + (g.kernel[0] - 1) * g.dilation[0] + 1, spec.h + g.padding[0])
    pitch = _vectors(line)
    if 4 * (2 * g.out[0] + rows) * pitch > _PLANE_BYTES:
        return None
    return SimpleNamespace(rows=rows, pitch=pitch, size=g.out[0] * pitch + margin - min(shifts))


def _columns(g: PoolGeometry, width: int) -> list[SimpleNamespace]:
    """Return, for every column of a window, the windows x in [begin, end) for which it lies inside the image.

    Column j of window x is column ``x*stride + shift`` of the image.
    """
    found = []
    for j in range(g.kernel[1]):
        shift = j * g.dilation[1] - g.padding[1]
        begin = max(0, -(shift // g.stride[1]))
        end = min(g.out[1], (width - 1 - shift) // g.stride[1] + 1)
        if begin < end:
            found.append(SimpleNamespace(j=j, shift=shift, begin=begin, end=end))
    return found
