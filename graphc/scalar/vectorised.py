"""The float32 functions that loops of emitted C vectorise: exp, log, tanh, erf and what is made of them.

A compiler leaves a call of libm's alone, one element at a time. These are straight lines of arithmetic that it
can inline and compute for all lanes at once, without any flag that loosens floating point. Results are within
4 units in the last place (ulp) of the exact value for every float, with a fused multiply-add and without; the
comments give the largest errors that were measured over all floats. NaN, Inf and the sign of zero come out as
from libm, and results below FLT_MIN lose digits gradually.

There is no ``?:`` with arithmetic in a branch, and none that depends on another: gcc keeps control flow where
skipped arithmetic might have trapped, and a loop with control flow stays scalar. ``gc_selectf`` chooses by masks.

Polynomials are weighted minimax fits (Lawson's algorithm of 1961, on 900 Chebyshev nodes, the weight making the
relative error of the function's result even), whose coefficients were rounded to float one after another, lowest
power first, each time fitting the rest anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

VECTORISED: Mapping[str, str] = MappingProxyType(
    {
        "GC_INLINE": """\
/* Loops are vectorised only where nothing is called: in a long file gcc would call rather than inline. */
#ifdef __GNUC__
#define GC_INLINE inline __attribute__((always_inline))
#else
#define GC_INLINE inline
#endif
""",
        "gc_bitsf": """\
static GC_INLINE uint32_t gc_bitsf(float x) {
    const union {
        float value;
        uint32_t bits;
    } same = {x};
    return same.bits;
}
""",
        "gc_frombitsf": """\
static GC_INLINE float gc_frombitsf(uint32_t bits) {
    const union {
        uint32_t bits;
        float value;
    } same = {bits};
    return same.value;
}
""",
        "gc_selectf": """\
/* condition ? yes : no for a condition of 0 or 1, by masks: loops with it vectorise whatever yes and no compute. */
static GC_INLINE float gc_selectf(int condition, float yes, float no) {
    const uint32_t mask = 0u - (uint32_t)condition;
    return gc_frombitsf((gc_bitsf(yes) & mask) | (gc_bitsf(no) & ~mask));
}
""",
        "gc_nearestf": """\
/* The whole number nearest to x, for |x| < 2^22: a float of the size of 1.5*2^23 has no bits for fractions. */
static GC_INLINE float gc_nearestf(float x) {
    return (x + 0x1.8p23f) - 0x1.8p23f;
}
""",
        "gc_twotof": """\
/* 2^n for whole n in -126..127: the sum's lowest bits are n + 127, which is shifted to where exponents stand. */
static GC_INLINE float gc_twotof(float n) {
    return gc_frombitsf(gc_bitsf(n + (0x1.8p23f + 127.0f)) << 23);
}
""",
        "gc_minusln2f": """\
/* x - n*ln(2), with ln(2) in two parts (Cody and Waite 1980): n times the first, of 15 bits, is exact. */
static GC_INLINE float gc_minusln2f(float x, float n) {
    return gc_fma_f(n, -1.42860677e-6f, gc_fma_f(n, -0.693145752f, x));
}
""",
        "gc_smallexpm1f": """\
/* exp(r) - 1 for |r| <= ln(2)/2: r + r^2 times a minimax polynomial. */
static GC_INLINE float gc_smallexpm1f(float r) {
    float p = 0.00138706574f;
    p = gc_fma_f(p, r, 0.00836626161f);
    p = gc_fma_f(p, r, 0.0416674353f);
    p = gc_fma_f(p, r, 0.166665465f);
    p = gc_fma_f(p, r, 0.49999997f);
    return gc_fma_f(p, r * r, r);
}
""",
        "gc_expf": """\
/* 2^n * exp(x - n*ln(2)), within 1.04 ulp. The power in two factors: 2^128 and 2^-150 are no floats, their halves
 * are. Beyond the bounds of x the result is 0 or Inf all the same. */
static GC_INLINE float gc_expf(float x) {
    const float above = gc_selectf(x < -104.0f, -104.0f, x);
    const float inside = gc_selectf(above > 89.0f, 89.0f, above);
    const float n = gc_nearestf(1.44269504f * inside); /* x / ln(2) */
    const float half = gc_nearestf(0.5f * n);
    const float q = gc_smallexpm1f(gc_minusln2f(inside, n));
    return (1.0f + q) * gc_twotof(half) * gc_twotof(n - half);
}
""",
        "gc_expm1f": """\
/* 2^n * q + (2^n - 1) with q = exp(x - n*ln(2)) - 1, within 1.67 ulp; computed by halves, as 2^128 is no float. */
static GC_INLINE float gc_expm1f(float x) {
    const float above = gc_selectf(x < -18.0f, -18.0f, x); /* -1 from there on */
    const float inside = gc_selectf(above > 89.0f, 89.0f, above);
    const float n = gc_nearestf(1.44269504f * inside);
    const float half = gc_twotof(n - 1.0f);
    const float q = gc_smallexpm1f(gc_minusln2f(inside, n));
    return copysignf(2.0f * gc_fma_f(half, q, half - 0.5f), x);
}
""",
        "gc_tanhf": """\
/* t / (t + 2) with t = exp(2*|x|) - 1, within 2.61 ulp; exactly 1 long before |x| = 10. */
static GC_INLINE float gc_tanhf(float x) {
    const float a = gc_selectf(fabsf(x) > 10.0f, 10.0f, fabsf(x));
    const float t = gc_expm1f(2.0f * a);
    return copysignf(t / (t + 2.0f), x);
}
""",
        "gc_erff": """\
/* 1 - exp(-a*p) at a = |x|, within 3.27 ulp; p is a minimax polynomial for -log(erfc(a))/a, which is smooth from 0
 * (where it is 2/sqrt(pi)) to 4 (where erf rounds to 1). */
static GC_INLINE float gc_erff(float x) {
    const float a = gc_selectf(fabsf(x) > 4.0f, 4.0f, fabsf(x));
    float p = 3.49402872e-5f;
    p = gc_fma_f(p, a, -0.000344091881f);
    p = gc_fma_f(p, a, 0.00116242177f);
    p = gc_fma_f(p, a, 0.000308552582f);
    p = gc_fma_f(p, a, -0.0193797648f);
    p = gc_fma_f(p, a, 0.102829233f);
    p = gc_fma_f(p, a, 0.636615157f);
    p = gc_fma_f(p, a, 1.12837923f);
    return copysignf(gc_expm1f(-a * p), x);
}
""",
        "gc_logf": """\
/* n*ln(2) + log(1 + f) for x = 2^n * (1 + f) with 1 + f in sqrt(1/2)..sqrt(2), within 0.93 ulp; log(1 + f) is
 * f - f^2/2 + f^3 times a minimax polynomial. 0x3F3504F3 is sqrt(1/2): subtracting it makes whole exponents of the
 * bits above the lowest 23. What is no positive number adds its own result to something finite. */
static GC_INLINE float gc_logf(float x) {
    const int subnormal = x < 0x1p-126f;
    const float special = gc_selectf(x < INFINITY, gc_selectf(x > 0.0f, 0.0f, -INFINITY), x);
    const float invalid = gc_selectf(x < 0.0f, INFINITY, 0.0f); /* -Inf + Inf is NaN */
    const uint32_t steps = gc_bitsf(x * gc_selectf(subnormal, 0x1p23f, 1.0f)) - 0x3F3504F3u;
    const float n = (float)((int32_t)steps >> 23) - gc_selectf(subnormal, 23.0f, 0.0f);
    const float f = gc_frombitsf((steps & 0x007FFFFFu) + 0x3F3504F3u) - 1.0f;
    float p = -0.0763639957f;
    p = gc_fma_f(p, f, 0.127621993f);
    p = gc_fma_f(p, f, -0.131596133f);
    p = gc_fma_f(p, f, 0.142015815f);
    p = gc_fma_f(p, f, -0.166234091f);
    p = gc_fma_f(p, f, 0.200012416f);
    p = gc_fma_f(p, f, -0.250008196f);
    p = gc_fma_f(p, f, 0.333333313f);
    p = gc_fma_f(p, f, -0.5f);
    const float small = gc_fma_f(p, f * f, 1.42860677e-6f * n); /* ln(2) in two parts: n times the first is exact */
    return gc_fma_f(n, 0.693145752f, f + small) + special + invalid;
}
""",
        "gc_log1pf": """\
/* log(u) + (1 + x - u)/u for u = 1 + x as rounded, within 1.44 ulp: the second term is what rounding lost. Bounds
 * keep it finite where it does not count: at Inf and from -1 down. */
static GC_INLINE float gc_log1pf(float x) {
    const float inside = gc_selectf(x > 0x1p127f, 0x1p127f, x);
    const float u = 1.0f + inside;
    const float lost = (inside - (u - 1.0f)) / gc_selectf(u > 0x1p-24f, u, 0x1p-24f);
    return gc_selectf(u == 1.0f, x, gc_logf(1.0f + x) + lost); /* x: -0 as well */
}
""",
        "gc_logcoshf": """\
/* log(1 + (cosh(x) - 1)) near 0, |x| - ln(2) + log(1 + exp(-2*|x|)) from 1 on, within 3.58 ulp; cosh(x) - 1 is
 * x^2/2 + x^4 times a minimax polynomial in x^2. */
static GC_INLINE float gc_logcoshf(float x) {
    const float a = fabsf(x), s = x * x;
    float p = 2.53328035e-5f;
    p = gc_fma_f(p, s, 0.00138858298f);
    p = gc_fma_f(p, s, 0.0416667163f);
    p = gc_fma_f(p, s, 0.5f);
    const float rest = gc_log1pf(gc_selectf(a < 1.0f, p * s, gc_expf(-2.0f * a)));
    return gc_selectf(a < 1.0f, 0.0f, a - 0.693147181f) + rest;
}
""",
        "gc_logaddexpf": """\
static GC_INLINE float gc_logaddexpf(float a, float b) {
    const float high = gc_selectf(a > b, a, b);
    const float apart = gc_selectf(a == b, 0.0f, fabsf(a - b)); /* of equal infinities too */
    return high + gc_log1pf(gc_expf(-apart));
}
""",
    }
)
"""Name -> C definition, with <math.h> and <stdint.h>, of the float32 functions and of the pieces they share."""
