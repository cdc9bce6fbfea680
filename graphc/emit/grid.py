"""Indices of kernels for a device, as text, and how a kernel is launched."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from graphc.emit.text import extent
from graphc.program.ir import Kernel, LoopSpec
from graphc.types import Size, at, product

THREADS = 256
MOST_BLOCKS = 65535  # along the second and the third axis of a grid


@dataclass(frozen=True)
class Launch:
    """The blocks of a kernel, for the largest batch, their threads, and what each computes, in words."""

    grid: str
    threads: int
    mapping: str
    index: str = "int64_t"
    workspace: int = 0  # bytes that a product's shares of the depth take
    resident: int = 1  # blocks that a multiprocessor has room for at the least


@dataclass(frozen=True)
class Axis:
    """An axis of an array: the variable of its index, and its extent."""

    variable: str
    size: Size


def index_type(kernel: Kernel, batch: int) -> str:
    """Return the type of indices: 32 bits, whose divisions are cheap, where every array has fewer elements."""
    sizes = [at(product(o.shape), batch) for o in kernel.operands]
    if isinstance(kernel.spec, LoopSpec):
        sizes.append(at(product(kernel.spec.extents), batch))
    return "int" if max(sizes, default=0) < 2**31 - 2**24 else "int64_t"


def decoded(axes: Sequence[Axis], flat: str, text: str, index: str) -> list[str]:
    """Return declarations of those axes' indices that a text reads, from the flat index over all of them."""
    lines: list[str] = []
    step: Size = 1
    for number, axis in reversed(list(enumerate(axes))):
        value = flat if step == 1 else f"{flat} / {factor(step)}"
        if number:
            value = f"{value} % {factor(axis.size)}"
        if re.search(rf"\b{axis.variable}\b", text):
            lines.append(f"const {index} {axis.variable} = {'0' if axis.size == 1 else value};")
        step = step * axis.size
    return lines[::-1]


def factor(size: Size) -> str:
    """Return a size as a factor."""
    text = extent(size)
    return text if re.fullmatch(r"\w+|\(.*\)", text) else f"({text})"


def blocks(count: int) -> str:
    """Return how many blocks are launched where so many are wanted; each takes a part, and others after it."""
    return str(max(1, min(count, MOST_BLOCKS)))
