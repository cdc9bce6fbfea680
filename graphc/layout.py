"""Names and places of parameters, constants and state: one flat block each, by the optimizer's ranges."""

from __future__ import annotations

import re
from collections.abc import Mapping

from graphc.errors import UnknownNameError
from graphc.graph.node import Node, topological
from graphc.ops.leaves import Constant, Parameter, Scope, State
from graphc.optim import Optimizer
from graphc.program.ir import Buffer, Slot, Space, UpdateRange
from graphc.types import ITEMSIZE, DType, static_size

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_ALIGN = 64  # every parameter starts at a multiple of this many bytes


class Layout:
    """Names and places of parameters and state: one flat block each."""

    def __init__(
        self,
        outputs: Mapping[str, Node],
        trainable: set[Node],
        optimizer: Optimizer | None,
        dtype: DType,
        at_once_from: int | None = None,
    ):
        """Name the leaves in topological order and give each its offset.

        Parameters with so many elements or more are updated at once, and come after the others.
        """
        leaves = [n for n in topological(outputs.values()) if isinstance(n.op, (Parameter, State, Constant))]
        self.names = name_leaves(leaves)
        params = [n for n in leaves if isinstance(n.op, Parameter)]
        self.trainable = [p for p in params if p in trainable]
        hyper = {
            p: tuple(optimizer.hyperparameters_of(self.names[p], p.rank).items()) if optimizer else ()
            for p in self.trainable
        }
        groups = list(dict.fromkeys(hyper.values()))
        large = {p for p in self.trainable if at_once_from is not None and elements(p) >= at_once_from}
        self.trainable.sort(key=lambda p: (p in large, groups.index(hyper[p])))  # stable: one range a group
        fixed = [n for n in leaves if n not in set(self.trainable) and not isinstance(n.op, State)]
        self.offsets: dict[Node, int] = {}
        kept = [p for p in self.trainable if p not in large]
        self.grads_size = self._place(kept, 0, dtype)
        self.trainable_size = self._place([p for p in self.trainable if p in large], self.grads_size, dtype)
        self.params_size = self._place(fixed, self.trainable_size, dtype)
        self.states = [n for n in leaves if isinstance(n.op, State)]
        self.states_size = self._place(self.states, 0, dtype)
        self.params = [*self.trainable, *fixed]
        self.kept = frozenset(kept)

        def update_range(members: list[Node]) -> UpdateRange:
            begin, last = self.offsets[members[0]], members[-1]
            end = self.offsets[last] + padded(elements(last), dtype)
            return UpdateRange(begin, end, hyper[last], tuple(self.names[p] for p in members))

        together = [[p for p in kept if hyper[p] == group] for group in groups]
        self.ranges = tuple(update_range(members) for members in together if members)
        self.at_once = {p: update_range([p]) for p in self.trainable if p in large}

    def _place(self, nodes: list[Node], start: int, dtype: DType) -> int:
        for node in nodes:
            self.offsets[node] = start
            start += padded(elements(node), node.dtype, dtype)
        return start

    def buffer(self, node: Node) -> Buffer:
        """Return the buffer of a parameter, constant or state."""
        space = Space.STATE if isinstance(node.op, State) else Space.PARAMS
        return Buffer(self.names[node], node.dtype, node.type.size, space, self.offsets[node])

    def slots(self, nodes: list[Node]) -> tuple[Slot, ...]:
        """Return the named places of parameters or state."""
        trained = set(self.trainable)
        return tuple(
            Slot(
                self.names[n],
                tuple(d for d in n.shape if isinstance(d, int)),
                self.offsets[n],
                n in trained,
                n.dtype,
                isinstance(n.op, Constant),
                gradient=n in self.kept,
            )
            for n in nodes
        )


def elements(node: Node) -> int:
    """Return how many elements a leaf has."""
    return static_size([d for d in node.shape if isinstance(d, int)])


def padded(count: int, dtype: DType, unit: DType | None = None) -> int:
    """Return the elements (of ``unit``) that an array takes with padding to the alignment."""
    step = _ALIGN // ITEMSIZE[unit or dtype]
    size = -(-count * ITEMSIZE[dtype] // ITEMSIZE[unit or dtype])
    return -(-size // step) * step


def name_leaves(leaves: list[Node]) -> dict[Node, str]:
    """Name parameters and state after their layers; layers without a name get their kind and a number.

    Raises:
        UnknownNameError: a name is used twice, or contains what no identifier has.
    """
    scopes: dict[Scope, str] = {}
    counts: dict[str, int] = {}
    names: dict[Node, str] = {}
    taken = {
        n.op.scope.name
        for n in leaves
        if isinstance(n.op, (Parameter, State)) and n.op.scope.name is not None
    }
    used: dict[str, Node] = {}
    for node in leaves:
        if isinstance(node.op, Constant):
            name = f"constant_{sum(isinstance(n.op, Constant) for n in names)}"
        else:
            assert isinstance(node.op, (Parameter, State))
            scope = node.op.scope
            if scope not in scopes:
                chosen = scope.name
                while chosen is None or (scope.name is None and chosen in taken):
                    counts[scope.kind] = counts.get(scope.kind, -1) + 1
                    chosen = f"{scope.kind}_{counts[scope.kind]}"
                scopes[scope] = chosen
            name = scopes[scope] + (f".{node.op.field}" if node.op.field else "")
        check_name("parameter", name, node)
        if name in used:
            raise UnknownNameError(
                f"the name {name!r} is used twice: at {used[name].source} and at {node.source}; "
                "to share a layer, pass its tensors to both uses"
            )
        used[name] = node
        names[node] = name
    return names


def check_name(what: str, name: str, node: Node) -> None:
    """Raise UnknownNameError if a name has other characters than an identifier with dots, or too many."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > 200:
        shown = repr(name) if len(str(name)) <= 80 else f"{str(name)[:77]!r}..."
        raise UnknownNameError(
            f"{what} {shown}: a name has letters, digits, '_' and '.', starts with a letter or '_', and is at "
            f"most 200 characters long, at {node.source}"
        )
