"""Everything about scalar expressions: elementwise maths in sympy, down to C text.

Expressions are written over ``argument(0)``, ``argument(1)``, ... and are rebuilt with
:func:`substitute` and :func:`piecewise`, never with sympy's own Piecewise evaluation.
"""

from graphc.scalar.describe import describe
from graphc.scalar.differentiate import derivative
from graphc.scalar.from_output import derivative_from_output
from graphc.scalar.functions import (
    expm1,
    log1p,
    logaddexp,
    logcosh,
    maximum,
    minimum,
    sigmoid,
    softplus,
)
from graphc.scalar.helpers import C_TYPE, HELPERS, SUFFIX, helpers_used
from graphc.scalar.literals import literal
from graphc.scalar.numeric import evaluate, flops
from graphc.scalar.parse import FUNCTIONS, parse_formula
from graphc.scalar.printer import to_c
from graphc.scalar.stable import stabilise
from graphc.scalar.symbols import (
    OUTPUT,
    argument,
    at_least,
    at_most,
    compare,
    free_arguments,
    is_condition,
    number,
    piecewise,
    relu,
    substitute,
)
from graphc.scalar.whole import (
    bit_and,
    bit_not,
    bit_or,
    bit_xor,
    isinf,
    isnan,
    modulo,
    quotient,
    remainder,
    rint,
    shift_left,
    shift_right,
    whole_power,
)

__all__ = [
    "C_TYPE",
    "FUNCTIONS",
    "HELPERS",
    "OUTPUT",
    "SUFFIX",
    "argument",
    "at_least",
    "at_most",
    "bit_and",
    "bit_not",
    "bit_or",
    "bit_xor",
    "compare",
    "derivative",
    "derivative_from_output",
    "describe",
    "evaluate",
    "expm1",
    "flops",
    "free_arguments",
    "helpers_used",
    "is_condition",
    "isinf",
    "isnan",
    "literal",
    "log1p",
    "logaddexp",
    "logcosh",
    "maximum",
    "minimum",
    "modulo",
    "number",
    "parse_formula",
    "piecewise",
    "quotient",
    "relu",
    "remainder",
    "rint",
    "shift_left",
    "shift_right",
    "sigmoid",
    "softplus",
    "stabilise",
    "substitute",
    "to_c",
    "whole_power",
]
