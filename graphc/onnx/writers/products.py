"""Reductions, matrix products, lookups and their transpose."""

from __future__ import annotations

from graphc.graph.node import Node
from graphc.onnx.emission import Emission, writes
from graphc.ops.gather import ScatterAdd, Take
from graphc.ops.matmul import MatMul
from graphc.ops.reduce import ArgReduce, Reduce
from graphc.ops.scatter import Scatter
from graphc.types import Extent, product

_REDUCED = ("float32", "float64", "int32", "int64")


@writes(Reduce)
def write_reduce(e: Emission, node: Node) -> str:
    """Write ReduceSum, ReduceMax or ReduceMin."""
    assert isinstance(node.op, Reduce)
    x, dtype = e.names[node.inputs[0]], node.dtype
    kind, axes = f"Reduce{node.op.kind.capitalize()}", e.integers(node.op.axes)
    if dtype in _REDUCED:
        return e.op(kind, x, axes, keepdims=1)
    return e.cast(e.op(kind, e.cast(x, "int64"), axes, keepdims=1), dtype)


@writes(ArgReduce)
def write_arg_reduce(e: Emission, node: Node) -> str:
    """Write ArgMax or ArgMin."""
    assert isinstance(node.op, ArgReduce)
    (x,) = node.inputs
    name = e.names[x] if x.dtype in _REDUCED else e.cast(e.names[x], "int32")
    return e.op(
        "ArgMax" if node.op.kind == "argmax" else "ArgMin", name, axis=node.op.axis, keepdims=1
    )  # of equal ones the first, as here


@writes(MatMul)
def write_matmul(e: Emission, node: Node) -> str:
    """Write MatMul, or Gemm where a matrix is read transposed."""
    op = node.op
    assert isinstance(op, MatMul)
    names = e.inputs(node)
    if not (op.transpose_a or op.transpose_b):
        return e.op("MatMul", *names)
    if all(i.rank == 2 for i in node.inputs):
        return e.op("Gemm", *names, transA=int(op.transpose_a), transB=int(op.transpose_b))
    turned = []
    for name, operand, transposed in zip(names, node.inputs, (op.transpose_a, op.transpose_b), strict=True):
        axes = [*range(operand.rank - 2), operand.rank - 1, operand.rank - 2]
        turned.append(e.op("Transpose", name, perm=axes) if transposed else name)
    return e.op("MatMul", *turned)


def _rows(e: Emission, index: Node, count: int | Extent) -> str:
    """Return int64 indices within a table: one outside means its nearest row."""
    name = e.names[index] if index.dtype == "int64" else e.cast(e.names[index], "int64")
    if isinstance(count, int):
        last = e.constant(count - 1, "int64")
    else:
        last = e.op("Sub", e.op("Squeeze", e.size(count), e.integers([0])), e.constant(1, "int64"))
    return e.op("Clip", name, e.constant(0, "int64"), last)


@writes(Take)
def write_take(e: Emission, node: Node) -> str:
    """Write Gather."""
    table, index = node.inputs
    return e.op("Gather", e.names[table], _rows(e, index, table.shape[0]), axis=0)


@writes(ScatterAdd)
def write_scatter_add(e: Emission, node: Node) -> str:
    """Write ScatterElements, which adds, on zeros."""
    rows, index = node.inputs
    width = product(node.shape[1:])
    zeros = e.full((node.shape[0], width), 0.0, node.dtype)
    return _scattered(e, node, zeros, index, rows, "add")


@writes(Scatter)
def write_scatter(e: Emission, node: Node) -> str:
    """Write ScatterElements on the table."""
    assert isinstance(node.op, Scatter)
    table, index, rows = node.inputs
    flat = e.reshape(e.names[table], (node.shape[0], product(node.shape[1:])))
    return _scattered(e, node, flat, index, rows, "none" if node.op.kind == "set" else node.op.kind)


def _scattered(e: Emission, node: Node, table: str, index: Node, rows: Node, reduction: str) -> str:
    """Return a table of rows and columns with rows combined into it, in the shape of the node.

    ScatterND would need no repeated indices, but leaves open in which order equal ones come.
    """
    width = product(node.shape[1:])
    places = e.reshape(_rows(e, index, node.shape[0]), (index.type.size, 1))
    if width != 1:
        places = e.op("Expand", places, e.sizes((1, width)))
    updates = e.reshape(e.names[rows], (index.type.size, width))
    return e.reshape(e.op("ScatterElements", table, places, updates, axis=0, reduction=reduction), node.shape)
