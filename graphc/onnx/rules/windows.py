"""The windows of convolutions and pools as ONNX gives them: kernel, stride, dilation and padding per spatial axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphc.graph.node import Node
from graphc.onnx.site import Site, UnsupportedError
from graphc.ops.movement import getitem, pad
from graphc.types import Shape

Pair = tuple[int, int]


@dataclass(frozen=True)
class Axis:
    """The windows along one spatial axis: window o meets the elements ``o*stride + i*dilation - pads[0]``."""

    size: int
    kernel: int
    stride: int
    dilation: int
    pads: Pair
    out: int

    @property
    def reach(self) -> int:
        """The extent of a window, holes included."""
        return self.dilation * (self.kernel - 1) + 1


def spatial(shape: Shape, ranks: Sequence[int] = (1, 2, 3)) -> list[int]:
    """Return the extents after batch and channels.

    Raises:
        UnsupportedError: another number of them than allowed, or one depends on the run-time batch.
    """
    extents = [d for d in shape[2:] if isinstance(d, int)]
    if len(extents) != len(shape) - 2:
        raise UnsupportedError("a spatial extent that depends on the run-time batch")
    if len(extents) not in ranks:
        raise UnsupportedError(f"{len(extents)} spatial axes; {', '.join(map(str, ranks))} are supported")
    return extents


def numbers(site: Site, name: str, count: int, default: int) -> list[int]:
    """Return an attribute that holds a number per spatial axis (or two)."""
    found = [int(d) for d in site.get(name) or [default] * count]
    if len(found) != count:
        raise UnsupportedError(f"{name}={found} does not fit {count} values")
    return found


def axes(site: Site, sizes: Sequence[int], kernel: Sequence[int]) -> list[Axis]:
    """Return the windows of a node, from its attributes.

    Numerics: with ``ceil_mode`` a last window that would start in the padding after the image is left out, which is
    what the newest version of the operators says.
    """
    rank = len(sizes)
    if len(kernel) != rank or min(kernel) < 1:
        raise UnsupportedError(f"kernel {list(kernel)} for {rank} spatial axes")
    strides, dilations = numbers(site, "strides", rank, 1), numbers(site, "dilations", rank, 1)
    pads = numbers(site, "pads", 2 * rank, 0)
    if min(strides + dilations) < 1 or min(pads) < 0:
        raise UnsupportedError(f"strides {strides}, dilations {dilations}, pads {pads}")
    auto, found = site.get("auto_pad", "NOTSET") or "NOTSET", []
    for a, (size, k, s, d) in enumerate(zip(sizes, kernel, strides, dilations, strict=True)):
        reach = d * (k - 1) + 1
        around = (pads[a], pads[rank + a]) if auto == "NOTSET" else (0, 0)
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            out = -(-size // s)
            total = max(0, (out - 1) * s + reach - size)
            less, more = total // 2, total - total // 2
            around = (less, more) if auto == "SAME_UPPER" else (more, less)
        elif auto in ("NOTSET", "VALID"):
            room = size + sum(around) - reach
            out = (-(-room // s) if site.get("ceil_mode", 0) else room // s) + 1
            if site.get("ceil_mode", 0) and (out - 1) * s >= size + around[0]:
                out -= 1
            if room < 0 or out < 1:
                raise UnsupportedError(f"no window of extent {reach} fits {size} elements padded by {around}")
        else:
            raise UnsupportedError(f"auto_pad={auto!r} is not supported")
        found.append(Axis(size, k, s, d, around, out))
    return found


def fitted(x: Node, axis: int, begin: int, extent: int) -> Node:
    """Return ``extent`` elements from ``begin`` on along an axis; those outside of x are 0."""
    size = x.shape[axis]
    assert isinstance(size, int)
    first, last = min(max(0, begin), size), min(size, begin + extent)
    if last <= first:
        raise UnsupportedError(f"elements {begin} to {begin + extent} of {size} are all outside")
    x = getitem(x, (slice(None),) * axis + (slice(first, last),))
    widths = [(0, 0)] * x.rank
    widths[axis] = (first - begin, begin + extent - last)
    return pad(x, widths)


def tap(x: Node, axis: int, window: Axis, position: int) -> Node:
    """Return the elements that all windows meet at one position, of an x that holds the padding."""
    first = position * window.dilation
    taken = slice(first, first + (window.out - 1) * window.stride + 1, window.stride)
    return getitem(x, (slice(None),) * axis + (taken,))
