"""What a name of an ONNX graph stands for while it is read: a tensor of the graph, or an array that is known."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from graphc.graph.node import Node
from graphc.types import Shape


@dataclass(frozen=True, eq=False)
class Known:
    """An array that is known while the model is read.

    An element of a shape that depends on the run-time batch is an :class:`graphc.types.Extent`; the array's dtype
    is object then. ``weight`` is the name of the initializer that the array is, where it is a floating-point one
    with axes: such an array becomes a parameter as soon as the graph needs it. It is "" for all others.
    """

    array: np.ndarray
    weight: str = ""

    @property
    def symbolic(self) -> bool:
        """Whether an element depends on the run-time batch."""
        return self.array.dtype == object


Value: TypeAlias = Node | Known


@dataclass(frozen=True, eq=False)
class Listed(Known):
    """A sequence of values, whose length is known; as an array it has no elements."""

    items: tuple[Value, ...] = ()

    @classmethod
    def of(cls, items: Iterable[Value]) -> Listed:
        """Return a sequence of these values."""
        return cls(np.empty(0, object), "", tuple(items))


HALVES = ("float16", "bfloat16")
"""Dtypes of 16 bits, which are held and computed in float32."""


def widened(array: np.ndarray) -> np.ndarray:
    """Return an array of floats of 16 bits in float32, which has all their values; any other as it is."""
    return array.astype(np.float32) if str(array.dtype) in HALVES else array


def shape_of(value: Value) -> Shape:
    """Return the shape of what a name stands for."""
    return value.shape if isinstance(value, Node) else value.array.shape


def known_sizes(sizes: Shape) -> Known:
    """Return a shape as an int64 array, or as an array of objects where an extent depends on the batch."""
    whole = all(isinstance(d, int) for d in sizes)
    array = np.empty(len(sizes), np.int64 if whole else object)
    array[:] = sizes
    return Known(array)
