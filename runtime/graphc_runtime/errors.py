"""Every error that graphc raises on purpose, in one leaf module that imports nothing.

The compiler and the runtime share these classes; ``graphc.errors`` re-exports them, so that
``except graphc.GraphcError`` catches what either of them raises.
"""

from __future__ import annotations


class GraphcError(Exception):
    """Something the user can mend; the message names the op, the rule, the values and the place."""

    located = False  # whether the message names the user's line already


class ShapeError(GraphcError, ValueError):
    """Shapes, ranks or batch sizes do not fit together."""


class DTypeError(GraphcError, TypeError):
    """An array or tensor has a dtype that the operation does not take."""


class RangeError(GraphcError, ValueError):
    """A value lies outside what is allowed: a label, an option, an axis."""


class UnknownNameError(GraphcError, KeyError):
    """A name is unknown, used twice, or no valid name."""

    def __str__(self) -> str:
        """Return the plain message (``KeyError`` would show its repr)."""
        return str(self.args[0]) if self.args else ""


class GraphError(GraphcError, ValueError):
    """The graph itself is not one that can be compiled: cyclic, disconnected, loss not scalar."""


class FormulaError(GraphcError, ValueError):
    """A user's formula cannot be read, or contains what graphc cannot differentiate or print."""


class BuildError(GraphcError, RuntimeError):
    """The C compiler is missing or failed, or the build cache cannot be used safely."""


class CheckpointError(GraphcError, ValueError):
    """A file of weights or training state is truncated, foreign or does not fit the net."""


class DataError(GraphcError, ValueError):
    """A data file is truncated, malformed or missing."""


class NumericalError(GraphcError, ArithmeticError):
    """``nan_guard`` found the first NaN or Inf; the message names node, kernel and line."""


class DeviceError(GraphcError, RuntimeError):
    """There is no GPU, it has too little memory, or it could not do what it was told."""
