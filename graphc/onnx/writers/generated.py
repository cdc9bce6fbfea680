"""Leaves that are no storage: numbers, indices, sizes; random numbers are inputs (see ``export``)."""

from __future__ import annotations

import numpy as np

from graphc.graph.node import Node
from graphc.onnx.emission import Emission, writes
from graphc.ops.control import Bounded, KnownSlope, StopGradient
from graphc.ops.leaves import BatchExtent, Constant, Full, Iota


@writes(Full)
def write_full(e: Emission, node: Node) -> str:
    """Write a number, or a tensor of it."""
    assert isinstance(node.op, Full)
    return e.full(node.shape, node.op.value, node.dtype)


@writes(Constant)
def write_constant(e: Emission, node: Node) -> str:
    """Write an array."""
    assert isinstance(node.op, Constant)
    return e.constant(node.op.values, node.dtype)


@writes(Iota)
def write_iota(e: Emission, node: Node) -> str:
    """Write a range along its axis, repeated along the others."""
    assert isinstance(node.op, Iota)
    axis, extent = node.op.axis, node.shape[node.op.axis]
    along = [-1 if a == axis else 1 for a in range(node.rank)]
    if isinstance(extent, int):
        numbers = e.constant(np.arange(extent).reshape(along), "int64")
    else:
        stop = e.op("Squeeze", e.size(extent), e.integers([0]))
        ints = e.op("Range", e.constant(0, "int64"), stop, e.constant(1, "int64"))
        numbers = e.op("Reshape", ints, e.integers(along))
    if node.dtype != "int64":
        numbers = e.cast(numbers, node.dtype)
    if all(d == 1 for a, d in enumerate(node.shape) if a != axis):
        return numbers
    return e.op("Expand", numbers, e.sizes(node.shape))


@writes(BatchExtent)
def write_extent(e: Emission, node: Node) -> str:
    """Write a size as a floating-point number."""
    assert isinstance(node.op, BatchExtent)
    return e.cast(e.op("Squeeze", e.size(node.op.size), e.integers([0])), node.dtype)


@writes(Bounded, StopGradient, KnownSlope)
def write_control(e: Emission, node: Node) -> str:
    """Write nothing: what only guides the compiler passes its value on."""
    return e.names[node.inputs[0]]
