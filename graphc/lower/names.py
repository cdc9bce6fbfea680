"""Identifiers of the generated code: what a user calls a tensor, the language may know as something else."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace

from graphc.program.ir import Operand


def words(text: str) -> frozenset[str]:
    """Return the words of a table."""
    return frozenset(text.split())


# Words of C and of C++ (the header is for both), and macros and types of the headers that are included.
_WORDS = words(
    "auto break case char const continue default do double else enum extern float for goto if inline int "
    "long register restrict return short signed sizeof static struct switch typedef union unsigned void "
    "volatile while asm typeof alignas alignof and and_eq bitand bitor bool catch class compl concept "
    "const_cast consteval constexpr constinit co_await co_return co_yield decltype delete dynamic_cast "
    "explicit export false friend module import mutable namespace new noexcept not not_eq nullptr "
    "operator or or_eq private protected public reinterpret_cast requires static_assert static_cast "
    "template this thread_local throw true try typeid typename using virtual xor xor_eq linux unix i386 "
    "stdin stdout stderr errno signgam math_errhandling N threads in main gc_random"
)
# Names in capitals are macros (NULL, EOF, M_PI), names in _t are types, and some beginnings belong to the
# compiler (_Bool, __LINE__) or to the helpers of the generated code.
_RESERVED_FORM = re.compile(r"[A-Z][A-Z0-9_]+|.*_t|gc_.*|GC_.*|omp_.*|FILE")

_MATHS = words(
    "acos acosh asin asinh atan atan2 atanh cbrt ceil copysign cos cosh erf erfc exp exp2 expm1 fabs fdim "
    "floor fma fmax fmin fmod frexp hypot ilogb ldexp lgamma llrint llround log log10 log1p log2 logb "
    "lrint lround modf nan nearbyint nextafter pow remainder remquo rint round scalbln scalbn sin sinh "
    "sqrt tan tanh tgamma trunc j0 j1 jn y0 y1 yn gamma drem exp10 pow10 significand"
)
# What values and arrays inside a kernel must not be called: functions that its code may call, and variables
# of the templates, of the loop nests and of the others.
_LOOP_WORDS = {m + kind for m in _MATHS for kind in ("", "f", "l")} | words(
    "abs labs isnan isinf isfinite signbit memset memcpy snprintf printf block width lane random update inout "
    "run numbers shares lr steps"  # of CUDA's kernels
)
_ANCHOR_WORDS = words(
    "sum acc row first tile top left rows columns group image base end from to shift reach partial n c o y x "
    "h w i j k b p q r s d a v g value best tap inside at weights grads count live panel pixel cotangent "
    "factor index channel vector taps a_lead above b_lead begin below c0 groups i_begin images line most "
    "other packed part pixels points product result rows_begin share strip sums t wanted window windows wins "
    "plane band start stop row_tap candidate kept column map border fresh last again next given held "
    "ki kj result results term terms element tile_a tile_b depth stream"
)
_FORM = re.compile(
    r"(i|v|at|tap|wins|row|base_|pool_)\d*|s(\d+_)?\d+|[ijpq]_(shift|end|reach)|.*_(lanes|best|memory|context)"
)


def c_name(text: str) -> str:
    """Return text as a C identifier: other characters become underscores, a word of the language gets one."""
    name = re.sub(r"[^0-9A-Za-z_]", "_", text)
    if not name or name[0].isdigit() or re.match(r"_[A-Z_]", name):
        name = f"v{name}"
    return f"{name}_" if name in _WORDS or _RESERVED_FORM.fullmatch(name) else name


class Names:
    """Hands out C names that are unique within a kernel."""

    def __init__(self) -> None:
        """Start with no name taken."""
        self._taken: set[str] = set()

    def fresh(self, base: str) -> str:
        """Return the base, or the base with a number."""
        stem = c_name(base)
        reserved = stem in _LOOP_WORDS or stem in _ANCHOR_WORDS or _FORM.fullmatch(stem)
        stem = f"{stem}_value" if reserved else stem
        name, number = stem, 1
        while name in self._taken:
            number += 1
            name = f"{stem}_{number}"
        self._taken.add(name)
        return name

    def reserve(self, name: str) -> None:
        """Keep a name of the template's from being handed out."""
        self._taken.add(name)


def apart_from(values: Collection[str], operands: Sequence[Operand], fixed: int = -1) -> tuple[Operand, ...]:
    """Return the operands, renamed where a value or a variable of the template has the same name.

    The first ``fixed`` are called as the template calls them; -1 stands for a loop nest, which has none.
    """
    taken = {*values, *_LOOP_WORDS, *(_ANCHOR_WORDS if fixed >= 0 else ())}
    names = {o.name for o in operands}
    result = list(operands)
    for position, operand in enumerate(operands):
        name = operand.name
        if position < fixed or not (name in taken or _FORM.fullmatch(name)):
            continue
        while name in taken or name in names or _FORM.fullmatch(name):
            name += "_array"
        names.add(name)
        result[position] = replace(operand, name=name)
    return tuple(result)
