"""Operators that cut images into blocks, put them together, or cut and pad them to a size."""

from __future__ import annotations

from functools import reduce
from math import prod

from graphc.graph.node import Node
from graphc.onnx.rules.windows import Axis, fitted, numbers
from graphc.onnx.site import Site, UnsupportedError, rule
from graphc.ops import elementwise as ew
from graphc.ops.movement import Place, reshape, transpose
from graphc.types import Size


def _image(site: Site) -> tuple[Size, int, int, int]:
    """Return batch, channels, height and width of the input."""
    shape = site.shape(0)
    fixed = [d for d in shape[1:] if isinstance(d, int)]
    if len(shape) != 4 or len(fixed) != 3:
        raise UnsupportedError(f"an input of shape {tuple(map(str, shape))} where an image is needed")
    return shape[0], *fixed  # type: ignore[return-value]  # there are three, as was just checked


@rule("DepthToSpace")
def depth_to_space(site: Site) -> Node:
    """Channels become blocks of pixels: the block's position leads (DCR), or the new channel does (CRD)."""
    n, c, h, w = _image(site)
    b, mode = int(site.get("blocksize", 0)), site.get("mode", "DCR")
    if b < 1 or c % (b * b) or mode not in ("DCR", "CRD"):
        raise UnsupportedError(f"{c} channels in blocks of {b} by {b}, mode {mode!r}")
    out = c // (b * b)
    if mode == "DCR":
        parts = transpose(reshape(site.tensor(0), (n, b, b, out, h, w)), (0, 3, 4, 1, 5, 2))
    else:
        parts = transpose(reshape(site.tensor(0), (n, out, b, b, h, w)), (0, 1, 4, 2, 5, 3))
    return reshape(parts, (n, out, h * b, w * b))


@rule("SpaceToDepth")
def space_to_depth(site: Site) -> Node:
    """Blocks of pixels become channels."""
    n, c, h, w = _image(site)
    b, mode = int(site.get("blocksize", 0)), site.get("mode", "DCR")
    if b < 1 or h % b or w % b or mode not in ("DCR", "CRD"):
        raise UnsupportedError(f"an image of {h} by {w} in blocks of {b} by {b}, mode {mode!r}")
    parts = reshape(site.tensor(0), (n, c, h // b, b, w // b, b))
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    return reshape(transpose(parts, order), (n, c * b * b, h // b, w // b))


@rule("CenterCropPad")
def center_crop_pad(site: Site) -> Node:
    """Cut or pad with zeros on both sides; an odd element more goes to the end."""
    x, sizes = site.tensor(0), site.sizes(1, "shape")
    axes = site.get("axes") or range(x.rank)
    if len(axes) != len(sizes):
        raise UnsupportedError(f"{len(sizes)} sizes for {len(axes)} axes")
    for given, wanted in zip(axes, sizes, strict=True):
        axis = given % x.rank
        size = x.shape[axis]
        if size == wanted:
            continue
        if not isinstance(size, int) or not isinstance(wanted, int):
            raise UnsupportedError(f"an extent of {size} becomes {wanted}")
        begin = (size - wanted) // 2 if wanted < size else -((wanted - size) // 2)
        x = fitted(x, axis, begin, wanted)
    return x


@rule("Col2Im")
def col2im(site: Site) -> Node:
    """Add up blocks, each a column, where they lie in an image of any rank: axis after axis."""
    x, image, block = site.tensor(0), site.ints(1, "image_shape"), site.ints(2, "block_shape")
    rank = len(image)
    strides, dilations = numbers(site, "strides", rank, 1), numbers(site, "dilations", rank, 1)
    pads = numbers(site, "pads", 2 * rank, 0)
    windows = []
    for a, (size, k, s, d) in enumerate(zip(image, block, strides, dilations, strict=True)):
        around = pads[a], pads[rank + a]
        windows.append(Axis(size, k, s, d, around, (size + sum(around) - d * (k - 1) - 1) // s + 1))
    n, rows, columns = x.shape if x.rank == 3 else (0, 0, 0)
    taps = prod(block)
    if not isinstance(rows, int) or rows < 1 or rows % taps or columns != prod(w.out for w in windows):
        raise UnsupportedError(f"columns of shape {tuple(map(str, x.shape))} for blocks {block} of {image}")
    x = reshape(x, (n, rows // taps, *block, *(w.out for w in windows)))
    for a, w in enumerate(windows):
        x = _merged(x, 2 + a, 2 + rank, w)
    return reshape(x, (n, rows // taps, *image))


def _merged(x: Node, taps: int, positions: int, w: Axis) -> Node:
    """Return x with the taps of one spatial axis added up where they lie; their own axis has extent 1 then."""
    positions += taps - 2
    shape = list(x.shape)
    shape[taps], shape[positions] = 1, max(w.size + sum(w.pads), (w.out - 1) * w.stride + w.reach)
    placed = []
    for i in range(w.kernel):
        begin, step = [0] * x.rank, [1] * x.rank
        begin[positions], step[positions] = i * w.dilation, w.stride
        part = x[(slice(None),) * taps + (slice(i, i + 1),)]
        placed.append(Place(tuple(shape), tuple(begin), tuple(step), 0.0)(part))
    return fitted(reduce(ew.add, placed), positions, w.pads[0], w.size)
