"""One entry point: groups become calls of kernels on buffers, and every value gets a place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from graphc.errors import GraphError
from graphc.graph.node import Node
from graphc.lower.anchors import lower_anchor
from graphc.lower.body import Operands
from graphc.lower.loops import copy_kernel, loop_kernel, lower_loops
from graphc.lower.names import c_name
from graphc.ops.anchor import Anchor
from graphc.ops.movement import Concat, Movement, Place, View
from graphc.ops.packed import Pack, PackSpec
from graphc.ops.winograd import WinogradWeight, WinogradWeightSpec
from graphc.passes.fuse import Group
from graphc.passes.generated import is_generated
from graphc.program.ir import Access, Buffer, Call, Kernel, LoopSpec, Number, Operand, Space, Store, Sweep
from graphc.types import ITEMSIZE, Shape, Size, contiguous_strides, product, static_shape


class EntryLowering:
    """Lowers the groups of one entry point; ``calls`` grows in execution order."""

    def __init__(self, stored: Mapping[Node, Buffer], slices: bool = True):
        """Start with the buffers of leaves. ``slices`` lets kernels write parts of concatenations in place."""
        self.stored = dict(stored)
        self._may_slice = slices
        self._direct: dict[Node, Buffer] = {}
        self._slices: dict[Node, tuple[Node, View]] = {}
        self.calls: list[Call] = []
        self._names: set[str] = set()

    def lower(self, groups: list[Group], results: Sequence[tuple[Node, Buffer]]) -> None:
        """Append the calls of all groups, then copies for results that no kernel writes directly."""
        computed = {n for g in groups for n in g.outputs}
        self._claim_results(computed, results)
        self._claim_slices(groups)
        for group in groups:
            self._lower_group(group)
        for node, buffer in results:
            if self.stored.get(node) != buffer:
                self._copy(node, buffer)

    def _claim_results(self, computed: set[Node], results: Sequence[tuple[Node, Buffer]]) -> None:
        """Let kernels write results in place, also where the result is only another shape of what they give."""
        for node, buffer in results:
            base, view = _base(node), View.contiguous(node.shape)
            located: View | None = View.contiguous(base.shape)
            for step in _movements(node):
                located = (
                    step.op.view(located, step.shape) if located and isinstance(step.op, Movement) else None
                )
            same = located is not None and located.is_contiguous and base.type.size == node.type.size
            if base in computed and base not in self._direct and same and view.is_contiguous:
                self._direct[base] = buffer
                if base is not node:
                    self.stored[node] = buffer

    def _claim_slices(self, groups: Sequence[Group]) -> None:
        """Let kernels write an operand of a concatenation where it belongs in the whole.

        Not where an anchor reads the operand as well, since that needs it in one piece.
        """
        apart = {
            _base(operand)
            for group in groups
            if group.anchor is not None and isinstance(group.anchor.op, Anchor)
            for operand in group.anchor.inputs
        }
        by_stores = {
            node
            for group in groups
            if group.anchor is None or _stores_anywhere(group.anchor)
            for node in group.outputs
            if node not in apart and node not in self._direct
        }
        for group in groups if self._may_slice else ():
            if group.anchor is None or not isinstance(group.anchor.op, Concat):
                continue
            for operand, view in _slices(group.anchor, group.anchor.op):
                if operand in by_stores:
                    self._slices.setdefault(operand, (group.anchor, view))

    def place(self, node: Node) -> tuple[Buffer, View]:
        """Return the buffer of a kernel's output, and where in it the elements go."""
        if node in self._slices:
            whole, view = self._slices[node]
            self.stored[node] = self.whole(whole)
            return self.stored[node], view
        return self.whole(node), View.contiguous(node.shape)

    def whole(self, node: Node) -> Buffer:
        """Return the buffer that holds a kernel's output and nothing else."""
        if node not in self.stored or node in self._direct:
            self.stored[node] = self._direct.get(node) or self._arena(node)
        return self.stored[node]

    def _arena(self, node: Node) -> Buffer:
        return Buffer(self._fresh(node.name or node.op.title), node.dtype, node.type.size, Space.ARENA)

    def _fresh(self, text: str) -> str:
        base = c_name(text)
        name, number = base, 1
        while name in self._names:
            number += 1
            name = f"{base}_{number}"
        self._names.add(name)
        return name

    def is_stored(self, node: Node) -> bool:
        """Return whether a node has a buffer of its own."""
        return node in self.stored

    def locate(self, node: Node) -> tuple[Buffer, View]:
        """Return where a node's elements lie, making a copy where no strides express it."""
        if node in self._slices:
            return self.stored[node], self._slices[node][1]
        if node in self.stored:
            return self.stored[node], View.contiguous(node.shape)
        if isinstance(node.op, Movement) and not is_generated(node):
            buffer, view = self.locate(node.inputs[0])
            moved = node.op.view(view, node.shape)
            if moved is not None:
                return buffer, moved
            buffer = self.contiguous(node.inputs[0])
            moved = node.op.view(View.contiguous(node.inputs[0].shape), node.shape)
            assert moved is not None, f"{node!r} has no view of a contiguous buffer"
            return buffer, moved
        if is_generated(node):
            buffer = self._arena(node)
            self._copy(node, buffer)
            self.stored[node] = buffer
            return buffer, View.contiguous(node.shape)
        raise GraphError(f"internal error: {node!r} is read before it is computed")

    def contiguous(self, node: Node) -> Buffer:
        """Return a buffer that holds a node's elements in row-major order from its start."""
        if node in self.stored and node not in self._slices:
            return self.stored[node]
        buffer, view = self.locate(node)
        if not view.is_contiguous or buffer.size != node.type.size:
            buffer = self._arena(node)
            self._copy(node, buffer)
            self.stored[node] = buffer
        return buffer

    def _copy(self, node: Node, buffer: Buffer) -> None:
        kernel, buffers = copy_kernel(node, self, buffer, Access(contiguous_strides(node.shape)), node.shape)
        self._call(kernel, buffers, [node])

    def _lower_group(self, group: Group) -> None:
        anchor = group.anchor
        if anchor is None:
            kernel, buffers = lower_loops(group, self, self.place)
            self._call(kernel, buffers, group.nodes)
        elif isinstance(anchor.op, Anchor):
            kernel, buffers = lower_anchor(group, self, self.contiguous, self.place, self._scratch)
            self._call(kernel, buffers, group.nodes)
        elif isinstance(anchor.op, Place):
            self._lower_place(anchor, anchor.op)
        elif isinstance(anchor.op, Pack):
            self._lower_pack(anchor, anchor.op)
        elif isinstance(anchor.op, WinogradWeight):
            self._lower_winograd_weight(anchor, anchor.op)
        elif isinstance(anchor.op, Concat):
            self._lower_concat(anchor, anchor.op)
        else:
            raise GraphError(f"internal error: no lowering for {anchor!r}")

    def _lower_place(self, node: Node, op: Place) -> None:
        """Fill, then write the input into its part."""
        buffer = self.whole(node)
        operands = Operands()
        position = operands.add("out", buffer, node.shape, True)
        fill = Number("fill", node.dtype, op.fill)
        store = Store(position, Access(contiguous_strides(node.shape)), "fill")
        sweep = Sweep(kept_statements=(fill,), kept_stores=(store,))
        spec = LoopSpec(node.shape, (False,) * node.rank, (), (sweep,))
        self._call(
            replace(loop_kernel(spec, operands, [node]), formula=f"out = {op.fill:g}"),
            operands.buffers,
            [node],
        )
        strides = contiguous_strides(node.shape)
        offset: Size = 0
        for begin, stride in zip(op.begin, strides, strict=True):
            offset = offset + stride * begin
        access = Access(tuple(s * t for s, t in zip(strides, op.step, strict=True)), offset)
        kernel, buffers = copy_kernel(node.inputs[0], self, buffer, access, node.shape)
        self._call(kernel, buffers, [node])

    def _lower_pack(self, node: Node, op: Pack) -> None:
        """Write vectors of channels one after the other, read through whatever view the operand is."""
        (x,) = node.inputs
        source, view = self.locate(x)
        target = self.whole(node)
        extents, strides = _merged(view, [a for a in range(x.rank) if a != op.axis])
        spec = PackSpec(op.channels(x.shape), op.lanes, view.strides[op.axis], view.offset, extents, strides)
        operands = (
            Operand("in", x.dtype, False, x.shape),
            Operand("out", node.dtype, True, node.shape),
        )
        touched = (x.type.size + node.type.size) * ITEMSIZE[node.dtype]
        kernel = Kernel("pack", spec, operands, None, op.formula, 0, touched, node.dtype, True)
        self._call(kernel, [source, target], [node])

    def _lower_winograd_weight(self, node: Node, op: WinogradWeight) -> None:
        """Transform the weights, read through whatever view they are."""
        (weight,) = node.inputs
        source, view = self.locate(weight)
        target = self.whole(node)
        o, c, *_ = static_shape(weight.shape)
        spec = WinogradWeightSpec(o, c, op.lanes, view.strides, view.offset)
        operands = (
            Operand("in", weight.dtype, False, weight.shape),
            Operand("out", node.dtype, True, node.shape),
        )
        touched = (weight.type.size + node.type.size) * ITEMSIZE[node.dtype]
        kernel = Kernel(
            "winograd_weight", spec, operands, None, op.formula, o * c * 96, touched, node.dtype, True
        )
        self._call(kernel, [source, target], [node])

    def _scratch(self, node: Node, shape: Shape) -> Buffer:
        """Return a buffer that one call alone uses."""
        name = self._fresh(f"{node.name or node.op.title}_workspace")
        return Buffer(name, node.dtype, product(shape), Space.ARENA)

    def _lower_concat(self, node: Node, op: Concat) -> None:
        """Write every operand into its slice, unless the kernel that computed it did."""
        buffer = self.whole(node)
        for operand, view in _slices(node, op):
            if self._slices.get(operand) != (node, view):
                kernel, buffers = copy_kernel(
                    operand, self, buffer, Access(view.strides, view.offset), node.shape
                )
                self._call(kernel, buffers, [node])

    def _call(self, kernel: Kernel, buffers: list[Buffer], nodes: list[Node]) -> None:
        named = [n.name for n in nodes if n.name]
        layer = named[0] if named else ""
        sources = tuple(dict.fromkeys(str(n.source) for n in nodes))
        described = tuple(f"{n.name} ({n.op.title})" if n.name else n.op.title for n in nodes)
        self.calls.append(Call(kernel, tuple(buffers), described, sources, layer))


def _merged(view: View, axes: list[int]) -> tuple[Shape, Shape]:
    """Return the extents and strides of some axes of a view, neighbours that one stride serves as one."""
    extents: list[Size] = []
    strides: list[Size] = []
    for axis in axes:
        extent, stride = view.shape[axis], view.strides[axis]
        if extent == 1:
            continue
        if strides and strides[-1] == stride * extent:
            extents[-1], strides[-1] = extents[-1] * extent, stride
        else:
            extents.append(extent)
            strides.append(stride)
    return tuple(extents), tuple(strides)


def _slices(node: Node, op: Concat) -> list[tuple[Node, View]]:
    """Return the operands of a concatenation, each with the part of the whole that it is."""
    strides = contiguous_strides(node.shape)
    start: Size = 0
    found = []
    for operand in node.inputs:
        found.append((operand, View(operand.shape, strides, strides[op.axis] * start)))
        start = start + operand.shape[op.axis]
    return found


def _stores_anywhere(anchor: Node) -> bool:
    """Whether the kernel of an anchor stores by element, with any strides."""
    return isinstance(anchor.op, Anchor) and bool(anchor.op.epilogue_axes(anchor.shape))


def _base(node: Node) -> Node:
    """Return what a chain of movements views."""
    while isinstance(node.op, Movement):
        node = node.inputs[0]
    return node


def _movements(node: Node) -> list[Node]:
    """Return the chain of movements above the base of a node, innermost first."""
    chain = []
    while isinstance(node.op, Movement):
        chain.append(node)
        node = node.inputs[0]
    return chain[::-1]
