"""The errors of :mod:`graphc_runtime.errors`, under the compiler's name."""

from graphc_runtime.errors import (
    BuildError,
    CheckpointError,
    DataError,
    DeviceError,
    DTypeError,
    FormulaError,
    GraphcError,
    GraphError,
    NumericalError,
    RangeError,
    ShapeError,
    UnknownNameError,
)

__all__ = [
    "BuildError",
    "CheckpointError",
    "DTypeError",
    "DataError",
    "DeviceError",
    "FormulaError",
    "GraphError",
    "GraphcError",
    "NumericalError",
    "RangeError",
    "ShapeError",
    "UnknownNameError",
]
