"""Extents, shapes and dtypes: what the compiler knows of a tensor before any value exists.

An extent is a Python int, or an :class:`Extent`: a polynomial in the run-time batch ``N`` with
non-negative integer coefficients. Shapes use monomials (``N``, ``3*N``); strides and buffer sizes
may use any polynomial. Whatever does not depend on ``N`` is kept as a plain int.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from graphc.errors import DTypeError, ShapeError

DType: TypeAlias = Literal[
    "float32", "float64", "int32", "int64", "uint8", "bool", "int8", "int16", "uint16", "uint32", "uint64"
]
DTYPES: tuple[DType, ...] = get_args(DType)
ITEMSIZE: dict[DType, int] = {
    "float32": 4, "float64": 8, "int32": 4, "int64": 8, "uint8": 1, "bool": 1,
    "int8": 1, "int16": 2, "uint16": 2, "uint32": 4, "uint64": 8,
}  # fmt: skip
INTEGERS: tuple[DType, ...] = tuple(d for d in DTYPES if "int" in d)
Precision: TypeAlias = Literal["fp32", "tf32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "tf32", "bf16")
"""What a device's products round float32 operands to: not at all, or to what tensor cores multiply."""


@dataclass(frozen=True, slots=True)
class Extent:
    """A polynomial in the batch ``N``: ``coefficients[k]`` multiplies ``N**k``; degree at least one."""

    coefficients: tuple[int, ...]

    def __add__(self, other: Size) -> Size:
        """Return the sum."""
        a, b = self.coefficients, coefficients_of(other)
        width = max(len(a), len(b))
        a += (0,) * (width - len(a))
        b += (0,) * (width - len(b))
        return polynomial([p + q for p, q in zip(a, b, strict=True)])

    __radd__ = __add__

    def __mul__(self, other: Size) -> Size:
        """Return the product."""
        a, b = self.coefficients, coefficients_of(other)
        product = [0] * (len(a) + len(b) - 1)
        for i, p in enumerate(a):
            for j, q in enumerate(b):
                product[i + j] += p * q
        return polynomial(product)

    __rmul__ = __mul__

    def __neg__(self) -> Size:
        """Return the negated polynomial (strides of a flipped axis)."""
        return polynomial([-c for c in self.coefficients])

    def at(self, batch: int) -> int:
        """Return the value for a given batch size."""
        return sum(c * batch**k for k, c in enumerate(self.coefficients))

    def __str__(self) -> str:
        """Return C text such as ``N``, ``3*N`` or ``N*N + 2``."""
        terms = []
        for power, c in reversed(list(enumerate(self.coefficients))):
            if c:
                factors = ([str(c)] if c != 1 or power == 0 else []) + ["N"] * power
                terms.append("*".join(factors))
        return " + ".join(terms)


Size: TypeAlias = int | Extent
Shape: TypeAlias = tuple[Size, ...]
N = Extent((0, 1))


def coefficients_of(size: Size) -> tuple[int, ...]:
    """Return the coefficients of a size, lowest power first."""
    return size.coefficients if isinstance(size, Extent) else (size,)


def polynomial(coefficients: Sequence[int]) -> Size:
    """Return the size with these coefficients, as an int when it does not depend on ``N``."""
    trimmed = list(coefficients)
    while len(trimmed) > 1 and trimmed[-1] == 0:
        trimmed.pop()
    return Extent(tuple(trimmed)) if len(trimmed) > 1 else trimmed[0]


def product(sizes: Iterable[Size]) -> Size:
    """Return the product of the sizes."""
    result: Size = 1
    for size in sizes:
        result = result * size
    return result


def at(size: Size, batch: int) -> int:
    """Return the size for a given batch."""
    return size.at(batch) if isinstance(size, Extent) else size


def divide(size: Size, divisor: Size) -> Size | None:
    """Return ``size / divisor`` if it is a polynomial again (the divisor a monomial), else None."""
    a, b = coefficients_of(size), coefficients_of(divisor)
    power = len(b) - 1
    if b[-1] == 0 or any(b[:-1]) or any(a[:power]) or any(c % b[-1] for c in a):
        return None
    return polynomial([c // b[-1] for c in a[power:]] or [0])


@dataclass(frozen=True, slots=True)
class TensorType:
    """A dtype and a shape."""

    dtype: DType
    shape: Shape

    @property
    def rank(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> Size:
        """The number of elements."""
        return product(self.shape)

    @property
    def is_float(self) -> bool:
        """Whether the dtype can carry a gradient."""
        return self.dtype in ("float32", "float64")

    def with_shape(self, shape: Shape) -> TensorType:
        """Return this dtype with another shape."""
        return TensorType(self.dtype, shape)

    def __str__(self) -> str:
        """Return e.g. ``float32(N, 3, 32, 32)``."""
        return f"{self.dtype}{shape_text(self.shape)}"


def shape_text(shape: Sequence[Size]) -> str:
    """Return a shape as Python would write a tuple: ``(N, 400)``, ``(N,)``, ``()``."""
    inner = ", ".join(str(d) for d in shape)
    return f"({inner},)" if len(shape) == 1 else f"({inner})"


def contiguous_strides(shape: Shape) -> Shape:
    """Return row-major strides in elements."""
    strides: list[Size] = []
    step: Size = 1
    for extent in reversed(shape):
        strides.append(step)
        step = step * extent
    return tuple(reversed(strides))


def broadcast_shapes(*shapes: Shape) -> Shape:
    """Return NumPy's broadcast of the shapes.

    Raises:
        ShapeError: two extents differ and neither is 1.
    """
    rank = max((len(s) for s in shapes), default=0)
    result: list[Size] = []
    for axis in range(rank):
        extents = {s[axis - rank + len(s)] for s in shapes if axis - rank + len(s) >= 0} - {1}
        if len(extents) > 1:
            raise ShapeError("cannot broadcast " + " with ".join(shape_text(s) for s in shapes))
        result.append(extents.pop() if extents else 1)
    return tuple(result)


def integer_range(dtype: str) -> tuple[int, int]:
    """Return the least and the greatest value of an integer dtype or of bool."""
    if dtype == "bool":
        return 0, 1
    unsigned, bits = dtype.startswith("u"), int(dtype.removeprefix("u").removeprefix("int"))
    return (0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def wrapped(value: int, dtype: DType) -> int:
    """Return a whole number as an integer dtype holds it: modulo a power of two."""
    low, high = integer_range(dtype)
    return (value - low) % (high - low + 1) + low


_SIGNED: tuple[DType, ...] = ("int8", "int16", "int32", "int64")
_UNSIGNED: tuple[DType, ...] = ("uint8", "uint16", "uint32", "uint64")


def promote(dtypes: Iterable[DType]) -> DType:
    """Return the dtype of an arithmetic result: the wider float if there is one, else the integer that holds all.

    Raises:
        DTypeError: uint64 meets a signed integer, and no integer holds both.
    """
    found = set(dtypes)
    for real in ("float64", "float32"):
        if real in found:
            return real
    signed = max((k for k, d in enumerate(_SIGNED) if d in found), default=-1)
    unsigned = max((k for k, d in enumerate(_UNSIGNED) if d in found), default=-1)
    if signed < 0:
        return _UNSIGNED[unsigned] if unsigned >= 0 else "bool"
    wanted = max(signed, unsigned + 1)
    if wanted >= len(_SIGNED):
        raise DTypeError(f"no integer holds both uint64 and {_SIGNED[signed]}; cast one of them first")
    return _SIGNED[wanted]


def check_dtype(dtype: str) -> DType:
    """Return the dtype if graphc knows it.

    Raises:
        DTypeError: the dtype is unknown.
    """
    for known in DTYPES:
        if dtype == known:
            return known
    raise DTypeError(f"dtype {dtype!r} is unknown; graphc knows {', '.join(DTYPES)}")


def normalise_axes(axes: int | Sequence[int] | None, rank: int) -> tuple[int, ...]:
    """Return sorted non-negative axes; None means all of them.

    Raises:
        ShapeError: an axis is out of range or named twice.
    """
    if axes is None:
        return tuple(range(rank))
    listed = (axes,) if isinstance(axes, int) else tuple(axes)
    for axis in listed:
        if not isinstance(axis, int) or not -rank <= axis < rank:
            raise ShapeError(f"axis {axis!r} is out of range for rank {rank}")
    positive = tuple(sorted(a % rank for a in listed))
    if len(set(positive)) != len(positive):
        raise ShapeError(f"axes {listed} name an axis twice")
    return positive


def static_size(shape: Sequence[int]) -> int:
    """Return the number of elements of a shape without a batch extent."""
    return math.prod(shape)


def static_shape(shape: Shape) -> tuple[int, ...]:
    """Return a shape whose extents the caller knows to be fixed (the batch has been filled in)."""
    fixed = tuple(d for d in shape if isinstance(d, int))
    assert len(fixed) == len(shape), f"{shape_text(shape)} depends on the batch"
    return fixed
