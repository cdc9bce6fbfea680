"""Winograd's convolution: what its templates need, and the helper functions for the transforms."""

from __future__ import annotations

from typing import Any

from graphc.ops.winograd import SLOTS


def winograd_facts(spec: Any) -> dict[str, Any]:
    """Return the numbers that the convolution's template needs beside the description."""
    rows, columns = spec.tiles
    parts, together, side = spec.groups
    return {
        "tile_rows": rows,
        "tile_columns": columns,
        "blocks": -(-spec.o // spec.lanes),
        "parts": parts,
        "together": together,
        "side": side,
        "slots": SLOTS,
        # Tiles of a row, one more pixel of each kind, and what the last group reads beyond them.
        "step": parts * side + 1 + SLOTS,
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

WEIGHTS = """\
/* Transforms o * c kernels of 3 x 3, whose elements lie as the steps say, into vectors of {lanes} channels. */
static inline void gc_winograd_weights{lanes}_{S}(
    {T} *restrict out, const {T} *restrict in, int64_t o, int64_t c, int64_t o_step, int64_t c_step, int64_t i_step,
    int64_t j_step, int threads)
{{
    GC_PARALLEL_FOR(threads)
    for (int64_t block = 0; block < (o + {lanes} - 1) / {lanes}; block++) {{
        for (int64_t channel = 0; channel < c; channel++) {{
            {T} g[9 * {lanes}] = {{0}}, u[36 * {lanes}];
            for (int64_t lane = 0; lane < {lanes} && block * {lanes} + lane < o; lane++) {{
                const {T} *const from = in + (block * {lanes} + lane) * o_step + channel * c_step;
                for (int64_t k = 0; k < 9; k++) g[k * {lanes} + lane] = from[k / 3 * i_step + k % 3 * j_step];
            }}
            gc_winograd_weight_{S}(u, g, {lanes});
            for (int64_t k = 0; k < 36; k++)
                memcpy(out + ((block * 36 + k) * c + channel) * {lanes}, u + k * {lanes}, {lanes} * sizeof *u);
        }}
    }}
}}
"""

ROWS = """\
/* B^T from the left, for a row of tiles: six rows of the image from `top` on, with zeros around it, become six.
 * Each is stored as four rows of every fourth pixel, `step` long, so that neighbouring tiles are neighbours. */
static inline void gc_winograd_rows_{S}(
    {T} *restrict strip, int64_t step, const {T} *restrict image, int64_t height, int64_t width, int64_t top,
    int64_t left)
{{
    const int64_t count = width < 4 * step - left ? width : 4 * step - left;
    {T} *const line = strip + 24 * step;
    for (int64_t k = 0; k < 6; k++) {{
        memset(line, 0, (size_t)(4 * step) * sizeof *line);
        if (top + k >= 0 && top + k < height)
            memcpy(line + left, image + (top + k) * width, (size_t)count * sizeof *line);
        {T} *const to = strip + k * 4 * step;
        for (int64_t t = 0; t < step; t++) {{
            to[t] = line[4 * t];
            to[step + t] = line[4 * t + 1];
            to[2 * step + t] = line[4 * t + 2];
            to[3 * step + t] = line[4 * t + 3];
        }}
    }}
    for (int64_t x = 0; x < 4 * step; x++) {{
        {T} *const d = strip + x;
        const {T} d0 = d[0], d1 = d[4 * step], d2 = d[8 * step];
        const {T} d3 = d[12 * step], d4 = d[16 * step], d5 = d[20 * step];
        const {T} a = d4 - 4 * d2, b = d3 - 4 * d1, c = d4 - d2, e = 2 * (d3 - d1);
        d[0] = 4 * d0 - 5 * d2 + d4;
        d[4 * step] = a + b;
        d[8 * step] = a - b;
        d[12 * step] = c + e;
        d[16 * step] = c - e;
        d[20 * step] = 4 * d1 - 5 * d3 + d5;
    }}
}}
"""

POINTS = """\
/* B from the right, for `count` tiles from `first` on: 36 points of each, `apart` from one point to the next. */
static inline void gc_winograd_points_{S}(
    {T} *restrict to, int64_t apart, const {T} *restrict strip, int64_t step, int64_t first, const int64_t count)
{{
    for (int64_t k = 0; k < 6; k++) {{
        const {T} *const d = strip + k * 4 * step + first;
        {T} *const v = to + k * 6 * apart;
        for (int64_t t = 0; t < count; t++) {{
            const {T} d0 = d[t], d1 = d[step + t], d2 = d[2 * step + t], d3 = d[3 * step + t];
            const {T} d4 = d[t + 1], d5 = d[step + t + 1];
            const {T} a = d4 - 4 * d2, b = d3 - 4 * d1, c = d4 - d2, e = 2 * (d3 - d1);
            v[t] = 4 * d0 - 5 * d2 + d4;
            v[apart + t] = a + b;
            v[2 * apart + t] = a - b;
            v[3 * apart + t] = c + e;
            v[4 * apart + t] = c - e;
            v[5 * apart + t] = 4 * d1 - 5 * d3 + d5;
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
