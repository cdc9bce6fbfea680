"""The register tiles of the packed kernels: how many pixels, rows or taps one vector of channels meets at once."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from graphc.emit.text import extent
from graphc.ops.packed import Border, PackedConvSpec, PackedMatMulSpec, tap_channels, tap_rows
from graphc.ops.pool2d import PoolGeometry
from graphc.ops.pooled import pools_register_tiles, walk
from graphc.program.ir import Kernel
from graphc.types import ITEMSIZE, at

_TILE_BYTES = 2**16  # of a padded image: half of what a core's second cache holds, on small machines
_MANY_CHANNELS = 32
_SUM_BYTES = 2**15  # of partial sums of the weights' gradient, on a thread's stack
_PACKED_BYTES = 2**15  # of the cotangent
_MANY_ZEROS = 1 / 8  # of all multiply-adds, to be worth skipping
_BAND, _BAND_BYTES = 64, 2**18  # rows of a transposed factor that are copied at a time
_STRETCH_BYTES = 2**18  # of B, for which a few rows of the result are written
_AHEAD = 4  # vectors of columns: what is written there is asked for by then
_TASKS = 16  # at the least, where there is as much work, so that one slow core does not delay all
_COPIES = 8  # tasks of a convolution that fill a tile each, at the largest batch
_UNTURNED = 16  # pixels of a tile whose sums stay in vectors of channels
_FEWEST = 4  # of them at a batch of one


def packed_facts(kernel: Kernel, batch: int) -> dict[str, Any]:
    """Return the numbers that a packed kernel's template needs beside the description."""
    if kernel.template == "packed_conv2d":
        return _convolution_tile(kernel, at(kernel.spec.n, batch))
    if kernel.template == "packed_conv2d_backward_weight":
        return _tap_tile(kernel.spec)
    return _product_tile(kernel, batch)


def _product_tile(kernel: Kernel, batch: int) -> dict[str, Any]:
    """Divide the rows into tiles; those that are left meet several vectors of columns at once."""
    spec: PackedMatMulSpec = kernel.spec
    most = at(spec.depth, batch)
    blocks, rows, tile = -(-spec.columns // spec.lanes), spec.rows, spec.sums
    beside = max(k for k in range(1, spec.sums + 1) if blocks % k == 0)
    if isinstance(rows, int):
        tile = min(tile, max(rows, 1))
        whole = tile >= beside
        left, start = rows % tile != 0 or not whole, str(rows // tile * tile if whole else 0)
    else:
        whole, left, start = True, True, f"{extent(rows)} / {tile} * {tile}"
    itemsize = ITEMSIZE[kernel.dtype]
    return {
        "tile": tile,
        "band": _band(spec, tile, most * itemsize) if whole else 0,
        "ahead": _AHEAD * spec.lanes,
        "stretch": max(1, _STRETCH_BYTES // (most * spec.lanes * itemsize)),
        "most": most,
        "whole": whole,
        "rest": left,
        "rest_from": start,
        "beside": beside,
        "panels": [str(spec.depth * q) if q else "" for q in range(beside)],
        "varies": not isinstance(rows, int),
        "groups": blocks // beside,
        "blocks": blocks,
        "rows_factor": extent(spec.rows),
        "depth_factor": extent(spec.depth),
    }


def _band(spec: PackedMatMulSpec, tile: int, column_bytes: int) -> int:
    """Return how many rows of a transposed A are copied at a time; 0 where they are few, or too long."""
    fitting = _BAND_BYTES // column_bytes // tile * tile
    band = min(_BAND // tile * tile, fitting)
    worth = spec.transpose_a and isinstance(spec.rows, int) and spec.rows >= _TASKS * _BAND
    return band if worth and band >= 2 * tile else 0


def _convolution_tile(kernel: Kernel, images: int) -> dict[str, Any]:
    """Divide a row of the output (or of pooling windows) into equal tiles, and the work into tasks."""
    spec, pool = kernel.spec, kernel.epilogue.pool if kernel.epilogue is not None else None
    blocks = -(-spec.o // spec.lanes)
    if pool is None or pools_register_tiles(pool, (spec.n, spec.o, spec.oh, spec.ow)):
        rows, step = pool.kernel if pool else (1, 1)
        width, used = spec.ow // step * step, spec.oh // rows * rows
        # A tile is turned from pixels of all channels to channels of all pixels, 8 (or 8 windows) at a time.
        tile = _equal(width, max(step, min(spec.sums // rows, 8 * step) // step * step), step)
        tasks = _image_tile(spec, rows, used, blocks, tile, images)
    else:
        rows, width = 1, min(spec.ow, pool.inside[1])
        tile = _equal(width, min(spec.sums, _UNTURNED))
        used, tasks = 0, _walk(spec, pool, blocks, images)
    return {
        "tile": tile,
        "tiles": width // tile,
        "rest": width % tile,
        "rows_used": used,
        "blocks": blocks,
        "strip": 0,
        "padded": None,
        "skips": _skips(spec, rows),
        "bands": 1,
        "walk": None,
        **tasks,
    }


def _equal(width: int, largest: int, step: int = 1) -> int:
    """Return the width of the tiles of a row: as equal as can be, multiples of the step."""
    whole = [t for t in range(largest, largest // 2, -step) if t % step == 0 and width % t == 0]
    return whole[0] if whole else -(-width // -(-width // largest) // step) * step


def _walk(spec: PackedConvSpec, g: PoolGeometry, blocks: int, images: int) -> dict[str, Any]:
    """Return how tasks walk down the windows, and what they copy of the image at a step."""
    steps = walk(spec, g)
    assert steps is not None
    rows = (steps.rows - 1) * g.stride[0] + g.kernel[0]
    padded, groups = None, {"together": 1, "groups": blocks}
    if steps.copied:
        padded = border_facts(spec.border, spec.h, spec.w, *spec.tile_extents(rows))
        groups = _groups(spec, blocks, steps.parts, images)
        if groups["together"] > steps.together:
            groups = {"together": steps.together, "groups": -(-blocks // steps.together)}
    return {"walk": SimpleNamespace(**vars(steps), height=rows), "padded": padded, **groups}


def _skips(spec: PackedConvSpec, rows: int) -> SimpleNamespace | None:
    """Return where kernel rows begin and end to meet the image; None where few meet the zeros around it.

    Kernel row i meets row top + i - ``above`` of the image, for i from ``above`` - top up to ``below`` - top.
    """
    (above, below), _ = spec.border.padding
    plain = rows == 1 and spec.stride[0] == spec.dilation[0] == spec.border.spread[0] == 1
    zeros = above * (above + 1) / 2 + below * (below + 1) / 2  # kernel rows in all rows of the output
    if not plain or min(above, below) < 0 or zeros < _MANY_ZEROS * spec.oh * spec.kh:
        return None
    return SimpleNamespace(above=above, below=spec.h + above)


def _image_tile(
    spec: PackedConvSpec, rows: int, used: int, blocks: int, tile: int, images: int
) -> dict[str, Any]:
    """Choose whether a task reads the image from a copy of its own: for a border, or for many channels.

    The channels of a pixel are a whole image apart: read in place, they miss in every cache and in the TLB.
    """
    if spec.oh == 1 and (spec.kh, spec.kw) == (1, 1) and not spec.border and spec.c >= _MANY_CHANNELS:
        return _strip(spec, blocks, tile, images)
    if spec.border or (spec.c >= _MANY_CHANNELS and spec.tile_bytes(rows) <= _tile_limit(spec)):
        return _padded_tile(spec, rows, used, blocks, images)
    return {}


def _tile_limit(spec: PackedConvSpec) -> int:
    return spec.tile_limit or _TILE_BYTES


def _strip(spec: PackedConvSpec, blocks: int, tile: int, images: int) -> dict[str, Any]:
    """Divide a long row of single pixels into equal strips; where none fits, the image is read in place."""
    widths = [w for w in range(tile, spec.ow + 1, tile) if spec.ow % w == 0]
    fitting = [w for w in widths if spec.c * w * spec.itemsize <= 2 * _tile_limit(spec)]
    if not fitting:
        return {}
    strip = fitting[-1]
    return {
        "strip": strip,
        "tiles": strip // tile,
        "rest": 0,
        **_groups(spec, blocks, spec.ow // strip, images),
    }


def _groups(spec: PackedConvSpec, blocks: int, parts: int, images: int) -> dict[str, int]:
    """Choose the blocks of channels that one task computes for its tile of one of ``parts`` of an image.

    As many as leave enough tasks for several threads: the weights of all blocks are streamed past a tile at less
    cost than other tasks have in filling the same one.
    """
    if spec.served:
        together = min(spec.served, blocks)
        return {"together": together, "groups": -(-blocks // together)}
    pieces = blocks * parts
    fitting = max(pieces // _COPIES, min(pieces * images // _COPIES, pieces // _FEWEST))
    together = max(1, min(fitting, blocks))
    even = [t for t in range(together, together // 2, -1) if blocks % t == 0]
    together = even[0] if even else -(-blocks // -(-blocks // together))
    return {"together": together, "groups": -(-blocks // together)}


def flat_pixels(kernel: Kernel) -> Kernel:
    """Return a convolution of single pixels as one over a single long row, where its epilogue allows it.

    before: 14 rows of 14 pixels        after: one row of 196 pixels, which has no short ends
    """
    spec, epilogue = kernel.spec, kernel.epilogue
    alone = (spec.kh, spec.kw) == (1, 1) and spec.stride == (1, 1) and not spec.border
    if not alone or epilogue is None or epilogue.pool or spec.oh == 1:
        return kernel

    def flat(item: Any) -> Any:
        n, o, _, x = item.access.strides
        return replace(item, access=replace(item.access, strides=(n, o, 0, x)))

    items = [i for i in (*epilogue.statements, *epilogue.stores) if hasattr(i, "access")]
    if any(i.access.strides[2] != i.access.strides[3] * spec.ow for i in items):
        return kernel
    statements = tuple(flat(i) if hasattr(i, "access") else i for i in epilogue.statements)
    stores = tuple(flat(i) for i in epilogue.stores)
    size = spec.h * spec.w
    return replace(
        kernel,
        spec=replace(spec, h=1, w=size, oh=1, ow=size),
        epilogue=replace(epilogue, statements=statements, stores=stores),
    )


def _padded_tile(spec: PackedConvSpec, rows: int, used: int, blocks: int, images: int) -> dict[str, Any]:
    """Choose the rows of the output that one tile of the padded image serves."""
    fitting = [r for r in range(rows, used + 1, rows) if spec.tile_bytes(r) <= _tile_limit(spec)]
    bands = -(-used // (fitting[-1] if fitting else rows))
    band = -(-used // bands // rows) * rows
    bands = -(-used // band)
    height, width = spec.tile_extents(band)
    padded = border_facts(spec.border, spec.h, spec.w, height, width)
    return {
        "padded": padded,
        "band": band,
        "bands": bands,
        **_groups(spec, blocks, bands, images),
    }


def border_facts(border: Border, h: int, w: int, height: int, width: int) -> SimpleNamespace:
    """Return what a template needs to fill a tile of (height, width) with rows of the bordered image."""
    (top, _), (left, _) = border.padding
    return SimpleNamespace(
        h=height,
        w=width,
        top=top,
        left=left,
        spread=border.spread,
        count=min(w, max(0, -(-(width - left) // border.spread[1]))),  # pixels of a row that are read
    )


def _tap_tile(spec: PackedConvSpec) -> dict[str, Any]:
    """Choose the taps that are summed side by side, and the work of one task.

    The taps are rows of one kernel, or small kernels of several channels. A task sums the taps of some
    groups of channels: the more groups, the more often it uses the cotangent that it has packed.
    """
    channels = tap_channels(spec)
    rows = tap_rows(spec)
    groups = spec.c // channels * (spec.kh // rows)
    taps = channels * rows * spec.kw
    blocks = -(-spec.o // spec.lanes)
    fitting = max(1, _SUM_BYTES // (taps * spec.lanes * spec.itemsize))
    wanted = min(groups, fitting, spec.served or max(groups // 4, groups * blocks // _TASKS))
    together = min(
        (t for t in range(1, fitting + 1) if groups % t == 0), key=lambda t: (t < wanted, abs(t - wanted))
    )
    band = max(1, min(spec.oh, _PACKED_BYTES // (spec.ow * spec.lanes * spec.itemsize)))
    height, width = spec.tile_extents(band)
    h, w = (height, width) if spec.border else (spec.h, spec.w)
    return {
        **_tap_rows(spec, channels, rows, h, w),
        "padded": border_facts(spec.border, spec.h, spec.w, height, width) if spec.border else None,
        "taps": taps,
        "image_h": h,
        "image_w": w,
        "tile_channels": channels,
        "tile_rows": rows,
        "parts": groups // together,
        "together": together,
        "blocks": blocks,
        "band": band,
        "bands": -(-spec.oh // band),
    }


def _tap_rows(spec: PackedConvSpec, channels: int, rows: int, h: int, w: int) -> dict[str, Any]:
    """Return the taps as runs of equal distance: where each starts, and the distance."""
    if spec.kw == 1 and rows == 1:  # single taps of several channels
        return {"runs": [SimpleNamespace(offset=0, first=0)], "run": channels, "step": h * w}
    runs = [
        SimpleNamespace(
            offset=(c * h + i * spec.dilation[0]) * w, first=(c * rows + i) * spec.kw
        )
        for c in range(channels)
        for i in range(rows)
    ]  # fmt: skip
    return {"runs": runs, "run": spec.kw, "step": spec.dilation[1]}
