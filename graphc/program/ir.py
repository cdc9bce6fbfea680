"""The Program: frozen descriptions of kernels, calls of kernels on buffers, and entry points.

A :class:`Kernel` knows nothing of buffers or of the user's names, so that equal layers share one
generated function; a :class:`Call` binds it to buffers and remembers which nodes it came from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

import sympy as sp

from graphc.isa import Isa
from graphc.ops.pool2d import PoolGeometry
from graphc.types import DType, Shape, Size


class Space(Enum):
    """Where a buffer lives."""

    INPUT = "input"  # the caller's array, read only
    OUTPUT = "output"  # the caller's array, written
    PARAMS = "params"  # one flat block; trainable parameters first
    GRADS = "grads"  # one flat block with the layout of the trainable parameters
    SLOTS = "slots"  # the optimizer's state: one such block after the other
    STATE = "state"  # running statistics
    FOLDED = "folded"  # computed from parameters once, whenever they change
    FROZEN = "frozen"  # computed once from parameters that are not trained
    ARENA = "arena"  # everything else


@dataclass(frozen=True, slots=True)
class Buffer:
    """An array: ``offset`` counts elements within its block (arena buffers are placed by the plan)."""

    name: str
    dtype: DType
    size: Size
    space: Space
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Access:
    """Where a kernel reads or writes an operand: a stride per loop axis and an offset, in elements."""

    strides: Shape
    offset: Size = 0


@dataclass(frozen=True, slots=True)
class Load:
    """``name = operand[access]``."""

    name: str
    dtype: DType
    operand: int
    access: Access


@dataclass(frozen=True, slots=True)
class Index:
    """``name`` = the index along an axis of the tensor (iota), a linear function of the loop indices."""

    name: str
    dtype: DType
    access: Access


@dataclass(frozen=True, slots=True)
class Random:
    """``name`` = a uniform number that seed, step, stream and element index determine."""

    name: str
    dtype: DType
    access: Access
    stream: int


@dataclass(frozen=True, slots=True)
class Number:
    """``name`` = a number, or a run-time size as a number."""

    name: str
    dtype: DType
    value: float | Size


@dataclass(frozen=True, slots=True)
class Compute:
    """``name = expr`` with the arguments x0, x1, ... of the expression bound to earlier names.

    An optimizer's formulas keep their own ``symbols`` in place of x0, x1, ...: printing takes terms in the order of
    their names, and a sum of three rounds by its order.
    """

    name: str
    dtype: DType
    expr: sp.Expr
    arguments: tuple[tuple[str, DType], ...]
    symbols: tuple[sp.Symbol, ...] = ()


Statement = Load | Index | Random | Number | Compute


@dataclass(frozen=True, slots=True)
class Store:
    """``operand[access] = value``."""

    operand: int
    access: Access
    value: str


@dataclass(frozen=True, slots=True)
class Accumulate:
    """``name`` = sum, max, min, argmax or argmin of ``value`` over the reduced axes.

    ``index`` names the statement that holds the position, for argmax and argmin.
    """

    name: str
    kind: Literal["sum", "max", "min", "argmax", "argmin"]
    dtype: DType
    value: str
    index: str = ""


@dataclass(frozen=True, slots=True)
class Sweep:
    """One pass over the reduced axes, then straight-line work on what is kept."""

    statements: tuple[Statement, ...] = ()
    accumulators: tuple[Accumulate, ...] = ()
    stores: tuple[Store, ...] = ()
    kept_statements: tuple[Statement, ...] = ()
    kept_stores: tuple[Store, ...] = ()


@dataclass(frozen=True, slots=True)
class LoopSpec:
    """A loop nest: extents, which axes are reduced, and the sweeps over the reduced ones.

    ``before`` is straight-line work on what is kept, ahead of the first sweep.
    """

    extents: Shape
    reduced: tuple[bool, ...]
    before: tuple[Statement, ...]
    sweeps: tuple[Sweep, ...]

    @property
    def loads(self) -> list[Load]:
        """All reads of operands."""
        bodies = ((*sweep.statements, *sweep.kept_statements) for sweep in self.sweeps)
        return [s for body in (self.before, *bodies) for s in body if isinstance(s, Load)]


@dataclass(frozen=True, slots=True)
class Epilogue:
    """Elementwise work on an anchor's result ``acc`` before it is stored; access strides are per result axis.

    The kernel's first ``fixed`` operands are the anchor's own, read as it likes; the others are read here alone,
    at the element that is stored. Where a convolution pools its result, ``statements`` come before the maximum of
    ``pooled_value`` (with ``pool`` the windows), and ``after`` works on ``pool_max`` and ``pool_index``.
    """

    axes: tuple[str, ...]
    fixed: int
    statements: tuple[Statement, ...] = ()
    stores: tuple[Store, ...] = ()
    pool: PoolGeometry | None = None
    pooled_value: str = ""
    after: tuple[Statement, ...] = ()


@dataclass(frozen=True, slots=True)
class Operand:
    """A parameter of a kernel function."""

    name: str
    dtype: DType
    written: bool
    shape: Shape


@dataclass(frozen=True, slots=True)
class Tile:
    """How a device divides a product.

    Attributes:
        rows: of the results that a block computes.
        columns: of them.
        patches: of 4 x 4 sums, one below the other and beside each other, of a thread.
        shares: parts of the depth that are summed apart.
    """

    rows: int
    columns: int
    patches: int
    shares: int


@dataclass(frozen=True)
class Kernel:
    """One generated function: the template that prints it and everything that the template needs.

    ``scalars`` are computed once a call, from the learning rate and the number of the step. Without a ``tile`` the
    emitter chooses one for a product.
    """

    template: str
    spec: Any
    operands: tuple[Operand, ...]
    epilogue: Epilogue | None
    formula: str
    flops: Size
    bytes: Size
    dtype: DType
    parallel: bool
    scalars: tuple[tuple[str, sp.Expr], ...] = ()
    tile: Tile | None = None


@dataclass(frozen=True)
class Call:
    """A kernel on buffers, with the nodes and the user's lines that it came from."""

    kernel: Kernel
    buffers: tuple[Buffer, ...]
    nodes: tuple[str, ...]
    sources: tuple[str, ...]
    layer: str
    again: bool = False  # it ran before in the same call of the entry point

    def reads(self, buffer: Buffer) -> bool:
        """Whether the call reads a buffer, rather than only writing it; of other kernels than loops, always."""
        if not isinstance(self.kernel.spec, LoopSpec):
            return True
        read = {load.operand for load in self.kernel.spec.loads}
        return any(b == buffer and number in read for number, b in enumerate(self.buffers))


@dataclass(frozen=True)
class Argument:
    """A named array of an entry point."""

    name: str
    dtype: DType
    shape: Shape
    buffer: Buffer


@dataclass(frozen=True)
class Bound:
    """Values of an integer input must lie in [low, high) or equal ``also``."""

    input: str
    low: int
    high: int
    also: int | None


@dataclass(frozen=True)
class Entry:
    """One public function of the module: its arguments, the calls, and the place of every arena buffer."""

    name: str
    inputs: tuple[Argument, ...]
    outputs: tuple[Argument, ...]
    calls: tuple[Call, ...]
    bounds: tuple[Bound, ...] = ()
    commit: int = 0  # the calls from here on change parameters or state


@dataclass(frozen=True)
class Slot:
    """A named array inside one of the module's blocks (parameters, state).

    ``offset`` counts elements of the block. A constant of the graph lives among the parameters, under a
    dtype of its own, and is no parameter to anybody else.
    """

    name: str
    shape: tuple[int, ...]
    offset: int
    trainable: bool = False
    dtype: DType = "float32"
    constant: bool = False
    group: int = 0
    gradient: bool = False  # it has a place in the block of gradients


@dataclass(frozen=True)
class UpdateRange:
    """A contiguous range of the parameter block that one set of hyperparameters updates."""

    begin: int
    end: int
    hyperparameters: tuple[tuple[str, float], ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class UpdateSpec:
    """The optimizer's slots, and the ranges of the parameter block that share hyperparameters.

    Those of ``at_once``, one parameter each, are updated by the kernels of the training step; the others by a loop
    over each range when all gradients are known.
    """

    slots: tuple[str, ...]
    ranges: tuple[UpdateRange, ...]
    at_once: tuple[UpdateRange, ...] = ()


@dataclass(frozen=True)
class Program:
    """Everything that is emitted: entry points over the blocks of one module."""

    name: str
    dtype: DType
    batch: int
    isa: Isa
    fork_ns: float  # what waking threads costs
    entries: tuple[Entry, ...]
    params: tuple[Slot, ...]
    states: tuple[Slot, ...]
    folded_size: int
    params_size: int
    trainable_size: int
    grads_size: int
    states_size: int
    arena_bytes: int
    offsets: dict[str, dict[str, int]] = field(compare=False)
    update: UpdateSpec | None = None
    frozen_size: int = 0

    @property
    def slots_size(self) -> int:
        """The elements of the optimizer's state: a block as large as the trainable parameters for each slot."""
        return len(self.update.slots) * self.trainable_size if self.update is not None else 0

    @property
    def uses_up(self) -> bool:
        """Whether kernels of the training step update parameters: there is no step without an update then."""
        return self.update is not None and bool(self.update.at_once)
