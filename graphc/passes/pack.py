"""Give convolutions and matrix products the layout that their kernels are fast on.

before: conv2d(x, w; padding 1)
after:  conv2d(x, pack(w); 16 channels a vector, padding 1)

Only the weights are packed (once for all calls in inference, where everything that depends on parameters
alone is folded). The gradient for the input is a convolution of the cotangent with the flipped weights, one
for every phase of the stride where it has one. Convolutions by 3x3 kernels with enough channels and tiles use
Winograd's transforms. Padded images exist in the kernels' tiles alone; where such a tile would be too large
for a thread's stack, the padded image is stored. Grouped convolutions and batched products stay as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

from graphc.graph.node import Node, Op, apply, rebuild, topological
from graphc.isa import Isa
from graphc.ops.chunked import PANEL_BYTES, ChunkedMatMul, sums_fit
from graphc.ops.conv2d import Conv2d, Conv2dBackwardData, Conv2dBackwardWeight, ConvGeometry, Pair
from graphc.ops.leaves import full
from graphc.ops.matmul import MatMul
from graphc.ops.movement import Concat, Flip, Place, Slice, reshape, transpose
from graphc.ops.packed import (
    Border,
    Pack,
    PackedConv2d,
    PackedConv2dBackwardWeight,
    PackedMatMul,
    tap_channels,
    tap_rows,
)
from graphc.ops.pool2d import MaxPool2d, MaxPool2dIndex
from graphc.ops.pooled import pools_winograd_tiles, walks_winograd_tiles
from graphc.ops.winograd import (
    POINTS,
    TILE,
    WinogradConv2d,
    WinogradConv2dBackwardWeight,
    WinogradSpec,
    WinogradWeight,
)
from graphc.passes.variants import Choose, Task, Variant, cost_model
from graphc.types import ITEMSIZE, Shape, TensorType, at, static_shape, static_size

# A kernel's tile of a padded image lives on its thread's stack.
_TILE_BYTES = 2**18
# Winograd's convolution from so many channels on each side, and so many tiles in all, on.
_WINOGRAD_CHANNELS = 32
_WINOGRAD_TILES = 16
_WORKSPACE_BYTES = 2**22  # of transformed tiles: a share of the cache that all cores have in common
_GRADIENT_TILES = 64  # at the least: for every chunk of them, sums are transformed back
_SHARES = 8  # of the batch, where a weights' gradient has fewer parts that threads could share
_CHUNKED_BYTES = 2**20  # of a matrix that changes before it is used again: larger ones are packed in chunks
_SMALL_STACK = 2**11  # of a tile, on a processor with little memory
_POOLED_ROWS = 3  # the rows of the output that a tile serves at the least, where pooling is fused


@dataclass(frozen=True)
class Layouts:
    """What the choice of kernels depends on: the instruction set, the largest batch, what the user allows.

    ``choose`` is asked for the variant of every kernel; ``pools`` are the max poolings that alone read a node;
    ``fixed`` are the nodes that training does not change.
    """

    isa: Isa
    batch: int
    winograd: bool = True
    choose: Choose = cost_model
    trained: bool = False
    workspace: int = _WORKSPACE_BYTES
    pools: Mapping[Node, tuple[Op, ...]] = field(default_factory=dict, compare=False, repr=False)
    fixed: Collection[Node] = field(default=(), compare=False, repr=False)

    def variant(self, op: Op, operands: tuple[Node, ...], node: Node) -> Variant:
        """Return how the op of a node is to be computed."""
        types = tuple(operand.type for operand in operands)
        pools = self.pools.get(node, ())
        return self.choose(Task(op, types, pools, self.batch, self.trained, self.winograd))


def pack(outputs: Mapping[str, Node], layouts: Layouts) -> dict[str, Node]:
    """Return the graph with packed convolutions and matrix products, in vectors of the instruction set."""
    if not layouts.isa.packs:
        return dict(outputs)
    rule = partial(_rule, replace(layouts, pools=_pools(outputs)))
    return dict(zip(outputs, rebuild(list(outputs.values()), rule), strict=True))


def kernel_of(task: Task, layouts: Layouts, operands: Sequence[Node]) -> Node:
    """Return what ``pack`` makes of a task alone, on operands of its types, the poolings not included."""
    op, inputs = task.op, tuple(operands)
    if isinstance(op, PackedConv2d):
        x, weight = inputs
        node = apply(op, (x, Pack(0, op.lanes)(weight)), None, x.source)
        layouts = replace(layouts, pools={node: task.pools})
        return _convolution(layouts, node, x, weight, op.stride, op.dilation, op.border)
    node = apply(op, inputs, None, inputs[0].source)
    packed = _rule(layouts, node, inputs)
    return node if packed is None else packed


def _pools(outputs: Mapping[str, Node]) -> dict[Node, tuple[Op, ...]]:
    """Return, for nodes that max poolings alone read, these poolings."""
    readers: dict[Node, list[Op]] = {node: [] for node in outputs.values()}
    for node in topological(outputs.values()):
        for operand in node.inputs:
            readers.setdefault(operand, []).append(node.op)
    kept = set(outputs.values())
    return {
        node: tuple(ops)
        for node, ops in readers.items()
        if node not in kept and all(isinstance(op, (MaxPool2d, MaxPool2dIndex)) for op in ops)
    }


def _rule(layouts: Layouts, node: Node, inputs: tuple[Node, ...]) -> Node | None:
    op = node.op
    if isinstance(op, Conv2d) and op.geometry.groups == 1:
        x, weight = inputs
        g = op.geometry
        return _convolution(layouts, node, x, weight, g.stride, g.dilation, Border(g.padding))
    if isinstance(op, Conv2dBackwardData) and op.geometry.groups == 1:
        return _backward_data(layouts, node, op, *inputs)
    if isinstance(op, Conv2dBackwardWeight) and op.geometry.groups == 1:
        return _backward_weight(layouts, node, op, *inputs)
    if isinstance(op, MatMul):
        return _product(layouts, node, op, *inputs)
    return None


def _bordered(x: Node, border: Border) -> Node:
    """Return the image with its border in memory."""
    n, c, h, w = x.shape
    assert isinstance(h, int) and isinstance(w, int)
    (top, _), (left, _) = border.padding
    return Place((n, c, *border.extents(h, w)), (0, 0, top, left), (1, 1, *border.spread), 0.0)(x)


def _every(x: Node, stride: Pair, shape: Shape) -> Node:
    """Return the pixels that a strided convolution by single taps reads, side by side as its kernel wants them."""
    return Slice((0, 0, 0, 0), (1, 1, *stride), (*x.shape[:2], *shape[2:]))(x)


def _convolution(
    layouts: Layouts, node: Node, x: Node, weight: Node, stride: Pair, dilation: Pair, border: Border
) -> Node:
    channels, isa = static_shape(weight.shape)[0], layouts.isa
    if static_shape(weight.shape[2:]) == (1, 1) and stride != (1, 1) and not border:
        x, stride = _every(x, stride, node.shape), (1, 1)
    lanes = isa.lanes(channels, node.dtype)
    op = PackedConv2d(channels, stride, dilation, lanes, isa.room(lanes, node.dtype), border)
    if isa.small:
        op = replace(op, tile_limit=_SMALL_STACK)
    variant = layouts.variant(op, (x, weight), node)
    if variant != Variant():
        lanes = variant.lanes or lanes
        op = replace(op, lanes=lanes, sums=variant.sums or isa.room(lanes, node.dtype))
        op = replace(op, served=variant.served or 0, tile_limit=variant.tile_bytes or op.tile_limit)
    packed = Pack(0, lanes)(weight, name=weight.name)
    out = op.infer(x.type, packed.type)
    if stride == dilation == border.spread == (1, 1):
        if _winograd_chosen(layouts, variant, out, weight.shape):
            layouts = replace(layouts, workspace=variant.workspace or layouts.workspace)
            return _winograd(layouts, node, out, x, weight, border, lanes)
    most = _SMALL_STACK if isa.small else _TILE_BYTES
    if border and op.spec(out, x.type, packed.type).tile_bytes(_POOLED_ROWS) > most:
        op, x = replace(op, border=Border()), _bordered(x, border)
    return apply(op, (x, packed), node.name, node.source)


def _winograd_chosen(layouts: Layouts, variant: Variant, out: TensorType, weight: Shape) -> bool:
    """Whether the variant asks for it; if it leaves that open, whether fewer products are worth the transforms.

    A quarter of the products stands against the transforms and weights four times as large. The transforms
    grow with the channels of one side, the products with those of both. The weights are read once for every
    group of tiles: few tiles leave the memory as the limit.
    """
    if variant.winograd is not None:
        return variant.winograd
    o, c, *kernel = static_shape(weight)
    if (
        not layouts.winograd
        or layouts.isa.small
        or kernel != [3, 3]
        or out.dtype != "float32"
        or min(o, c) < _WINOGRAD_CHANNELS
    ):
        return False
    height, width = static_shape(out.shape[2:])
    rows, columns = -(-height // TILE), -(-width // TILE)
    batch = at(out.shape[0], layouts.batch)
    used = height * width / (rows * columns * TILE * TILE)
    return batch * rows * columns >= _WINOGRAD_TILES and used > 0.5


def _winograd(
    layouts: Layouts, node: Node, out: TensorType, x: Node, weight: Node, border: Border, lanes: int
) -> Node:
    o, c, *_ = static_shape(weight.shape)
    oh, ow = static_shape(out.shape[2:])
    (top, _), (left, _) = border.padding
    rows, columns = -(-oh // TILE), -(-ow // TILE)
    row_bytes = columns * POINTS * c * ITEMSIZE[node.dtype]
    least = -(-_WINOGRAD_TILES // columns)  # fewer tiles would read the weights too often
    chunk = min(max(layouts.workspace // row_bytes, least), at(out.shape[0], layouts.batch) * rows)
    op = WinogradConv2d(o, (oh, ow), (top, left), lanes, layouts.isa.sums(lanes, node.dtype), chunk)
    op = _for_pooling(op, op.spec(out, x.type), layouts.pools.get(node, ()))
    return apply(op, (x, WinogradWeight(lanes)(weight, name=weight.name)), node.name, node.source)


def _for_pooling(op: WinogradConv2d, spec: WinogradSpec, pools: Sequence[Op]) -> WinogradConv2d:
    """Return the convolution with whole images transformed at a time, where a task is to walk down their windows."""
    rows = spec.tiles[0]
    whole = replace(spec, chunk=spec.chunk // rows * rows)
    for pool in pools:
        if isinstance(pool, (MaxPool2d, MaxPool2dIndex)) and not pools_winograd_tiles(spec, pool.geometry):
            if whole.chunk and walks_winograd_tiles(whole, pool.geometry):
                return replace(op, chunk=whole.chunk)
    return op


def _backward_data(
    layouts: Layouts, node: Node, op: Conv2dBackwardData, grad: Node, weight: Node
) -> Node | None:
    g: ConvGeometry = op.geometry
    if g.stride != (1, 1) and g.dilation == (1, 1):
        phases = _by_phases(layouts, node, g, grad, weight)
        if phases is not None:
            return phases
    kernel, inner, outer = (static_shape(shape[2:]) for shape in (weight.shape, grad.shape, op.shape))
    spread = [(e - 1) * s + 1 for e, s in zip(inner, g.stride, strict=True)]
    before = [d * (k - 1) - p[0] for d, k, p in zip(g.dilation, kernel, g.padding, strict=True)]
    after = [
        size + d * (k - 1) - b - s
        for size, d, k, b, s in zip(outer, g.dilation, kernel, before, spread, strict=True)
    ]
    if min(*before, *after) < 0:
        return None  # more padding than the kernel reaches: the plain kernel crops
    border = Border(((before[0], after[0]), (before[1], after[1])), g.stride)
    flipped = Flip((2, 3))(transpose(weight, (1, 0, 2, 3)))
    return _convolution(layouts, node, grad, flipped, (1, 1), g.dilation, border)


def _by_phases(layouts: Layouts, node: Node, g: ConvGeometry, grad: Node, weight: Node) -> Node | None:
    """Return the gradient for the input of a strided convolution, phase by phase; None where that is no help.

    before: a convolution of the cotangent spread out by the stride, most of whose products are by zeros
    after:  for every offset (y, x) below the stride, the pixels at y + i*stride, x + j*stride, by a small
            convolution with the taps that meet them; then all phases interleaved
    """
    extents = [
        [_phase(*axis, phase) for phase in range(axis[0])]
        for axis in zip(
            g.stride, static_shape(weight.shape[2:]), [p[0] for p in g.padding], static_shape(grad.shape[2:]),
            static_shape(node.shape[2:]), strict=True,
        )
    ]  # fmt: skip
    if any(size % s for size, s in zip(static_shape(node.shape[2:]), g.stride, strict=True)) or any(
        phase is not None and min(phase.before, phase.after) < 0 for axis in extents for phase in axis
    ):
        return None
    rows, columns = extents
    found = [[_phase_convolution(layouts, node, g, grad, weight, r, c) for c in columns] for r in rows]
    made = [n for row in found for n in row if n is not None]
    if len(made) == 1 and found[0][0] is not None:
        return Place(node.shape, (0, 0, 0, 0), (1, 1, *g.stride), 0.0)(made[0])
    n, c, h, w = node.shape
    assert isinstance(h, int) and isinstance(w, int)
    inner = (n, c, h // g.stride[0], 1, w // g.stride[1], 1)
    zeros = full(inner, 0.0, node.dtype)
    parts = [Concat(5)(*(zeros if p is None else reshape(p, inner) for p in row)) for row in found]
    return reshape(Concat(3)(*parts), node.shape)


class _Phase(NamedTuple):
    """One axis of a phase: the first tap, the distance of taps, and the zeros around the cotangent."""

    tap: int
    step: int
    taps: int
    before: int
    after: int


def _phase(stride: int, kernel: int, padding: int, inner: int, outer: int, phase: int) -> _Phase | None:
    """Return which taps meet the pixels of a phase, and the border that their convolution needs."""
    tap = (phase + padding) % stride
    taps = -(-(kernel - tap) // stride)
    if taps <= 0:
        return None
    shift = (phase + padding - tap) // stride
    count = -(-(outer - phase) // stride)
    return _Phase(tap, stride, taps, taps - 1 - shift, count + shift - inner)


def _phase_convolution(
    layouts: Layouts,
    node: Node,
    g: ConvGeometry,
    grad: Node,
    weight: Node,
    row: _Phase | None,
    column: _Phase | None,
) -> Node | None:
    if row is None or column is None:
        return None
    o, c, _, _ = weight.shape
    taps = Slice((0, 0, row.tap, column.tap), (1, 1, row.step, column.step), (o, c, row.taps, column.taps))(
        weight
    )
    flipped = Flip((2, 3))(transpose(taps, (1, 0, 2, 3)))
    border = Border(((row.before, row.after), (column.before, column.after)))
    return _convolution(layouts, node, grad, flipped, (1, 1), (1, 1), border)


def _backward_weight(layouts: Layouts, node: Node, op: Conv2dBackwardWeight, x: Node, grad: Node) -> Node:
    g, isa = op.geometry, layouts.isa
    channels, _, kh, kw = static_shape(op.shape)
    border, stride, variant = Border(g.padding), g.stride, layouts.variant(op, (x, grad), node)
    lanes = variant.lanes or isa.register_lanes(channels, node.dtype)
    if (kh, kw) == (1, 1) and stride != (1, 1) and not border:
        x, stride = _every(x, stride, grad.shape), (1, 1)
    if stride == g.dilation == (1, 1):
        if _winograd_chosen(layouts, variant, grad.type, node.shape):
            layouts = replace(layouts, workspace=variant.workspace or layouts.workspace)
            return _winograd_gradient(layouts, node, x, grad, (g.padding[0][0], g.padding[1][0]), lanes)
    sums, served = variant.sums or isa.room(lanes, node.dtype), variant.served or 0
    kernel = PackedConv2dBackwardWeight((kh, kw), stride, g.dilation, lanes, sums, border, served=served)
    spec = kernel.spec(node.type, x.type, grad.type)
    groups = -(-spec.o // lanes) * (spec.c // tap_channels(spec)) * (kh // tap_rows(spec))
    if variant.shares:
        kernel = replace(kernel, shares=variant.shares)
    elif groups < _SHARES <= layouts.batch:
        kernel = replace(kernel, shares=_SHARES)
    if border:
        if spec.tile_bytes(1, tap_channels(spec)) > (_SMALL_STACK if isa.small else _TILE_BYTES):
            kernel, x = replace(kernel, border=Border()), _bordered(x, border)
    return apply(kernel, (x, grad), node.name, node.source)


def _winograd_gradient(layouts: Layouts, node: Node, x: Node, grad: Node, padding: Pair, lanes: int) -> Node:
    depth, blocks = (-(-shape // lanes) for shape in static_shape((x.shape[1], grad.shape[1])))
    oh, ow = static_shape(grad.shape[2:])
    columns = -(-ow // TILE)
    rows = at(grad.shape[0], layouts.batch) * -(-oh // TILE)
    row_bytes = columns * POINTS * (depth + blocks) * lanes * ITEMSIZE[node.dtype]
    chunks = -(-rows // max(layouts.workspace // row_bytes, -(-_GRADIENT_TILES // columns)))
    # A task's sums are those of a vector with one or several vectors of the image's channels.
    room = layouts.isa.room(lanes, node.dtype) // lanes
    beside = max(k for k in range(1, max(room, 1) + 1) if depth % k == 0)
    op = WinogradConv2dBackwardWeight(padding, lanes, beside * lanes, -(-rows // chunks), chunks)
    return apply(op, (x, grad), node.name, node.source)


def _product(layouts: Layouts, node: Node, op: MatMul, a: Node, b: Node) -> Node | None:
    columns, isa = node.shape[-1], layouts.isa
    if node.rank != 2 or not isinstance(columns, int) or columns == 1:
        return None
    variant = layouts.variant(op, (a, b), node)
    lanes = variant.lanes or isa.lanes(columns, node.dtype)
    sums = variant.sums or isa.sums(lanes, node.dtype)
    changes = layouts.trained and node.inputs[1] not in layouts.fixed
    if changes and not op.transpose_a and _packed_inside(layouts, a, b, lanes):
        panel = _SMALL_STACK if isa.small else PANEL_BYTES
        return apply(ChunkedMatMul(op.transpose_b, lanes, sums, panel), (a, b), node.name, node.source)
    packed = Pack(0 if op.transpose_b else 1, lanes)(b, name=b.name)
    return apply(PackedMatMul(columns, op.transpose_a, lanes, sums), (a, packed), node.name, node.source)


def _packed_inside(layouts: Layouts, a: Node, b: Node, lanes: int) -> bool:
    """Return whether B is so large that a product should pack it itself, a chunk at a time."""
    if not all(isinstance(size, int) for size in b.shape):
        return False
    rows, itemsize = at(a.shape[0], layouts.batch), ITEMSIZE[b.dtype]
    large = layouts.isa.small or static_size(static_shape(b.shape)) * itemsize >= _CHUNKED_BYTES
    return large and sums_fit(rows, lanes, itemsize)
