"""Which kernels are worth waking threads for, and from which batch on."""

from __future__ import annotations

from graphc.program.ir import Kernel
from graphc.types import Size, at

# What one core does in a nanosecond, on the low side: most kernels do more of one of the two.
_FLOPS, _BYTES = 40, 10


def nanoseconds(flops: Size, moved: Size, batch: int) -> float:
    """Return about how long one core takes for so much work at a batch; ``moved`` is in bytes."""
    return at(flops, batch) / _FLOPS + at(moved, batch) / _BYTES


def parallel_from(kernel: Kernel, batch: int, fork: float) -> int | None:
    """Return the least batch at which a kernel takes longer than waking threads, None if it never does.

    ``batch`` is the largest, and ``fork`` the nanoseconds that it takes to wake threads and to wait for them.
    """

    def worth(n: int) -> bool:
        return nanoseconds(kernel.flops, kernel.bytes, n) >= fork

    if not worth(batch):
        return None
    low, high = 0, batch  # the work grows with the batch
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if worth(middle) else (middle, high)
    return high


def threads_text(least: int | None) -> str:
    """Return the number of threads for a call, as C text."""
    if least is None:
        return "1"
    return "threads" if least <= 1 else f"N < {least} ? 1 : threads"
