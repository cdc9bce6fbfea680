"""The register tiles of the packed kernels: how many pixels, rows or taps one vector of channels meets at once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from graphc.emit.text import extent
from graphc.program.ir import Kernel
from graphc.types import Extent

# Sums that run side by side. Two FMA units with a latency of four cycles need eight to be busy, and eight
# vectors of 64 bytes fit the registers of every instruction set from AVX2 on.
ACCUMULATORS = 8
_TAPS = 12  # of the weights' gradient: whole rows of a kernel, up to 11 taps


def packed_facts(kernel: Kernel) -> dict[str, Any]:
    """Return the numbers that a packed kernel's template needs beside the description."""
    if kernel.template == "packed_conv2d":
        return _convolution_tile(kernel)
    if kernel.template == "packed_conv2d_backward_weight":
        return _tap_tile(kernel.spec)
    spec = kernel.spec
    fixed = isinstance(spec.rows, int)
    tile = min(ACCUMULATORS, spec.rows) if fixed else ACCUMULATORS
    return {
        "tile": tile,
        "rest": not fixed or spec.rows % tile != 0,
        "blocks": -(-spec.columns // spec.lanes),
        "rows_factor": extent(spec.rows),
        "depth_factor": extent(spec.depth),
    }


def _convolution_tile(kernel: Kernel) -> dict[str, Any]:
    """Divide a row of the output (or of pooling windows) into equal tiles."""
    spec, pool = kernel.spec, kernel.epilogue.pool if kernel.epilogue is not None else None
    rows, step = pool or (1, 1)
    width = spec.ow // step * step
    largest = max(step, ACCUMULATORS // rows // step * step)
    count = -(-width // largest)
    tile = -(-width // count // step) * step
    return {
        "tile": tile,
        "tiles": width // tile,
        "rest": width % tile,
        "rows_used": spec.oh // rows * rows,
        "blocks": -(-spec.o // spec.lanes),
    }


def _tap_tile(spec: Any) -> dict[str, Any]:
    """Choose the taps that are summed side by side: rows of one kernel, or small kernels of several channels."""
    area = spec.kh * spec.kw
    dy, dx = spec.dilation
    across = 2 * area <= _TAPS
    if across:
        channels = max(t for t in range(1, _TAPS // area + 1) if spec.c % t == 0)
        rows, groups = spec.kh, spec.c // channels
    else:
        channels = 1
        rows = max([1, *(r for r in range(1, spec.kh + 1) if spec.kh % r == 0 and r * spec.kw <= _TAPS)])
        groups = spec.c * (spec.kh // rows)
    plane = spec.h * spec.w
    taps = [
        SimpleNamespace(offset=c * plane + i * dy * spec.w + j * dx, place=(c * spec.kh + i) * spec.kw + j)
        for c in range(channels)
        for i in range(rows)
        for j in range(spec.kw)
    ]
    return {
        "taps": taps,
        "tile_channels": channels,
        "tile_rows": rows,
        "groups": groups,
        "across_channels": across,
        "n": extent(spec.n) if isinstance(spec.n, Extent) else spec.n,
    }
