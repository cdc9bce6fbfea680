"""The chunks in which a product packs its large matrix: as many columns and as much depth as suit the caches."""

from __future__ import annotations

from typing import Any

from graphc.emit.text import extent
from graphc.ops.chunked import SUM_BYTES, ChunkedMatMulSpec
from graphc.program.ir import Kernel
from graphc.types import ITEMSIZE, at

_BESIDE = 8  # vectors of columns of a task, at the most
_TASKS = 16


def chunked_facts(kernel: Kernel, batch: int) -> dict[str, Any]:
    """Return the numbers that the template needs beside the description.

    A row of the plain B is contiguous along the columns, one of the transposed B along the depth: the first has
    chunks of many columns, the second of great depth, so that each line of the memory is read in one go.
    """
    spec: ChunkedMatMulSpec = kernel.spec
    itemsize = ITEMSIZE[kernel.dtype]
    blocks, most = -(-spec.columns // spec.lanes), at(spec.rows, batch)
    vector = spec.lanes * itemsize
    fitting = min(_BESIDE, SUM_BYTES // (most * vector), max(1, blocks // _TASKS))
    beside = 1 if spec.transpose_b else max(k for k in range(1, fitting + 1) if blocks % k == 0)
    chunk = chunk_of(spec.depth, spec.panel_bytes // (beside * vector))
    tile = min(spec.sums, most) if isinstance(spec.rows, int) else spec.sums
    width = beside * spec.lanes
    return {
        "most": most,
        "beside": beside,
        "width": width,
        "blocks": blocks,
        "groups": blocks // beside,
        "chunk": chunk,
        "tile": tile,
        "whole": most >= tile,
        "rest": not isinstance(spec.rows, int) or spec.rows % tile != 0,
        "exact": spec.columns % spec.lanes == 0,
        "rows": extent(spec.rows),
        # Lines of the next chunk: as many as this one has vectors, if neither is cut short.
        "fetches": spec.depth % chunk == 0 and spec.columns % spec.lanes == 0 and chunk % spec.lanes == 0,
    }


def chunk_of(depth: int, most: int) -> int:
    """Return the depth of the chunks: a divisor, unless all are small."""
    return next((c for c in range(min(depth, most), most // 2, -1) if depth % c == 0), min(depth, most))
