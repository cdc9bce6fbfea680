"""Anchored groups: one op with a template of its own, and the epilogue fused to it."""

from __future__ import annotations

from collections.abc import Callable

from graphc import scalar
from graphc.graph.node import Node
from graphc.lower.body import Operands, Reader, Storage, compute, live_nodes
from graphc.lower.names import Names, apart_from
from graphc.ops.anchor import Anchor
from graphc.ops.movement import View
from graphc.ops.pool2d import MaxPool2d, MaxPool2dIndex, PoolGeometry
from graphc.passes.fuse import Group
from graphc.program.ir import Access, Buffer, Compute, Epilogue, Kernel, Operand, Statement, Store
from graphc.types import ITEMSIZE, Shape, Size, product


def lower_anchor(
    group: Group,
    storage: Storage,
    contiguous: Callable[[Node], Buffer],
    place: Callable[[Node], tuple[Buffer, View]],
    scratch: Callable[[Node, Shape], Buffer],
) -> tuple[Kernel, list[Buffer]]:
    """Return the kernel of an anchored group and the buffers of its call."""
    anchor = group.anchor
    assert anchor is not None and isinstance(anchor.op, Anchor)
    op = anchor.op
    operands = Operands()
    for name, operand in zip(op.operand_names, anchor.inputs, strict=True):
        # An op may read one buffer in two roles (a gram matrix): every role is a parameter of its own.
        operands.operands.append(Operand(name, operand.dtype, False, operand.shape))
        operands.buffers.append(contiguous(operand))
    types = [i.type for i in anchor.inputs]
    needed = op.workspace(anchor.type, *types)
    if needed:
        operands.operands.append(Operand("workspace", anchor.dtype, True, needed))
        operands.buffers.append(scratch(anchor, needed))
    fixed = len(operands.operands)
    epilogue, operations = _epilogue(group, anchor, op, operands, storage, place)
    touched: Size = 0
    for parameter in operands.operands:
        touched = touched + product(parameter.shape) * ITEMSIZE[parameter.dtype]
    values = {"acc", *(s.name for s in (*epilogue.statements, *epilogue.after))}
    kernel = Kernel(
        op.template, op.spec(anchor.type, *types),
        apart_from(values, operands.operands, fixed), epilogue, op.formula,
        op.flops(anchor.type, *types) + anchor.type.size * operations, touched,
        anchor.dtype if anchor.type.is_float else types[0].dtype, True,
    )  # fmt: skip
    return kernel, operands.buffers


def _epilogue(
    group: Group,
    anchor: Node,
    op: Anchor,
    operands: Operands,
    storage: Storage,
    place: Callable[[Node], tuple[Buffer, View]],
) -> tuple[Epilogue, int]:
    """Return the epilogue and its operations per element."""
    fixed = len(operands.operands)
    names = Names()
    for taken in (
        "acc",
        "workspace",
        "pool_max",
        "pool_index",
        *op.operand_names,
        *op.epilogue_axes(anchor.shape),
    ):
        names.reserve(taken)
    values: dict[Node, str] = {anchor: "acc"}
    lists: list[list[Statement]] = [[], []]
    pool: PoolGeometry | None = None
    pooled_value = ""
    stage = 0
    readers = [Reader(anchor.shape, operands, storage, names)]
    for node in live_nodes(group.nodes[1:], group.outputs):
        if isinstance(node.op, (MaxPool2d, MaxPool2dIndex)):
            if pool is None:
                readers.append(Reader(node.shape, operands, storage, names))
            stage, pool, pooled_value = 1, node.op.geometry, values[node.inputs[0]]
            values[node] = "pool_max" if isinstance(node.op, MaxPool2d) else "pool_index"
            continue
        arguments = []
        for operand in node.inputs:
            if operand not in values:
                values[operand] = readers[stage].external(operand, lists[stage].append)
            arguments.append(values[operand])
        values[node] = names.fresh(node.op.title)
        lists[stage].append(compute(node, values[node], arguments))
    stores = []
    for node in group.outputs:
        buffer, view = place(node)
        position = operands.add("out", buffer, node.shape, True)
        access = Access(view.strides, view.offset) if op.epilogue_axes(anchor.shape) else Access(())
        stores.append(Store(position, access, values[node]))
    operations = sum(max(1, scalar.flops(s.expr)) for s in lists[0] + lists[1] if isinstance(s, Compute))
    axes = op.epilogue_axes(anchor.shape)
    before, after = map(tuple, lists)
    return Epilogue(axes, fixed, before, tuple(stores), pool, pooled_value, after), operations
