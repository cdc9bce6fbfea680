"""The compiler as one list of steps, from what the user wrote to C text.

Each step states what it gives; ``dump`` receives every intermediate result under a numbered name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from graphc.differentiate import grad
from graphc.emit.products import FORMS
from graphc.errors import DTypeError, GraphError, UnknownNameError
from graphc.graph.node import Node, topological
from graphc.graph.text import print_graph
from graphc.graph.verify import verify
from graphc.initialisers import Array, Initialiser
from graphc.isa import AVX512, Isa
from graphc.layout import Layout, check_name, elements, name_leaves, padded
from graphc.lower.arena import kept_buffers, plan_entry
from graphc.lower.budget import within_budget, without_budget
from graphc.lower.entry import EntryLowering
from graphc.lower.order import Order, best_order, eager_order
from graphc.lower.update import Target, update_at_once
from graphc.memory import ArenaPlan
from graphc.ops.control import Bounded
from graphc.ops.elementwise import Elementwise
from graphc.ops.leaves import BatchExtent, Constant, Folded, Frozen, Input, Parameter, State
from graphc.optim import Optimizer
from graphc.passes.fix_batch import fix_batch
from graphc.passes.fold import fixed_nodes, fold_scales, hoist_fixed
from graphc.passes.fuse import Group, print_groups
from graphc.passes.pack import Layouts, pack
from graphc.passes.pool_before_activation import pool_before_activation
from graphc.passes.recompute import fuse
from graphc.passes.retype import retype
from graphc.passes.simplify import simplify
from graphc.passes.specialise import Specialised, specialise, without_gradient_rules
from graphc.passes.variants import Choose, ProductTask, cost_model
from graphc.program.ir import (
    Argument,
    Bound,
    Buffer,
    Call,
    Entry,
    Program,
    Space,
    UpdateSpec,
)
from graphc.rewrites import ALL, Rewrites
from graphc.types import DType, Extent, Precision, static_shape

# Arguments of the module's methods, beside which inputs are passed by name.
_KEYWORDS = frozenset({"self", "out", "lr"})
_PREFIXES = ("state.", "grad.", "metric.")
_AT_ONCE = 2**12  # elements from which on a gradient is used up at once where none need be kept
Dump = Callable[[str, Callable[[], str]], None]


FORK_US = 4.0
"""Microseconds after which waking threads for a kernel pays: about twice what a fork and join takes."""


def _no_dump(name: str, text: Callable[[], str]) -> None:
    del name, text


@dataclass(frozen=True)
class Request:
    """What the user asked to be compiled."""

    name: str
    outputs: dict[str, Node]
    loss: Node | None
    metrics: dict[str, Node]
    optimizer: Optimizer | None
    batch: int
    dtype: DType
    gradients: bool = True
    isa: Isa = AVX512
    winograd: bool = True
    fork_us: float = FORK_US
    choose: Choose = cost_model  # the variant of every kernel
    memory_budget: int | None = None  # bytes of the training step's arena
    rewrites: Rewrites = ALL
    apart: bool = False  # one kernel for every node: nan_guard must be able to name it
    keep_gradients: bool = True  # in a block; otherwise large ones are used up where they are computed
    target: str = "c"  # what the program is printed as
    precision: Precision = "fp32"  # of the operands of a device's products
    mixed: bool = False  # every tensor keeps its own dtype; parameters that are trained are of ``dtype``
    frozen: bool = False  # what is not trained is not read, only what was computed from it ahead

    @property
    def pools(self) -> bool:
        """Whether convolutions pool what they compute: their tiles do, where weights are packed."""
        return self.rewrites.pool and self.isa.packs


@dataclass(frozen=True)
class Compiled:
    """The Program, and what is known about it: plans and graphs."""

    program: Program
    plans: dict[str, ArenaPlan]
    graphs: dict[str, dict[str, Node]] = field(repr=False)
    apart: bool = False  # as in the request: how nodes share kernels
    pools: bool = True


def compile_program(request: Request, dump: Dump | None = None) -> Compiled:
    """Run every step and return the Program.

    Raises:
        GraphError: the graph is cyclic, the loss is not a scalar, or nothing can be trained.
        UnknownNameError: names clash or are no names.
    """
    dump = dump or _no_dump
    written = _written(request)
    _check_request(request, written)
    dump("01-written", lambda: print_graph(written))
    typed = _typed(written, request)
    if request.frozen and request.batch == 1:
        typed = fix_batch(typed, 1)
    pooled = pool_before_activation(typed)
    verify(pooled)
    dump("02-pool-before-activation", lambda: print_graph(pooled))
    builder = Builder(request, pooled, dump)
    builder.inference("predict", {k: pooled[k] for k in request.outputs})
    if request.loss is not None:
        metrics = {k: pooled[f"metric.{k}"] for k in request.metrics}
        builder.inference("evaluate", {"loss": pooled["loss"], **metrics})
        builder.training({"loss": pooled["loss"], **metrics})
    return builder.finish()


def written_graph(request: Request) -> dict[str, Node]:
    """Return outputs, metrics and loss as they were written, in the dtype of the module."""
    return _typed(_written(request), request)


def initialisers_of(request: Request) -> dict[str, Initialiser]:
    """Return the rule for the first values of every parameter, constant and state, by name."""
    # In the dtype of the module, as the layout sees it: constants that differ in dtype alone become one.
    typed = written_graph(request)
    leaves = [n for n in topological(typed.values()) if isinstance(n.op, (Parameter, State, Constant))]
    return {name: _initialiser(node) for node, name in name_leaves(leaves).items()}


def _typed(written: dict[str, Node], request: Request) -> dict[str, Node]:
    """Return the graph in the module's dtype, or as it is in mixed precision."""
    return written if request.mixed else retype(written, request.dtype)


def _initialiser(node: Node) -> Initialiser:
    if isinstance(node.op, Constant):
        return Array(node.op.values)
    assert isinstance(node.op, (Parameter, State))
    return node.op.initial


def _written(request: Request) -> dict[str, Node]:
    written = {**request.outputs, **{f"metric.{k}": v for k, v in request.metrics.items()}}
    if request.loss is not None:
        written["loss"] = request.loss
    return written


def _check_request(request: Request, written: Mapping[str, Node]) -> None:
    if request.loss is not None and (request.loss.shape != () or not request.loss.type.is_float):
        raise GraphError(
            f"compile: the loss must be a floating-point scalar, got {request.loss!r}; take its mean or sum"
        )
    for name, metric in request.metrics.items():
        if metric.shape != ():
            raise GraphError(f"compile: metric {name!r} must be a scalar, got {metric!r}")
    named: dict[str, Node] = {}
    for node in topological(written.values()):
        if isinstance(node.op, Elementwise):
            check_name("function", node.op.name, node)
        if not isinstance(node.op, Input):
            if node.name is not None:
                check_name("tensor", node.name, node)
            continue
        check_name("input", node.op.name, node)
        if node.op.name in _KEYWORDS:
            raise UnknownNameError(
                f"input {node.op.name!r}: the name is taken by an argument of predict or train_step, "
                f"at {node.source}"
            )
        if named.setdefault(node.op.name, node) is not node:
            raise UnknownNameError(
                f"two inputs are called {node.op.name!r}: at {named[node.op.name].source} and at {node.source}"
            )
    for kind, tensors in (("output", request.outputs), ("metric", request.metrics)):
        for name, node in tensors.items():
            check_name(kind, name, node)
            if name in named:
                raise UnknownNameError(f"{kind} {name!r} has the name of an input, at {node.source}")
            if name == "loss" and request.loss is not None and node is not request.loss:
                raise UnknownNameError(f"{kind} {name!r} has the name of the loss, at {node.source}")
            if name.startswith(_PREFIXES):
                raise UnknownNameError(
                    f"{kind} {name!r}: names that start with {', '.join(_PREFIXES)} are the compiler's own, "
                    f"at {node.source}"
                )


def _check_batch(entry: str, graph: Mapping[str, Node], inputs: list[Argument]) -> None:
    """Refuse an entry point whose results depend on a batch that no input tells."""
    if any(isinstance(d, Extent) for a in inputs for d in a.shape):
        return
    for node in topological(graph.values()):
        if isinstance(node.op, BatchExtent) or any(isinstance(d, Extent) for d in node.shape):
            raise GraphError(
                f"compile: {entry} needs the run-time batch for {node!r}, but no input of its has the batch "
                "in its shape"
            )


class _Ahead:
    """Values that are computed ahead of the calls that read them, one after another in a block."""

    def __init__(self, space: Space, kind: type[Folded], unit: DType):
        self.space, self.kind, self.unit = space, kind, unit
        self.leaves: dict[Node, Node] = {}  # by value
        self.buffers: dict[Node, Buffer] = {}  # by leaf
        self.values: dict[str, Node] = {}  # by the name of the buffer
        self.size = 0

    def leaf_of(self, value: Node) -> Node:
        """Return the leaf that stands for a value."""
        if value not in self.leaves:
            leaf = self.kind(value.dtype, static_shape(value.shape), len(self.leaves))
            self.leaves[value] = leaf(name=value.name)
        return self.leaves[value]

    def register(self, called: dict[str, Node], values: Mapping[Node, Node]) -> dict[str, Node]:
        """Give every leaf of a graph its place, in the order in which they are read; return the graph."""
        for node in topological(called.values()):
            if node in values and node not in self.buffers:
                name = f"{self.space.value}_{len(self.values)}"
                self.buffers[node] = Buffer(name, node.dtype, node.type.size, self.space, self.size)
                self.size += padded(elements(node), node.dtype, self.unit)
                self.values[name] = values[node]
        return called

    @property
    def results(self) -> dict[str, Buffer]:
        """The buffers by their names."""
        return {buffer.name: buffer for buffer in self.buffers.values()}


class Builder:
    """Collects the entry points of one module."""

    def __init__(self, request: Request, outputs: dict[str, Node], dump: Dump = _no_dump):
        """Lay out the parameters that the outputs need, for all entry points."""
        self.request = request
        self.layouts = Layouts(request.isa, request.batch, request.winograd, request.choose)
        self.dump = dump
        self.trained = request.loss is not None
        self.wanted = self._trainable(outputs) if self.trained else []
        self.optimizer = request.optimizer if self.trained else None
        at_once_from = None if request.keep_gradients else _AT_ONCE
        self.layout = Layout(outputs, set(self.wanted), self.optimizer, request.dtype, at_once_from)
        if request.mixed:
            self._check_mixed()
        self.entries: list[Entry] = []
        self.plans: dict[str, ArenaPlan] = {}
        self.frozen = _Ahead(Space.FROZEN, Frozen, request.dtype)
        self.folded = _Ahead(Space.FOLDED, Folded, request.dtype)
        fixed = [p for p in self.layout.params if p not in set(self.wanted)]
        ahead = self.trained and any(request.frozen or isinstance(p.op, Parameter) for p in fixed)
        self.fixed_leaves = frozenset(fixed) if ahead else None
        self.graphs: dict[str, dict[str, Node]] = {"written": outputs}
        self.step = 3

    def _check_mixed(self) -> None:
        """Refuse to train or to assign what is not of the module's dtype: each of these blocks has one."""
        for node in (*self.wanted, *self.layout.states):
            if node.dtype != self.request.dtype:
                raise DTypeError(
                    f"compile: dtype 'mixed' trains parameters and keeps state in {self.request.dtype}, but "
                    f"{self.layout.names[node]!r} at {node.source} is {node.type}; cast it where it is used, or "
                    "compile everything in float64"
                )

    def _trainable(self, outputs: dict[str, Node]) -> list[Node]:
        order = topological([outputs["loss"]])
        found = [n for n in order if isinstance(n.op, Parameter) and n.op.trainable]
        if not found:
            raise GraphError("compile: the loss depends on no trainable parameter")
        return found

    def inference(self, name: str, outputs: dict[str, Node]) -> None:
        """Build an entry point that computes outputs in inference mode."""
        special = specialise(outputs, training=False)
        simple = simplify(special.outputs)
        scaled = pool_before_activation(
            simplify(fold_scales(simple))
        )  # a batch norm only adds to channels now
        packed = self._freeze(simplify(pack(scaled, self.layouts)))
        self._lower_shown(name, self._fold(packed), special, {})

    def _freeze(self, graph: dict[str, Node]) -> dict[str, Node]:
        """Return the graph with what depends on fixed parameters alone computed ahead, where something is trained."""
        if self.fixed_leaves is None:
            return graph
        called, values = hoist_fixed(
            graph, self.frozen.leaf_of, leaves=self.fixed_leaves, copied=self.request.frozen
        )
        return self.frozen.register(called, values)

    def _fold(self, graph: dict[str, Node]) -> dict[str, Node]:
        """Return the graph with what depends on parameters and states alone computed whenever these change."""
        copied = self.request.frozen and not self.trained
        return self.folded.register(*hoist_fixed(graph, self.folded.leaf_of, copied=copied))

    def training(self, outputs: dict[str, Node]) -> None:
        """Build the training step: outputs, gradients, and the new values of states."""
        special = specialise(outputs, training=True)
        gradients = grad(special.outputs["loss"], self.layout.trainable)
        names = self.layout.names
        graph = dict(special.outputs)
        graph |= {f"grad.{names[p]}": g for p, g in zip(self.layout.trainable, gradients, strict=True)}
        graph |= {f"state.{names[s]}": new for s, new in special.updates.items()}
        self.dump(f"{self.step:02d}-differentiate", lambda: print_graph(graph))
        simple = simplify(without_gradient_rules(graph))
        fixed = fixed_nodes(simple, self.fixed_leaves) if self.fixed_leaves is not None else ()
        packed = pack(simple, replace(self.layouts, trained=True, fixed=fixed))
        simple = self._freeze(simplify(packed))
        verify(simple)
        results = {
            f"grad.{names[p]}": Buffer(
                f"grad.{names[p]}", p.dtype, p.type.size, Space.GRADS, self.layout.offsets[p]
            )
            for p in self.layout.trainable
            if p in self.layout.kept
        }
        self._lower_shown("train_step", simple, special, results)

    def alone(self, name: str, outputs: dict[str, Node], folded: bool) -> tuple[Call, ...]:
        """Build an entry point that computes packed outputs and no more; return its calls.

        ``folded`` leaves to the fold step what depends on parameters alone, as inference does.
        """
        outputs = simplify(outputs)
        if folded:
            outputs = self._fold(outputs)
        self._lower(name, outputs, None, {})
        return self.entries[-1].calls

    def forget(self, name: str) -> None:
        """Remove an entry point."""
        self.entries = [entry for entry in self.entries if entry.name != name]
        del self.plans[name]

    def _lower_shown(
        self, name: str, graph: dict[str, Node], special: Specialised | None, results: dict[str, Buffer]
    ) -> None:
        self.graphs[name] = graph
        self.dump(f"{self.step:02d}-{name}-graph", lambda: print_graph(graph))
        self.step += 1
        self._lower(name, graph, special, results)

    def _stored(self, graph: Mapping[str, Node]) -> tuple[dict[Node, Buffer], list[Argument]]:
        stored: dict[Node, Buffer] = {}
        inputs: list[Argument] = []
        for node in topological(graph.values()):
            if isinstance(node.op, Input):
                buffer = Buffer(node.op.name, node.dtype, node.type.size, Space.INPUT)
                stored[node] = buffer
                inputs.append(Argument(node.op.name, node.dtype, node.shape, buffer))
            elif isinstance(node.op, (Parameter, State, Constant)):
                stored[node] = self.layout.buffer(node)
            elif isinstance(node.op, Folded):
                stored[node] = (self.frozen if isinstance(node.op, Frozen) else self.folded).buffers[node]
        return stored, inputs

    def _lower(
        self, name: str, graph: dict[str, Node], special: Specialised | None, results: dict[str, Buffer]
    ) -> None:
        groups = fuse(graph, self.request.batch, self.request.apart, self.request.pools)
        self.dump(f"{self.step:02d}-{name}-kernels", lambda: print_groups(groups))
        self.step += 1
        stored, inputs = self._stored(graph)
        _check_batch(name, graph, inputs)
        inputs.sort(key=lambda a: self._input_order(a.name))
        outputs: list[Argument] = []
        buffers: dict[str, Buffer] = {}
        for key, node in graph.items():
            if key in results:
                buffers[key] = results[key]
            elif key.startswith("grad."):  # to be used up
                buffers[key] = Buffer(key, node.dtype, node.type.size, Space.ARENA)
            elif key.startswith("state."):
                buffers[key] = Buffer(f"new.{key[6:]}", node.dtype, node.type.size, Space.ARENA)
            else:
                buffers[key] = Buffer(key, node.dtype, node.type.size, Space.OUTPUT)
                outputs.append(Argument(key, node.dtype, node.shape, buffers[key]))
        # Where every node has a kernel of its own, its value is guarded: a part of a concatenation is none.
        lowering = EntryLowering(stored, self.request.rewrites.concat and not self.request.apart)
        lowering.lower(groups, [(graph[k], b) for k, b in buffers.items()])
        commits = self._commits(graph, buffers)
        calls = update_at_once(lowering.calls, self._targets(buffers))
        entry_calls, plan = self._plan(name, calls, commits)
        entry_calls = [self._tiled(call) for call in entry_calls]
        bounds = self._bounds(special, {a.name for a in inputs})
        self.entries.append(
            Entry(
                name,
                tuple(inputs),
                tuple(outputs),
                tuple(entry_calls),
                bounds,
                len(entry_calls) - len(commits) if commits else 0,
            )
        )
        self.plans[name] = plan

    def _tiled(self, call: Call) -> Call:
        """Return the call with the tile that is chosen for it, if it is a device's product."""
        request = self.request
        if request.target != "cuda" or call.kernel.template not in FORMS:
            return call
        variant = request.choose(ProductTask(call.kernel, request.batch, request.precision))
        return replace(call, kernel=replace(call.kernel, tile=variant.tile))

    def _input_order(self, name: str) -> int:
        order = [n.op.name for n in topological(self.graphs["written"].values()) if isinstance(n.op, Input)]
        return order.index(name)

    def _commits(self, graph: Mapping[str, Node], buffers: Mapping[str, Buffer]) -> list[Call]:
        """Return the calls that assign new values to states, after everything has been read."""
        by_name = {self.layout.names[s]: s for s in self.layout.states}
        commit = EntryLowering({graph[k]: b for k, b in buffers.items() if k.startswith("state.")})
        targets = [(graph[k], self.layout.buffer(by_name[k[6:]])) for k in buffers if k.startswith("state.")]
        commit.lower([], targets)
        return commit.calls

    def _targets(self, buffers: Mapping[str, Buffer]) -> list[Target]:
        """Return the parameters that kernels of this entry point update."""
        found: list[Target] = []
        if self.optimizer is None:
            return found
        for parameter, update in self.layout.at_once.items():
            weight = self.layout.buffer(parameter)
            gradient = buffers.get(f"grad.{weight.name}")
            if gradient is not None:
                rule = self.optimizer.rule_for(update)
                places = (weight.offset + k * self.layout.trainable_size for k in range(len(rule.slots)))
                slots = tuple(
                    Buffer(f"{slot}.{weight.name}", weight.dtype, weight.size, Space.SLOTS, place)
                    for slot, place in zip(rule.slots, places, strict=True)
                )
                found.append(Target(weight, gradient, slots, static_shape(parameter.shape), rule))
        return found

    def _plan(self, name: str, calls: list[Call], commits: list[Call]) -> tuple[list[Call], ArenaPlan]:
        request = self.request

        def finish(arranged: list[Call]) -> Order:
            return best_order(arranged, commits, request.batch, request.rewrites)

        calls = eager_order(calls, commits, request.batch, request.rewrites)
        if name != "train_step":
            order = finish(calls)
        elif request.memory_budget is None:
            order = without_budget(calls, request.batch, request.rewrites, finish)
        else:
            order = within_budget(calls, request.batch, request.memory_budget, request.rewrites, finish)
        return order.in_place, plan_entry(
            order.in_place, request.batch, kept_buffers(order.in_place, name), order.notes
        )

    def _bounds(self, special: Specialised | None, inputs: set[str]) -> tuple[Bound, ...]:
        if special is None:
            return ()
        found = []
        for node, op in special.bounds:
            assert isinstance(node.op, Input) and isinstance(op, Bounded)
            if node.op.name not in inputs:  # simplified away: it is no argument of the entry point
                continue
            found.append(Bound(node.op.name, op.low, op.high, op.also))
        return tuple(found)

    def finish(self) -> Compiled:
        """Add the steps that compute values ahead and return the Program."""
        if self.folded.values:
            values = self._freeze(self.folded.values)
            self._lower_shown("fold", values, None, self.folded.results)
        if self.frozen.values:
            self._lower_shown("freeze", self.frozen.values, None, self.frozen.results)
        offsets: dict[str, dict[str, int]] = {}
        for entry in self.entries:
            plan = self.plans[entry.name]
            offsets[entry.name] = {i.id: o for i, o in zip(plan.intervals, plan.offsets, strict=True)}
            offsets[entry.name][""] = plan.arena_bytes  # the whole arena, under no name
        layout, request = self.layout, self.request
        update = None
        if self.optimizer is not None:
            at_once = tuple(layout.at_once.values())
            slots = self.optimizer.rule_for((*layout.ranges, *at_once)[0]).slots
            update = UpdateSpec(slots, layout.ranges, at_once)
        program = Program(
            request.name, request.dtype, request.batch, request.isa, 1e3 * request.fork_us, tuple(self.entries),
            layout.slots(layout.params), layout.slots(layout.states), self.folded.size,
            layout.params_size, layout.trainable_size, layout.grads_size if self.trained else 0, layout.states_size,
            max((p.arena_bytes for p in self.plans.values()), default=0), offsets, update, self.frozen.size,
        )  # fmt: skip
        return Compiled(program, self.plans, self.graphs, request.apart, request.pools)


def entry_groups(compiled: Compiled, name: str) -> list[Group]:
    """Return the kernels of an entry point as groups of nodes, for inspection."""
    return fuse(compiled.graphs[name], compiled.program.batch, compiled.apart, compiled.pools)
