"""One row per function: its C name and its NumPy meaning. Printing and evaluation share it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import sympy as sp

from graphc.scalar import functions as fn
from graphc.scalar import whole

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Row:
    """What a sympy function is called in C and what it computes in float64.

    ``c_name`` lacks the suffix of the dtype; ``integer`` says that int operands give an int result.
    """

    c_name: str
    numpy: Callable[..., Array]
    integer: bool = False

    @property
    def helper(self) -> bool:
        """Whether the C name is one of graphc's own small functions."""
        return self.c_name.startswith("gc_")


_erf = np.vectorize(math.erf, otypes=[np.float64])
_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def _sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, e) / (1.0 + e)


def _softplus(x: Array) -> Array:
    return np.logaddexp(0.0, x)


def _logcosh(x: Array) -> Array:
    a = np.abs(x)
    s = np.sinh(0.5 * np.minimum(a, 1.0))
    return np.where(a < 1.0, np.log1p(2.0 * s * s), a - math.log(2.0) + np.log1p(np.exp(-2.0 * a)))


CATALOGUE: Mapping[type[sp.Basic], Row] = MappingProxyType(
    {
        sp.exp: Row("exp", np.exp),
        sp.log: Row("log", np.log),
        sp.sin: Row("sin", np.sin),
        sp.cos: Row("cos", np.cos),
        sp.tan: Row("tan", np.tan),
        sp.asin: Row("asin", np.arcsin),
        sp.acos: Row("acos", np.arccos),
        sp.atan: Row("atan", np.arctan),
        sp.atan2: Row("atan2", np.arctan2),
        sp.sinh: Row("sinh", np.sinh),
        sp.cosh: Row("cosh", np.cosh),
        sp.tanh: Row("tanh", np.tanh),
        sp.asinh: Row("asinh", np.arcsinh),
        sp.acosh: Row("acosh", np.arccosh),
        sp.atanh: Row("atanh", np.arctanh),
        sp.erf: Row("erf", _erf),
        sp.erfc: Row("erfc", _erfc),
        sp.floor: Row("floor", np.floor),
        sp.ceiling: Row("ceil", np.ceil),
        sp.Abs: Row("fabs", np.abs, integer=True),
        sp.sign: Row("gc_sign", np.sign, integer=True),
        fn.log1p: Row("log1p", np.log1p),
        fn.expm1: Row("expm1", np.expm1),
        fn.sigmoid: Row("gc_sigmoid", _sigmoid),
        fn.softplus: Row("gc_softplus", _softplus),
        fn.logcosh: Row("gc_logcosh", _logcosh),
        fn.logaddexp: Row("gc_logaddexp", np.logaddexp),
        fn.maximum: Row("gc_maximum", np.maximum, integer=True),
        fn.minimum: Row("gc_minimum", np.minimum, integer=True),
        whole.rint: Row("rint", whole.NUMPY[whole.rint]),
        **{
            f: Row(f"gc_{f.__name__}", meaning, integer=True)
            for f, meaning in whole.NUMPY.items()
            if f is not whole.rint
        },
    }
)
"""sympy function class -> its row. A function that is not here is refused with a FormulaError."""
