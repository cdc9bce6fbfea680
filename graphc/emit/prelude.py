"""The helper functions that emitted C may use; only those that it does use are printed."""

from __future__ import annotations

import re

from graphc import scalar
from graphc.emit.text import SUFFIXED, modular
from graphc.emit.tiles import tile_helpers
from graphc.isa import Isa

_LANES = """\
/* The sum of GC_LANES partial sums, by a fixed tree. */
static inline {T} gc_sum_lanes_{S}(const {T} *lanes) {{
    {T} tree[GC_LANES];
    for (int k = 0; k < GC_LANES; k++) tree[k] = lanes[k];
    for (int half = GC_LANES / 2; half > 0; half /= 2)
        for (int k = 0; k < half; k++) {added};
    return tree[0];
}}
"""

_WRAPPED = "tree[k] = ({T})(({U})tree[k] + ({U})tree[k + half])"

_EXTREME = """\
static inline {T} gc_{kind}_lanes_{S}(const {T} *lanes) {{
    {T} best = lanes[0];
    for (int k = 1; k < GC_LANES; k++) best = (lanes[k] {sign} best{nan}) ? lanes[k] : best;
    return best;
}}
"""

_INSIDE = """\
/* For positions k * stride + shift: the first k that is not below 0, and the end of those k below `width`
 * (and below `count`). */
static inline int64_t gc_first_inside(int64_t shift, int64_t stride) {
    return shift < 0 ? (-shift + stride - 1) / stride : 0;
}
static inline int64_t gc_end_inside(int64_t shift, int64_t stride, int64_t width, int64_t count) {
    if (shift >= width) return 0;
    const int64_t end = (width - 1 - shift) / stride + 1;
    return end < count ? end : count;
}
"""

_WINDOW = """\
/* How many taps of a pooling window count along one axis: all up to the padded end, or those inside. */
static inline int64_t gc_window(int64_t k, int64_t stride, int64_t kernel, int64_t pad, int64_t size, int padded) {
    const int64_t start = k * stride - pad;
    int64_t end = start + kernel < size + pad ? start + kernel : size + pad;
    if (padded) return end - start;
    end = end < size ? end : size;
    return end - (start > 0 ? start : 0);
}
"""

_RANDOM = """\
/* Philox-4x32-10 (Salmon et al., SC 2011): numbers that depend on seed, step, stream and index alone. */
typedef struct {
    uint64_t seed;
    uint64_t step;
} gc_random;
static inline uint32_t gc_philox(const gc_random *random, uint32_t stream, uint64_t index) {
    uint32_t c0 = (uint32_t)(index / 4), c1 = stream;
    uint32_t c2 = (uint32_t)random->step, c3 = (uint32_t)(random->step >> 32);
    uint32_t k0 = (uint32_t)random->seed, k1 = (uint32_t)(random->seed >> 32);
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    switch (index % 4) {
        case 0: return c0;
        case 1: return c1;
        case 2: return c2;
        default: return c3;
    }
}
"""

_UNIFORM = """\
static inline {T} gc_uniform_{S}(const gc_random *random, uint32_t stream, uint64_t index) {{
    return ({T})(gc_philox(random, stream, index) >> 8) * ({T})0x1p-24;
}}
"""

_POISON = """\
/* Signalling NaNs instead of what the arena held: whoever reads it without having written it is found out. */
static inline void gc_poison_{S}(char *arena, size_t from, size_t bytes) {{
    const {T} word = {nan};
    for (size_t k = 0; k < bytes / sizeof word; k++) memcpy(arena + from + k * sizeof word, &word, sizeof word);
}}
"""
_SIGNALLING = {"f": ("uint32_t", "0x7fa00000u"), "d": ("uint64_t", "0x7ff4000000000000u")}


def helpers_for(text: str, isa: Isa) -> list[str]:
    """Return the definitions of the helpers that occur in the text, each after what it needs."""
    found = [scalar.HELPERS[name] for name in scalar.helpers_used(text)]
    for suffix, ctype in SUFFIXED.items():
        if f"gc_sum_lanes_{suffix}(" in text:
            added = (
                "tree[k] += tree[k + half]" if suffix in "fd" else _WRAPPED.format(T=ctype, U=modular(ctype))
            )
            found.append(_LANES.format(T=ctype, S=suffix, added=added))
        for kind, sign in (("max", ">"), ("min", "<")):
            if f"gc_{kind}_lanes_{suffix}(" in text:
                nan = " || lanes[k] != lanes[k]" if suffix in "fd" else ""
                found.append(_EXTREME.format(T=ctype, S=suffix, kind=kind, sign=sign, nan=nan))
    if "gc_first_inside(" in text or "gc_end_inside(" in text:
        found.append(_INSIDE)
    found += tile_helpers(text, isa)
    if "gc_window(" in text:
        found.append(_WINDOW)
    if re.search(r"\bgc_(random|uniform_)", text):
        found.append(_RANDOM)
        found += [_UNIFORM.format(T=SUFFIXED[s], S=s) for s in ("f", "d") if f"gc_uniform_{s}(" in text]
    for suffix, (word, nan) in _SIGNALLING.items():
        if f"gc_poison_{suffix}(" in text:
            found.append(_POISON.format(S=suffix, T=word, nan=nan))
    return found
