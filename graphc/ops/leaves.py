"""Leaves of the graph: inputs, parameters, state, constants, and values made from nothing but an index."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from graphc.errors import GraphcError, RangeError, ShapeError
from graphc.graph.node import Node, Op, names_the_line
from graphc.initialisers import Initialiser, as_initialiser
from graphc.types import DType, N, Shape, Size, TensorType, check_dtype, shape_text, wrapped

_identities = itertools.count()
_EXACT = 2**53  # up to which a float64 holds every whole number


class Scope:
    """The layer that a parameter belongs to; one without a name is named when the graph is compiled."""

    def __init__(self, kind: str, name: str | None = None):
        """Make the scope of one layer, e.g. kind ``conv2d``, name ``conv1``."""
        self.kind = kind
        self.name = name


class Leaf(Op):
    """An op without inputs; it stands for storage or for a value that an index determines."""

    def vjp(self, node: Node, cotangent: Node) -> Sequence[Node | None]:
        """Return nothing: there is no input to differentiate for."""
        return ()

    def reference(self, *arrays: np.ndarray) -> np.ndarray:
        """Refuse: the interpreter supplies the values of leaves."""
        raise GraphcError(f"{self.title}: the value of a leaf comes from the interpreter's environment")


@dataclass(frozen=True)
class Input(Leaf):
    """An array that the caller passes at every call. ``identity`` keeps two graphs' inputs apart."""

    label: ClassVar[str] = "input"
    name: str
    dtype: DType
    shape: Shape
    identity: int = field(default_factory=lambda: next(_identities), repr=False)

    def infer(self, *types: TensorType) -> TensorType:
        """Return the declared type."""
        return TensorType(self.dtype, self.shape)


@dataclass(frozen=True, eq=False)
class Parameter(Leaf):
    """A learned (or fixed) array that the module owns. Compared by identity: sharing is explicit."""

    label: ClassVar[str] = "parameter"
    dtype: DType
    shape: tuple[int, ...]
    initial: Initialiser
    scope: Scope
    field: str
    trainable: bool = True

    def infer(self, *types: TensorType) -> TensorType:
        """Return the declared type."""
        return TensorType(self.dtype, self.shape)


@dataclass(frozen=True, eq=False)
class State(Leaf):
    """An array that a training step changes by assignment, such as a running mean."""

    label: ClassVar[str] = "state"
    dtype: DType
    shape: tuple[int, ...]
    initial: Initialiser
    scope: Scope
    field: str

    def infer(self, *types: TensorType) -> TensorType:
        """Return the declared type."""
        return TensorType(self.dtype, self.shape)


@dataclass(frozen=True)
class Constant(Leaf):
    """An array known when compiling. Held as bytes so that equal constants are one node.

    Floating-point values are held in float64 whatever the dtype, so that the graph loses nothing when it
    is compiled in double precision.
    """

    label: ClassVar[str] = "constant"
    dtype: DType
    shape: tuple[int, ...]
    data: bytes = field(repr=False)

    def infer(self, *types: TensorType) -> TensorType:
        """Return the array's type."""
        return TensorType(self.dtype, self.shape)

    @property
    def values(self) -> np.ndarray:
        """The array; float64 for floating-point dtypes."""
        held = "float64" if self.dtype in ("float32", "float64") else self.dtype
        return np.frombuffer(self.data, dtype=held).reshape(self.shape)


@dataclass(frozen=True)
class Full(Leaf):
    """One number in every element; never stored, it is printed where it is read."""

    label: ClassVar[str] = "full"
    dtype: DType
    shape: Shape
    value: float

    @property
    def attributes(self) -> str:
        """The value."""
        return f"{self.value:g}"

    def infer(self, *types: TensorType) -> TensorType:
        """Return the declared type."""
        return TensorType(self.dtype, self.shape)


@dataclass(frozen=True)
class Iota(Leaf):
    """The index along one axis; never stored."""

    label: ClassVar[str] = "iota"
    dtype: DType
    shape: Shape
    axis: int

    def infer(self, *types: TensorType) -> TensorType:
        """Return the declared type."""
        return TensorType(self.dtype, self.shape)


@dataclass(frozen=True)
class BatchExtent(Leaf):
    """A run-time size as a floating-point scalar: what a mean over the batch divides by."""

    label: ClassVar[str] = "extent"
    dtype: DType
    size: Size

    @property
    def attributes(self) -> str:
        """The size."""
        return str(self.size)

    def infer(self, *types: TensorType) -> TensorType:
        """Return a scalar."""
        return TensorType(self.dtype, ())


class RandomKey:
    """Makes one call of a random layer different from the next; numbered when the graph is compiled."""


@dataclass(frozen=True)
class RandomUniform(Leaf):
    """Uniform [0, 1) from Philox-4x32-10, a function of (seed, step, stream, element index) alone.

    Source: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011. Never stored: a
    backward kernel computes the same numbers again.
    """

    label: ClassVar[str] = "random_uniform"
    dtype: DType
    shape: Shape
    stream: RandomKey | int

    def infer(self, *types: TensorType) -> TensorType:
        """Return the declared type."""
        return TensorType(self.dtype, self.shape)


@names_the_line
def input_(name: str, shape: Sequence[Size | str], dtype: str = "float32") -> Node:
    """Return an array that the caller passes at every call; ``"N"`` is the run-time batch.

    Raises:
        ShapeError: an extent is neither a positive int nor ``"N"``, or ``"N"`` is not the first.
        DTypeError: the dtype is unknown.
    """
    if not isinstance(name, str) or not name:
        raise RangeError(f"input: a name must be a non-empty string, got {name!r}")
    if not isinstance(shape, (tuple, list)):
        raise ShapeError(f"input {name!r}: a shape is a tuple such as ('N', 3), got {shape!r}")
    extents: list[Size] = []
    for position, extent in enumerate(shape):
        if isinstance(extent, str):
            if extent != "N" or position != 0:
                raise ShapeError(f"input {name!r}: only the first extent may be 'N', got {tuple(shape)}")
            extents.append(N)
        elif isinstance(extent, int) and not isinstance(extent, bool) and extent > 0:
            extents.append(extent)
        else:
            raise ShapeError(f"input {name!r}: extents must be positive ints or 'N', got {tuple(shape)}")
    return Input(name, check_dtype(dtype), tuple(extents))(name=name)


@names_the_line
def parameter(
    name: str | None,
    shape: Sequence[int],
    initial: Initialiser | float | np.ndarray = 0.0,
    *,
    trainable: bool = True,
    dtype: str = "float32",
) -> Node:
    """Return a parameter of its own, outside any ready-made layer.

    Raises:
        ShapeError: an extent is not a positive int.
    """
    if not all(isinstance(d, int) and d > 0 for d in shape):
        raise ShapeError(f"parameter {name!r}: extents must be positive ints, got {tuple(shape)}")
    if np.ndim(initial) and np.shape(initial) != tuple(shape):  # type: ignore[arg-type]
        raise ShapeError(f"parameter {name!r}: expected shape {tuple(shape)}, got {np.shape(initial)}")  # type: ignore[arg-type]
    scope = Scope("parameter", name)
    leaf = Parameter(check_dtype(dtype), tuple(shape), as_initialiser(initial), scope, "", trainable)
    return leaf(name=name)


@names_the_line
def constant(values: np.ndarray | float | Sequence[float], dtype: str | None = None) -> Node:
    """Return an array known when compiling; float64 input becomes float32 unless a dtype is given."""
    try:
        array = np.asarray(values)
    except ValueError:
        raise ShapeError("constant: rows of different lengths are no array") from None
    chosen = dtype or {"float64": "float32", "float16": "float32"}.get(str(array.dtype), str(array.dtype))
    held = "float64" if check_dtype(chosen) in ("float32", "float64") else chosen
    array = np.array(array, dtype=held, order="C")
    if array.size == 0:
        raise ShapeError(f"constant: empty arrays are not supported, got shape {shape_text(array.shape)}")
    if array.ndim == 0 and (held == "float64" or abs(int(array)) <= _EXACT):
        return Full(check_dtype(chosen), (), float(array))()
    return Constant(check_dtype(chosen), array.shape, array.tobytes())()


def full(shape: Shape, value: float, dtype: DType = "float32") -> Node:
    """Return one number in every element; integers wrap as their dtype does."""
    if not dtype.startswith("float") and math.isfinite(value):
        value = wrapped(int(value), dtype)
    return Full(dtype, shape, float(value))()


@dataclass(frozen=True)
class Folded(Leaf):
    """A value that inference needs of the parameters alone, computed once whenever they change."""

    label: ClassVar[str] = "folded"
    dtype: DType
    shape: tuple[int, ...]
    number: int

    def infer(self, *types: TensorType) -> TensorType:
        """Return the declared type."""
        return TensorType(self.dtype, self.shape)


@dataclass(frozen=True)
class Frozen(Folded):
    """A value that every entry point needs of parameters that are not trained alone."""

    label: ClassVar[str] = "frozen"
