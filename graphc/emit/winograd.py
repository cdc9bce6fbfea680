"""Winograd's convolution: what its templates need, and the helper functions for the transforms."""

from __future__ import annotations

from typing import Any

from graphc.ops.winograd import POINTS as _POINTS
from graphc.ops.winograd import WinogradSpec


def winograd_facts(template: str, spec: WinogradSpec) -> dict[str, Any]:
    """Return the numbers that a template needs beside the description."""
    rows, columns = spec.tiles
    depth, blocks = -(-spec.c // spec.lanes), -(-spec.o // spec.lanes)
    facts = {"tile_rows": rows, "tile_columns": columns, "blocks": blocks, "depth": depth}
    if template == "winograd_conv2d_backward_weight":
        tiles = spec.chunk * columns
        return {**facts, "row_tiles": columns, "strip": 4 * columns + 2, "tiles": tiles,
                "beside": spec.sums // spec.lanes, "grads": _POINTS * depth * tiles * spec.lanes,
                "kept": _POINTS * (depth + blocks) * tiles * spec.lanes}  # fmt: skip
    parts, together, side = spec.groups
    row_tiles = columns if together > 1 else parts * side
    return {**facts, "row_tiles": row_tiles, "strip": 4 * row_tiles + 2, "parts": parts, "together": together,
            "side": side, "apart": depth * side * spec.lanes}  # fmt: skip


WEIGHTS = """\
/* G * g * G^T for {lanes} kernels side by side, of which tap t is `step` * t from g on: 36 points, `apart`. */
static inline void gc_winograd_weight{lanes}_{S}(
    {T} *restrict u, int64_t apart, const {T} *restrict g, int64_t step)
{{
    {T} h[18 * {lanes}];
    for (int64_t j = 0; j < 3; j++) {{
        for (int64_t lane = 0; lane < {lanes}; lane++) {{
            const {T} *const p = g + j * step + lane;
            const {T} g0 = p[0], g1 = p[3 * step], g2 = p[6 * step];
            const {T} even = (g0 + g2) * ({T})(-1.0 / 6), odd = g1 * ({T})(-1.0 / 6);
            const {T} near = g0 * ({T})(1.0 / 24) + g2 * ({T})(1.0 / 6), far = g1 * ({T})(1.0 / 12);
            {T} *const to = h + j * {lanes} + lane;
            to[0] = g0 * ({T})0.25;
            to[3 * {lanes}] = even + odd;
            to[6 * {lanes}] = even - odd;
            to[9 * {lanes}] = near + far;
            to[12 * {lanes}] = near - far;
            to[15 * {lanes}] = g2;
        }}
    }}
    for (int64_t i = 0; i < 6; i++) {{
        GC_SIMD
        for (int64_t lane = 0; lane < {lanes}; lane++) {{
            const {T} *const p = h + i * 3 * {lanes} + lane;
            const {T} g0 = p[0], g1 = p[{lanes}], g2 = p[2 * {lanes}];
            const {T} even = (g0 + g2) * ({T})(-1.0 / 6), odd = g1 * ({T})(-1.0 / 6);
            const {T} near = g0 * ({T})(1.0 / 24) + g2 * ({T})(1.0 / 6), far = g1 * ({T})(1.0 / 12);
            {T} *const to = u + i * 6 * apart + lane;
            to[0] = g0 * ({T})0.25;
            to[apart] = even + odd;
            to[2 * apart] = even - odd;
            to[3 * apart] = near + far;
            to[4 * apart] = near - far;
            to[5 * apart] = g2;
        }}
    }}
}}

/* Transforms o * c kernels of 3 x 3, whose elements lie as the steps say, into vectors of {lanes} channels. */
static inline void gc_winograd_weights{lanes}_{S}(
    {T} *restrict out, const {T} *restrict in, int64_t o, int64_t c, int64_t o_step, int64_t c_step, int64_t i_step,
    int64_t j_step, int threads)
{{
    const int64_t whole = i_step == 3 * j_step && j_step * j_step == 1; /* nine neighbours, forward or backward */
    GC_PARALLEL_FOR(threads)
    for (int64_t block = 0; block < (o + {lanes} - 1) / {lanes}; block++) {{
        const int64_t live = o - block * {lanes} < {lanes} ? o - block * {lanes} : {lanes};
        for (int64_t channel = 0; channel < c; channel++) {{
            {T} g[9 * {lanes}];
            const {T} *const from = in + block * {lanes} * o_step + channel * c_step;
            if (whole) gc_columns{lanes}_{S}(g, j_step < 0 ? from - 8 : from, o_step, live, 9);
            else
                for (int64_t k = 0; k < 9; k++)
                    for (int64_t lane = 0; lane < {lanes}; lane++)
                        g[k * {lanes} + lane] =
                            lane < live ? from[lane * o_step + k / 3 * i_step + k % 3 * j_step] : 0;
            const int64_t last = whole && j_step < 0 ? 8 * {lanes} : 0;
            gc_winograd_weight{lanes}_{S}(
                out + (block * 36 * c + channel) * {lanes}, c * {lanes}, g + last, last ? -{lanes} : {lanes});
        }}
    }}
}}
"""

STRIP = """\
/* Rows of an image with zeros around it, packed: `count` rows of `columns` pixels from `top` on, each pixel a vector
 * of {lanes} channels of which `live` are there. In a row, the image begins in column `left`. */
static inline void gc_winograd_strip{lanes}_{S}(
    {T} *restrict strip, const int64_t count, int64_t columns, const {T} *restrict image, int64_t live,
    int64_t height, int64_t width, int64_t top, int64_t left)
{{
    const int64_t pixels = width < columns - left ? width : columns - left;
    for (int64_t r = 0; r < count; r++) {{
        {T} *const line = strip + r * columns * {lanes};
        const int64_t y = top + r, inside = y >= 0 && y < height ? pixels : 0;
        memset(line, 0, (size_t)(left * {lanes}) * sizeof *line);
        if (inside) gc_columns{lanes}_{S}(line + left * {lanes}, image + y * width, height * width, live, inside);
        memset(line + (left + inside) * {lanes}, 0, (size_t)((columns - left - inside) * {lanes}) * sizeof *line);
    }}
}}
"""

ROWS = """\
/* B^T from the left, in place: six packed rows of `columns` pixels become six. */
static inline void gc_winograd_rows{lanes}_{S}({T} *restrict strip, int64_t columns) {{
    const int64_t row = columns * {lanes};
    for (int64_t x = 0; x < row; x++) {{
        {T} *const d = strip + x;
        const {T} d0 = d[0], d1 = d[row], d2 = d[2 * row], d3 = d[3 * row], d4 = d[4 * row], d5 = d[5 * row];
        const {T} a = d4 - 4 * d2, b = d3 - 4 * d1, c = d4 - d2, e = 2 * (d3 - d1);
        d[0] = 4 * d0 - 5 * d2 + d4;
        d[row] = a + b;
        d[2 * row] = a - b;
        d[3 * row] = c + e;
        d[4 * row] = c - e;
        d[5 * row] = 4 * d1 - 5 * d3 + d5;
    }}
}}
"""

POINTS = """\
/* B from the right, for the tile that begins there: 36 points for {lanes} channels, `apart` from one to the next. */
static inline void gc_winograd_points{lanes}_{S}(
    {T} *restrict to, int64_t apart, const {T} *restrict strip, int64_t columns)
{{
    for (int64_t k = 0; k < 6; k++) {{
        for (int64_t lane = 0; lane < {lanes}; lane++) {{
            const {T} *const d = strip + k * columns * {lanes} + lane;
            {T} *const v = to + k * 6 * apart + lane;
            const {T} d0 = d[0], d1 = d[{lanes}], d2 = d[2 * {lanes}], d3 = d[3 * {lanes}];
            const {T} d4 = d[4 * {lanes}], d5 = d[5 * {lanes}];
            const {T} a = d4 - 4 * d2, b = d3 - 4 * d1, c = d4 - d2, e = 2 * (d3 - d1);
            v[0] = 4 * d0 - 5 * d2 + d4;
            v[apart] = a + b;
            v[2 * apart] = a - b;
            v[3 * apart] = c + e;
            v[4 * apart] = c - e;
            v[5 * apart] = 4 * d1 - 5 * d3 + d5;
        }}
    }}
}}
"""

PIXELS = """\
/* A^T * m * A of one tile for {lanes} channels: 4 rows, `row` apart, of 4 pixels, each a vector of channels. */
static inline void gc_winograd_pixels{lanes}_{S}({T} *restrict y, int64_t row, const {T} *restrict m, int64_t step) {{
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
            {T} *const to = y + i * row + lane;
            to[0] = p[0] + a + c;
            to[{lanes}] = b + 2 * e;
            to[2 * {lanes}] = a + 4 * c;
            to[3 * {lanes}] = b + 8 * e + p[5 * {lanes}];
        }}
    }}
}}
"""

RESULT = """\
/* The same, turned: 16 pixels, first two rows of the tile, then two, by channel. */
static inline void gc_winograd_result{lanes}_{S}({T} *restrict y, const {T} *restrict m, int64_t step) {{
    gc_winograd_pixels{lanes}_{S}(y, 4 * {lanes}, m, step);
    gc_transpose{lanes}_{S}(y);
    gc_transpose{lanes}_{S}(y + 8 * {lanes});
}}
"""

SPREAD = """\
/* A * y * A^T of the tile of 4 x 4 cotangents that begins there: 36 points for {lanes} channels, `apart`. */
static inline void gc_winograd_spread{lanes}_{S}(
    {T} *restrict to, int64_t apart, const {T} *restrict strip, int64_t columns)
{{
    {T} h[24 * {lanes}];
    for (int64_t j = 0; j < 4; j++) {{
        for (int64_t lane = 0; lane < {lanes}; lane++) {{
            const {T} *const y = strip + j * {lanes} + lane;
            const {T} y0 = y[0], y1 = y[columns * {lanes}];
            const {T} y2 = y[2 * columns * {lanes}], y3 = y[3 * columns * {lanes}];
            const {T} even = y0 + y2, odd = y1 + y3, near = y0 + 4 * y2, far = 2 * y1 + 8 * y3;
            {T} *const to_row = h + j * {lanes} + lane;
            to_row[0] = y0;
            to_row[4 * {lanes}] = even + odd;
            to_row[8 * {lanes}] = even - odd;
            to_row[12 * {lanes}] = near + far;
            to_row[16 * {lanes}] = near - far;
            to_row[20 * {lanes}] = y3;
        }}
    }}
    for (int64_t k = 0; k < 6; k++) {{
        for (int64_t lane = 0; lane < {lanes}; lane++) {{
            const {T} *const y = h + k * 4 * {lanes} + lane;
            const {T} y0 = y[0], y1 = y[{lanes}], y2 = y[2 * {lanes}], y3 = y[3 * {lanes}];
            const {T} even = y0 + y2, odd = y1 + y3, near = y0 + 4 * y2, far = 2 * y1 + 8 * y3;
            {T} *const v = to + k * 6 * apart + lane;
            v[0] = y0;
            v[apart] = even + odd;
            v[2 * apart] = even - odd;
            v[3 * apart] = near + far;
            v[4 * apart] = near - far;
            v[5 * apart] = y3;
        }}
    }}
}}
"""

TAPS = """\
/* G^T * u * G: 36 sums, `step` apart, become the gradient of 9 taps, for {lanes} channels. */
static inline void gc_winograd_taps{lanes}_{S}({T} *restrict taps, const {T} *restrict u, int64_t step) {{
    {T} h[18 * {lanes}];
    for (int64_t j = 0; j < 6; j++) {{
        for (int64_t lane = 0; lane < {lanes}; lane++) {{
            const {T} *const p = u + j * step + lane;
            const {T} a = p[6 * step], b = p[12 * step], c = p[18 * step], e = p[24 * step];
            const {T} even = (a + b) * ({T})(-1.0 / 6), near = c + e;
            h[j * {lanes} + lane] = p[0] * ({T})0.25 + even + near * ({T})(1.0 / 24);
            h[(6 + j) * {lanes} + lane] = (b - a) * ({T})(1.0 / 6) + (c - e) * ({T})(1.0 / 12);
            h[(12 + j) * {lanes} + lane] = even + near * ({T})(1.0 / 6) + p[30 * step];
        }}
    }}
    for (int64_t i = 0; i < 3; i++) {{
        for (int64_t lane = 0; lane < {lanes}; lane++) {{
            const {T} *const p = h + i * 6 * {lanes} + lane;
            const {T} a = p[{lanes}], b = p[2 * {lanes}], c = p[3 * {lanes}], e = p[4 * {lanes}];
            const {T} even = (a + b) * ({T})(-1.0 / 6), near = c + e;
            taps[i * 3 * {lanes} + lane] = p[0] * ({T})0.25 + even + near * ({T})(1.0 / 24);
            taps[(i * 3 + 1) * {lanes} + lane] = (b - a) * ({T})(1.0 / 6) + (c - e) * ({T})(1.0 / 12);
            taps[(i * 3 + 2) * {lanes} + lane] = even + near * ({T})(1.0 / 6) + p[5 * {lanes}];
        }}
    }}
}}
"""

BY_LANES = {
    "weights": WEIGHTS, "strip": STRIP, "rows": ROWS, "points": POINTS, "pixels": PIXELS, "result": RESULT,
    "spread": SPREAD, "taps": TAPS,
}  # fmt: skip
