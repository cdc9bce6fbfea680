"""Which functions of the C library's mathematics a source calls."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Of <math.h>; not those that compilers write as instructions on every processor: fabs, copysign, comparisons, and
# sqrt where it need not set errno.
_FUNCTIONS = (
    "acosh?|asinh?|atan[2h]?|cbrt|ceil|cosh?|erfc?|exp2?|expm1|floor|fmod|hypot|lgamma|log10|log1p|log2|log|nearbyint|pow|"
    "remainder|rint|round|sinh?|tanh?|tgamma|trunc"
)
_CALL = re.compile(rf"(?<![\w.>])({_FUNCTIONS})f?\(")
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)


def library_calls(sources: Iterable[str]) -> list[str]:
    """Return the functions that the texts call, without the suffix of float, in order."""
    return sorted({name for text in sources for name in _CALL.findall(_COMMENT.sub("", text))})
