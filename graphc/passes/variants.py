"""The choices that a packed kernel, or a device's product, leaves open, and who makes them.

A :class:`Task` is what a kernel computes, without its place in the net: equal layers have equal tasks; a device's
product, which no pass packs, is a :class:`ProductTask`. A
:class:`Variant` says how; what it leaves open is decided by the cost model, which is spread over the pass ``pack``
(Winograd's or the direct sum, vectors, shares) and the emitter (tiles). The empty variant is the cost model alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeAlias

from graphc.graph.node import Op
from graphc.program.ir import Kernel, Tile
from graphc.types import Precision, TensorType


@dataclass(frozen=True)
class Variant:
    """How a kernel computes; None leaves a choice to the cost model.

    Attributes:
        winograd: Winograd's transforms instead of the direct sum.
        workspace: bytes of transformed tiles at a time.
        lanes: output channels (or columns) in a vector.
        sums: vectors of sums side by side, at the most.
        served: blocks of output channels that a filled tile serves; groups of taps in a task of a gradient.
        tile_bytes: size of a task's copy of the image, at the most.
        shares: parts of the batch, or of the depth of a device's product, that are summed apart.
        rows: of the tile that a block of a device computes; all of a tile's numbers are chosen, or none.
        columns: of that tile.
        patches: of a thread's sums in it, as :class:`graphc.program.ir.Tile` has them.
    """

    winograd: bool | None = None
    workspace: int | None = None
    lanes: int | None = None
    sums: int | None = None
    served: int | None = None
    tile_bytes: int | None = None
    shares: int | None = None
    rows: int | None = None
    columns: int | None = None
    patches: int | None = None

    @classmethod
    def of_tile(cls, tile: Tile) -> Variant:
        """Return the variant of a device's product."""
        return cls(shares=tile.shares, rows=tile.rows, columns=tile.columns, patches=tile.patches)

    @property
    def tile(self) -> Tile | None:
        """How a device's product is divided, if that is chosen."""
        if self.rows is None or self.columns is None or self.patches is None or self.shares is None:
            return None
        return Tile(self.rows, self.columns, self.patches, self.shares)

    def to_dict(self) -> dict[str, int | bool]:
        """Return what is chosen, as JSON types."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, chosen: Any) -> Variant | None:
        """Return the variant, or None where the dictionary is not one that ``to_dict`` gives."""
        kinds = {f.name: bool if f.name == "winograd" else int for f in fields(cls)}
        if not isinstance(chosen, dict) or not kinds.keys() >= chosen.keys():
            return None
        sound = all(type(v) is kinds[k] and (kinds[k] is bool or 0 < v <= 2**24) for k, v in chosen.items())
        return cls(**chosen) if sound else None

    def __str__(self) -> str:
        """Return e.g. ``lanes=8, served=2``."""
        return ", ".join(f"{name}={value}" for name, value in self.to_dict().items()) or "cost model"


@dataclass(frozen=True)
class Task:
    """What a kernel computes and where: everything that the best variant depends on, but for the processor.

    Attributes:
        op: the op; a convolution is the packed one that the cost model begins with, border included.
        operands: types of what it reads, weights not packed yet.
        pools: the max poolings that alone read the result, and are fused.
        batch: the largest batch.
        trained: part of a training step, where weights are packed at every call.
        winograd: whether the user allows Winograd's convolution.
    """

    op: Op
    operands: tuple[TensorType, ...]
    pools: tuple[Op, ...]
    batch: int
    trained: bool
    winograd: bool

    def __str__(self) -> str:
        """Return one line, by which winners are kept: different for different tasks."""
        read = ", ".join(map(str, self.operands))
        pools = "".join(f" -> {pool}" for pool in self.pools)
        rest = (
            f"batch {self.batch}{', training' if self.trained else ''}{'' if self.winograd else ', direct'}"
        )
        return f"{self.op}{pools} of {read}; {rest}"


@dataclass(frozen=True)
class ProductTask:
    """A device's product whose tile is to be chosen: the kernel without one, the largest batch, the precision."""

    kernel: Kernel
    batch: int
    precision: Precision

    @property
    def trained(self) -> bool:
        """Whether it is part of a training step: a device's kernels are the same everywhere."""
        return True

    def __str__(self) -> str:
        """Return one line, by which winners are kept: different for different tasks."""
        kernel = self.kernel
        operands = ", ".join(str(TensorType(o.dtype, o.shape)) for o in kernel.operands)
        digest = hashlib.sha256(repr(kernel).encode()).hexdigest()[:16]
        return f"{kernel.template} of {operands}; batch {self.batch}, {self.precision}, {digest}"


AnyTask: TypeAlias = Task | ProductTask
Choose: TypeAlias = Callable[[AnyTask], Variant]


def cost_model(task: AnyTask) -> Variant:
    """Leave every choice to the cost model."""
    del task
    return Variant()
