"""The errors of :mod:`graphc_runtime.errors`, under the compiler's name."""

from graphc_runtime.errors import (
    BuildError,
    CheckpointError,
    DataError,
    DTypeError,
    FormulaError,
    GraphcError,
    GraphError,
    UnknownNameError,
    NumericalError,
    RangeError,
    ShapeError,
)

__all__ = [
    "BuildError",
    "CheckpointError",
    "DTypeError",
    "DataError",
    "FormulaError",
    "GraphError",
    "GraphcError",
    "UnknownNameError",
    "NumericalError",
    "RangeError",
    "ShapeError",
]
