"""A buffer as the planner sees it: when it lives and how many bytes it takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from graphc.errors import RangeError, UnknownNameError


@dataclass(frozen=True, slots=True)
class Interval:
    """One buffer holds ``size`` bytes from before step ``lower`` until step ``upper`` begins.

    Lifetimes are half open, ``[lower, upper)``: a buffer that ends at step 5 and one that starts at
    step 5 may share an address.

    ``kept`` marks what the backward pass reads of the forward pass, ``scratch`` what is no value of the graph: a
    kernel's workspace, or weights in the layout that a kernel wants.

    Units: ``lower`` and ``upper`` in kernel steps, ``size`` in bytes.

    Raises: RangeError when the lifetime is empty or starts before step 0, or when the size is not
    positive. An empty lifetime is refused rather than dropped: it always means that whoever computed
    the lifetimes missed a reader.
    """

    id: str
    lower: int
    upper: int
    size: int
    kept: bool = False
    label: str = ""
    scratch: bool = False

    def __post_init__(self) -> None:
        """Refuse what could not be placed."""
        if self.size <= 0:
            raise RangeError(f"buffer {self.id!r}: the size must be positive, got {self.size} bytes")
        if self.lower < 0:
            raise RangeError(f"buffer {self.id!r}: the lifetime starts at step {self.lower}, before step 0")
        if self.upper <= self.lower:
            raise RangeError(
                f"buffer {self.id!r}: the lifetime [{self.lower}, {self.upper}) is empty;"
                " a buffer that is written lives at least one step"
            )

    def overlaps(self, other: Interval) -> bool:
        """Tell whether both buffers are alive at some step."""
        return self.lower < other.upper and other.lower < self.upper


def check_alignment(alignment: int) -> None:
    """Raise RangeError unless ``alignment`` is a power of two, as C's ``alignas`` requires."""
    if alignment <= 0 or alignment & (alignment - 1):
        raise RangeError(f"arena alignment: expected a power of two, got {alignment}")


def check_unique(intervals: Iterable[Interval]) -> None:
    """Raise UnknownNameError when two buffers share an id."""
    seen: dict[str, Interval] = {}
    for interval in intervals:
        twin = seen.setdefault(interval.id, interval)
        if twin is not interval:
            raise UnknownNameError(
                f"buffer id {interval.id!r} is used twice: for [{twin.lower}, {twin.upper}) of {twin.size}"
                f" bytes and for [{interval.lower}, {interval.upper}) of {interval.size} bytes"
            )


def round_up(size: int, alignment: int) -> int:
    """Return the smallest multiple of ``alignment`` that is at least ``size``."""
    return -(-size // alignment) * alignment
