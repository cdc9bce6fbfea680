"""The small C functions behind expressions that no single libm call computes.

Each exists for float (suffix ``f``) and double (no suffix); what makes sense for integers also for
``int32_t`` (suffix ``i``) and ``int64_t`` (``l``), and for their unsigned fellows (``u`` and ``ul``). NaN in
gives NaN out, everywhere. Some functions of libm have a float32 version of graphc's own, see
:mod:`graphc.scalar.vectorised`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from graphc.scalar.vectorised import VECTORISED
from graphc.types import INTEGERS, integer_range

SUFFIX: Mapping[str, str] = MappingProxyType(
    {"float32": "f", "float64": "", "int32": "i", "int64": "l", "uint32": "u", "uint64": "ul"}
)
"""What a helper's name ends with, by the dtype it computes in."""

C_TYPE: Mapping[str, str] = MappingProxyType(
    {
        "float32": "float",
        "float64": "double",
        "int32": "int32_t",
        "int64": "int64_t",
        "uint8": "uint8_t",
        "bool": "uint8_t",
        "int8": "int8_t",
        "int16": "int16_t",
        "uint16": "uint16_t",
        "uint32": "uint32_t",
        "uint64": "uint64_t",
    }
)
"""The C type that stores a dtype."""

LARGEST_POWER = 16
"""x**n up to this n is multiplied out in a helper; beyond it ``pow`` is called."""

_FMA = """\
/* a * b + c, rounded once where the processor has an instruction for it. It is written out because a compiler
 * that chooses by itself where to fuse (-ffp-contract) may choose differently from build to build. */
static inline {T} gc_fma_{S}({T} a, {T} b, {T} c) {{
#if defined __FMA__ || defined __ARM_FEATURE_FMA || defined __FP_FAST_FMA
    return __builtin_fma{F}(a, b, c);
#else
    return a * b + c;
#endif
}}
"""

# In the bodies, T is the type, U the unsigned one of an integer type, F the suffix of helpers and libm calls, and
# a literal like 1.0# takes the suffix of its type. Layout is one statement a line, as in the rest of the emitted
# code.
_FLOATING = {
    "sigmoid": """\
static GC_INLINE T gc_sigmoidF(T x) {
    const T e = expF(-fabsF(x)); /* at most 1: never overflows */
    return (x >= 0.0# ? 1.0# : e) / (1.0# + e);
}
""",
    "softplus": """\
static GC_INLINE T gc_softplusF(T x) {
    return (x > 0.0# ? x : 0.0#) + log1pF(expF(-fabsF(x)));
}
""",
    "logcosh": """\
static GC_INLINE T gc_logcoshF(T x) {
    const T a = fabsF(x);
    const T s = sinhF(0.5# * (a < 1.0# ? a : 1.0#)); /* cosh(a) = 1 + 2*sinh(a/2)^2 */
    return a < 1.0# ? log1pF(2.0# * s * s) : a - $LN2 + log1pF(expF(-2.0# * a));
}
""",
    "logaddexp": """\
static GC_INLINE T gc_logaddexpF(T a, T b) {
    const T high = a > b ? a : b;
    return high + (a == b ? $LN2 : log1pF(expF(-fabsF(a - b))));
}
""",
}

_REAL = {
    "maximum": """\
static inline T gc_maximumF(T a, T b) {
    return (a > b || a != a) ? a : b;
}
""",
    "minimum": """\
static inline T gc_minimumF(T a, T b) {
    return (a < b || a != a) ? a : b;
}
""",
    "sign": """\
static inline T gc_signF(T x) {
    return x > 0.0# ? 1.0# : (x < 0.0# ? -1.0# : x);
}
""",
}

_REAL |= {
    "isnan": """\
static inline T gc_isnanF(T x) {
    return x != x ? 1.0# : 0.0#;
}
""",
    "isinf": """\
static inline T gc_isinfF(T x) {
    return fabsF(x) == INFINITY ? 1.0# : 0.0#;
}
""",
    "remainder": """\
static inline T gc_remainderF(T a, T b) {
    return fmodF(a, b);
}
""",
    "modulo": """\
static inline T gc_moduloF(T a, T b) {
    const T r = fmodF(a, b);
    return r != 0.0# && (r < 0.0#) != (b < 0.0#) ? r + b : copysignF(r, r != 0.0# ? r : b);
}
""",
}

_WHOLE = {
    "maximum": """\
static inline T gc_maximumF(T a, T b) {
    return a > b ? a : b;
}
""",
    "minimum": """\
static inline T gc_minimumF(T a, T b) {
    return a < b ? a : b;
}
""",
    "sign": """\
static inline T gc_signF(T x) {
    return (x > 0) - (x < 0);
}
""",
    "abs": """\
static inline T gc_absF(T x) {
    return x < 0 ? (T)(0u - (U)x) : x;
}
""",
    "isnan": """\
static inline T gc_isnanF(T x) {
    (void)x;
    return 0;
}
""",
    "isinf": """\
static inline T gc_isinfF(T x) {
    (void)x;
    return 0;
}
""",
    "quotient": """\
/* 0 where b is 0; the least integer divided by -1 wraps around. */
static inline T gc_quotientF(T a, T b) {
    return b == 0 ? 0 : (b == -1 ? (T)(0u - (U)a) : a / b);
}
""",
    "remainder": """\
static inline T gc_remainderF(T a, T b) {
    return b == 0 || b == -1 ? 0 : a % b;
}
""",
    "modulo": """\
static inline T gc_moduloF(T a, T b) {
    const T r = b == 0 || b == -1 ? 0 : a % b;
    return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}
""",
    "bit_and": """\
static inline T gc_bit_andF(T a, T b) {
    return a & b;
}
""",
    "bit_or": """\
static inline T gc_bit_orF(T a, T b) {
    return a | b;
}
""",
    "bit_xor": """\
static inline T gc_bit_xorF(T a, T b) {
    return a ^ b;
}
""",
    "bit_not": """\
static inline T gc_bit_notF(T a) {
    return ~a;
}
""",
    "shift_left": """\
static inline T gc_shift_leftF(T a, T b) {
    return b < 0 || b >= (T)(8 * sizeof(T)) ? 0 : (T)((U)a << b);
}
""",
    "shift_right": """\
static inline T gc_shift_rightF(T a, T b) {
    return a >> (b < 0 || b >= (T)(8 * sizeof(T)) ? (T)(8 * sizeof(T) - 1) : b);
}
""",
    "whole_power": """\
/* base to the power n by squaring, wrapping around; what a negative n makes no whole number is 0. */
static inline T gc_whole_powerF(T base, T n) {
    U result = 1u, square = (U)base;
    if (n < 0) {
        return base == 1 ? 1 : (base == -1 ? (n % 2 == 0 ? 1 : -1) : 0);
    }
    for (; n > 0; n /= 2) {
        result *= n % 2 == 1 ? square : 1u;
        square *= square;
    }
    return (T)result;
}
""",
}

_UNSIGNED = {
    **_WHOLE,
    "sign": """\
static inline T gc_signF(T x) {
    return x > 0;
}
""",
    "quotient": """\
static inline T gc_quotientF(T a, T b) {
    return b == 0 ? 0 : a / b;
}
""",
    "remainder": """\
static inline T gc_remainderF(T a, T b) {
    return b == 0 ? 0 : a % b;
}
""",
    "modulo": """\
static inline T gc_moduloF(T a, T b) {
    return b == 0 ? 0 : a % b;
}
""",
    "shift_left": """\
static inline T gc_shift_leftF(T a, T b) {
    return b >= 8 * sizeof(T) ? 0 : a << b;
}
""",
    "shift_right": """\
static inline T gc_shift_rightF(T a, T b) {
    return b >= 8 * sizeof(T) ? 0 : a >> b;
}
""",
    "whole_power": """\
/* base to the power n by squaring, wrapping around. */
static inline T gc_whole_powerF(T base, T n) {
    T result = 1u, square = base;
    for (; n > 0; n /= 2) {
        result *= n % 2 == 1 ? square : 1u;
        square *= square;
    }
    return result;
}
""",
    "abs": """\
static inline T gc_absF(T x) {
    return x;
}
""",
}

_TO_INTEGER = """\
/* Truncates towards zero; what is out of range becomes the nearest number of the type, and NaN 0. */
static inline {T} gc_to_{D}{S}({R} x) {{
    return x >= {end} ? {high} : (x > {low} ? ({T})x : (x == x ? {least} : 0));
}}
"""


def _power_body(n: int) -> str:
    """Return the helper for x**n: squarings, then the products that the bits of n ask for."""
    lines = [f"static inline T gc_pow{n}F(T x) {{"]
    if n == 2:
        return "\n".join([*lines, "    return x * x;", "}", ""])
    factors = ["x"] if n & 1 else []
    previous, bit = "x", 2
    while bit <= n:
        if bit == n:
            return "\n".join([*lines, f"    return {previous} * {previous};", "}", ""])
        lines.append(f"    const T x{bit} = {previous} * {previous};")
        previous = f"x{bit}"
        if n & bit:
            factors.append(previous)
        bit *= 2
    return "\n".join([*lines, f"    return {' * '.join(reversed(factors))};", "}", ""])


def c_function(name: str, dtype: str) -> str:
    """Return what a function is called in C for the dtype: graphc's own if there is one, else libm's."""
    own = f"gc_{name}{SUFFIX[dtype]}"
    return own if own in VECTORISED else name + SUFFIX[dtype]


def _instantiate(body: str, dtype: str) -> str:
    text = re.sub(r"\bT\b", C_TYPE[dtype], body)
    text = re.sub(r"\bU\b", "u" + C_TYPE[dtype], text)
    text = re.sub(r"\b([a-z0-9_]+)F\(", lambda call: c_function(call[1], dtype) + "(", text)
    text = text.replace("$LN2", "0.69314718055994531#")
    return text.replace("#", "f" if dtype == "float32" else "")


def _all_helpers() -> dict[str, str]:
    fused = (("f", "float", "f"), ("d", "double", ""))
    helpers = {f"gc_fma_{s}": _FMA.format(T=ctype, S=s, F=f) for s, ctype, f in fused}
    helpers.update(VECTORISED)
    powers = {f"pow{n}": _power_body(n) for n in range(2, LARGEST_POWER + 1)}
    for dtype, suffix in SUFFIX.items():
        own = _UNSIGNED if dtype.startswith("u") else _WHOLE
        own = {**_REAL, **_FLOATING} if dtype.startswith("float") else own
        bodies = {**own, **powers}
        for name, body in bodies.items():
            # What is vectorised already has a text of its own.
            helpers.setdefault(f"gc_{name}{suffix}", _instantiate(body, dtype))
    return helpers | _conversions()


def _conversions() -> dict[str, str]:
    """Return the helpers that make integers of floats."""
    found = {}
    for dtype in INTEGERS:
        low, high = integer_range(dtype)
        name = dtype.upper()
        for real, mark in (("float32", "f"), ("float64", "")):
            # The bounds are powers of two, or zero, which both types hold exactly.
            found[f"gc_to_{dtype}{mark}"] = _TO_INTEGER.format(
                T=C_TYPE[dtype], D=dtype, S=mark, R=C_TYPE[real], end=f"{high + 1}.0{mark}",
                low=f"{low}.0{mark}", high=f"{name}_MAX", least="0" if low == 0 else f"{name}_MIN",
            )  # fmt: skip
    return found


HELPERS: Mapping[str, str] = MappingProxyType(_all_helpers())
"""Helper name -> its complete C11 definition, each after those that it calls; needs <math.h> and <stdint.h>."""

_NEED = re.compile(r"\bgc_[a-z0-9_]+(?=\()|\bGC_INLINE\b")


def helpers_used(c_text: str) -> list[str]:
    """Return the helpers that the C text calls, each after those that it calls itself, by name."""
    ordered: list[str] = []

    def visit(text: str, own: str) -> None:
        for name in sorted(set(_NEED.findall(text)) - {own}):
            if name in HELPERS and name not in ordered:
                visit(HELPERS[name], name)
                ordered.append(name)

    visit(c_text, "")
    return ordered
