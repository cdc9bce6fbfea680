"""Winograd's convolution: what its templates need, and the helper functions for the transforms."""

from __future__ import annotations

from typing import Any

from graphc.emit.text import C_TYPE, SUFFIX, linear
from graphc.program.ir import Access, Kernel


def winograd_facts(spec: Any) -> dict[str, Any]:
    """Return the numbers that the convolution's template needs beside the description."""
    rows, columns = spec.tiles
    return {"tile_rows": rows, "tile_columns": columns, "blocks": -(-spec.o // spec.lanes)}


def winograd_weight_context(kernel: Kernel) -> dict[str, Any]:
    """Return the context of the weights' transform."""
    spec = kernel.spec
    return {
        "s": spec,
        "blocks": -(-spec.o // spec.lanes),
        "source": linear(Access(spec.strides, spec.offset), ["o", "c", "i", "j"]),
        "T": C_TYPE[kernel.dtype],
        "suffix": SUFFIX[kernel.dtype],
    }


WEIGHT = """\
/* u = G * g * G^T for `lanes` kernels of 3 x 3 side by side. */
static inline void gc_winograd_weight_{S}({T} *restrict u, const {T} *restrict g, const int64_t lanes) {{
    for (int64_t lane = 0; lane < lanes; lane++) {{
        {T} h[18];
        for (int j = 0; j < 3; j++) {{
            const {T} g0 = g[j * lanes + lane], g1 = g[(3 + j) * lanes + lane], g2 = g[(6 + j) * lanes + lane];
            const {T} even = (g0 + g2) * ({T})(-1.0 / 6), odd = g1 * ({T})(-1.0 / 6);
            const {T} near = g0 * ({T})(1.0 / 24) + g2 * ({T})(1.0 / 6), far = g1 * ({T})(1.0 / 12);
            h[j] = g0 * ({T})0.25;
            h[3 + j] = even + odd;
            h[6 + j] = even - odd;
            h[9 + j] = near + far;
            h[12 + j] = near - far;
            h[15 + j] = g2;
        }}
        for (int i = 0; i < 6; i++) {{
            const {T} g0 = h[i * 3], g1 = h[i * 3 + 1], g2 = h[i * 3 + 2];
            const {T} even = (g0 + g2) * ({T})(-1.0 / 6), odd = g1 * ({T})(-1.0 / 6);
            const {T} near = g0 * ({T})(1.0 / 24) + g2 * ({T})(1.0 / 6), far = g1 * ({T})(1.0 / 12);
            u[(i * 6) * lanes + lane] = g0 * ({T})0.25;
            u[(i * 6 + 1) * lanes + lane] = even + odd;
            u[(i * 6 + 2) * lanes + lane] = even - odd;
            u[(i * 6 + 3) * lanes + lane] = near + far;
            u[(i * 6 + 4) * lanes + lane] = near - far;
            u[(i * 6 + 5) * lanes + lane] = g2;
        }}
    }}
}}
"""

ROWS = """\
/* B^T from the left, for a row of tiles: six rows of the image from `top` on, with zeros around it, become six. */
static inline void gc_winograd_rows_{S}(
    {T} *restrict strip, int64_t tiles, const {T} *restrict image, int64_t height, int64_t width, int64_t top,
    int64_t left)
{{
    const int64_t columns = 4 * tiles + 2;
    const int64_t count = width < columns - left ? width : columns - left;
    const {T} *const d = strip + 6 * columns;
    memset(strip + 6 * columns, 0, (size_t)(6 * columns) * sizeof *strip);
    for (int64_t k = 0; k < 6; k++)
        if (top + k >= 0 && top + k < height)
            memcpy(strip + (6 + k) * columns + left, image + (top + k) * width, (size_t)count * sizeof *strip);
    for (int64_t x = 0; x < columns; x++) {{
        const {T} d0 = d[x], d1 = d[columns + x], d2 = d[2 * columns + x];
        const {T} d3 = d[3 * columns + x], d4 = d[4 * columns + x], d5 = d[5 * columns + x];
        const {T} a = d4 - 4 * d2, b = d3 - 4 * d1, c = d4 - d2, e = 2 * (d3 - d1);
        strip[x] = 4 * d0 - 5 * d2 + d4;
        strip[columns + x] = a + b;
        strip[2 * columns + x] = a - b;
        strip[3 * columns + x] = c + e;
        strip[4 * columns + x] = c - e;
        strip[5 * columns + x] = 4 * d1 - 5 * d3 + d5;
    }}
}}
"""

TILES = """\
/* B from the right, for a row of tiles numbered from `first` on; `side` tiles lie side by side in the workspace. */
static inline void gc_winograd_tiles_{S}(
    {T} *restrict workspace, const int64_t side, int64_t channels, int64_t channel, int64_t first,
    const {T} *restrict strip, int64_t tiles)
{{
    const int64_t columns = 4 * tiles + 2, step = channels * side;
    for (int64_t t = 0; t < tiles; t++) {{
        const int64_t tile = first + t;
        {T} *const to = workspace + tile / side * 36 * step + channel * side + tile % side;
        for (int64_t k = 0; k < 6; k++) {{
            const {T} *const d = strip + k * columns + 4 * t;
            const {T} a = d[4] - 4 * d[2], b = d[3] - 4 * d[1], c = d[4] - d[2], e = 2 * (d[3] - d[1]);
            to[(k * 6) * step] = 4 * d[0] - 5 * d[2] + d[4];
            to[(k * 6 + 1) * step] = a + b;
            to[(k * 6 + 2) * step] = a - b;
            to[(k * 6 + 3) * step] = c + e;
            to[(k * 6 + 4) * step] = c - e;
            to[(k * 6 + 5) * step] = 4 * d[1] - 5 * d[3] + d[5];
        }}
    }}
}}
"""

RESULT = """\
/* A^T * m * A of one tile for {lanes} channels: 16 pixels, first two rows of the tile, then two, by channel. */
static inline void gc_winograd_result{lanes}_{S}({T} *restrict y, const {T} *restrict m, int64_t step) {{
    {T} h[24 * {lanes}];
    for (int64_t j = 0; j < 6; j++) {{
        for (int64_t lane = 0; lane < {lanes}; lane++) {{
            const {T} *const p = m + j * step + lane;
            const {T} a = p[6 * step] + p[12 * step], b = p[6 * step] - p[12 * step];
            const {T} c = p[18 * step] + p[24 * step], e = p[18 * step] - p[24 * step];
            h[j * {lanes} + lane] = p[0] + a + c;
            h[(6 + j) * {lanes} + lane] = b + 2 * e;
            h[(12 + j) * {lanes} + lane] = a + 4 * c;
            h[(18 + j) * {lanes} + lane] = b + 8 * e + p[30 * step];
        }}
    }}
    for (int64_t i = 0; i < 4; i++) {{
        for (int64_t lane = 0; lane < {lanes}; lane++) {{
            const {T} *const p = h + i * 6 * {lanes} + lane;
            const {T} a = p[{lanes}] + p[2 * {lanes}], b = p[{lanes}] - p[2 * {lanes}];
            const {T} c = p[3 * {lanes}] + p[4 * {lanes}], e = p[3 * {lanes}] - p[4 * {lanes}];
            y[i * 4 * {lanes} + lane] = p[0] + a + c;
            y[(i * 4 + 1) * {lanes} + lane] = b + 2 * e;
            y[(i * 4 + 2) * {lanes} + lane] = a + 4 * c;
            y[(i * 4 + 3) * {lanes} + lane] = b + 8 * e + p[5 * {lanes}];
        }}
    }}
    gc_transpose{lanes}_{S}(y);
    gc_transpose{lanes}_{S}(y + 8 * {lanes});
}}
"""
