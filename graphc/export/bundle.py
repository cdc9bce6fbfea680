"""What an exported module consists of: its program, its text, its weights, and what it must compute.

An inference bundle is a program of its own: it reads what the fold step made of the parameters and nothing else, so
that no weight is there twice and nothing is computed from weights where it runs. The fold step runs here, in C built
for this machine, whatever machine the layout is for. A training bundle is the module's program as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from graphc.artifact import make_manifest
from graphc.build import BuildOptions, build_extension
from graphc.emit.c import Emitted, Exported, emit_c, emit_levels
from graphc.emit.cuda import emit_cuda, emulator
from graphc.emit.levels import Level as CLevel
from graphc.emit.libm import library_calls
from graphc.errors import GraphError
from graphc.export.samples import sample_inputs
from graphc.export.targets import Target, level_isas
from graphc.isa import isa_named
from graphc.memory import ArenaPlan
from graphc.optim import Optimizer
from graphc.pipeline import Compiled, Request, compile_program
from graphc.program.ir import Entry, Program
from graphc_runtime.module import Module
from graphc_runtime.weights import Weights, pack_weights

_LARGEST = 4  # batch of a record
STEPS = 3  # of training that a bundle repeats to check itself
SetUp = Callable[[Module], None]


@dataclass(frozen=True)
class Record:
    """A batch, and what an entry point must give for it; of training, one loss after another."""

    entry: str
    batch: int
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Level:
    """A level of the processor that the bundle has code of its own for: target, prefix of its names, texts."""

    target: Target
    name: str
    emitted: Emitted


@dataclass(frozen=True)
class Bundle:
    """Everything that is written into the folder, but for the texts that say how to build and use it."""

    target: Target
    program: Program
    emitted: Emitted
    graph: str
    weights: bytes
    records: tuple[Record, ...]
    plans: Mapping[str, ArenaPlan]
    lr: float = 0.0  # of the training step's example
    levels: tuple[Level, ...] = ()  # where there are several, the best first
    libm: bool = True  # whether the C library's mathematics may be needed

    @property
    def trains(self) -> bool:
        """Whether the training step is there."""
        return any(entry.name == "train_step" for entry in self.program.entries)

    @property
    def sources(self) -> dict[str, str]:
        """All of C by file name."""
        found = dict(self.emitted.sources)
        for level in self.levels:
            found |= level.emitted.sources
        return found


def make_bundle(
    request: Request,
    targets: Sequence[Target],
    set_up: SetUp,
    *,
    train: bool,
    build: BuildOptions,
    single_file: bool = False,
    libm: bool = True,
    threads: int = 1,
) -> Bundle:
    """Return the bundle of a net.

    Args:
        request: what was compiled.
        targets: what the code is for; where there are several, levels of one processor, the best first.
        set_up: gives a module of the same net its weights and its state.
        train: whether the training step is to be there.
        build: how the code is built on this machine, to fold the weights and to record what it computes.
        single_file: one file of C, whatever its size.
        libm: whether the code may call the C library's mathematics.
        threads: those that a context starts with.

    Raises:
        GraphError: levels cannot share weights, or are to be in one file; mathematics would have to be called.
    """
    if len(targets) > 1 and single_file:
        raise GraphError("export: code for several levels is in files of its own; it cannot be a single file")
    request = replace(request, frozen=True)
    device = targets[0].device
    if not train:
        request = replace(
            request, loss=None, optimizer=None, metrics={}, memory_budget=None, keep_gradients=True
        )
    compiled = [compile_program(replace(request, isa=isa_named(isa))) for isa in level_isas(targets)]
    first = compiled[0]
    optimizer = request.optimizer if train else None
    graph, weights, records = _computed(first.program, optimizer, set_up, train=train, build=build)
    program = _as_loaded(first, train)
    if device:
        emitted = emit_cuda(program, optimizer, graph=graph, precision=request.precision)
        program = replace(program, arena_bytes=emitted.arena_bytes)
        emitted = replace(emitted, sources={**emitted.sources, **emulator()})
    else:
        emitted = emit_c(program, optimizer, exported=Exported(graph, single_file, threads=threads))
    bundle = Bundle(
        targets[0], program, emitted, graph, weights, records,
        {entry.name: first.plans[entry.name] for entry in program.entries},
        float(optimizer.lr) if optimizer is not None else 0.0,
    )  # fmt: skip
    if len(targets) > 1:
        bundle = _with_levels(bundle, targets, compiled, optimizer, Exported(graph, threads=threads))
    called = [] if device else library_calls(bundle.sources.values())
    if called and not libm:
        raise GraphError(
            f"export: {request.name} calls {', '.join(called)} of the C library's mathematics; without it there are "
            "graphc's own exp, log, tanh, erf, expm1 and log1p in float32, and square roots by the processor"
        )
    return replace(bundle, libm=libm)


def _computed(
    program: Program, optimizer: Optimizer | None, set_up: SetUp, *, train: bool, build: BuildOptions
) -> tuple[str, bytes, tuple[Record, ...]]:
    """Build a program here; return the graph's digest, the weights file, and what it gives for a batch."""
    emitted = emit_c(program, optimizer)
    manifest = make_manifest(program, emitted, optimizer)
    graph = manifest["fingerprint"]
    module = Module(manifest, build_extension(program.name, emitted.sources, emitted.cdef, build), {})
    set_up(module)
    blocks = module.weight_blocks(("params", "slots", "state", "frozen") if train else ("folded",))
    if train:
        blocks["params"] = blocks["params"][: program.trainable_size]
    weights = pack_weights(Weights(graph, module.step, module.seed, blocks))
    batch = min(program.batch, _LARGEST)
    inputs = sample_inputs(program, batch)
    entries = {entry.name: entry for entry in program.entries}
    records = []
    if entries["predict"].outputs:
        records.append(_recorded(module, entries["predict"], inputs, batch))
    if train:
        records.append(_recorded_training(module, entries["train_step"], inputs, batch))
    return graph, weights, tuple(records)


def _with_levels(
    bundle: Bundle,
    targets: Sequence[Target],
    compiled: Sequence[Compiled],
    optimizer: Optimizer | None,
    exported: Exported,
) -> Bundle:
    """Return the bundle with a module for every level, and functions that choose among them."""
    here = _computed_here(bundle.trains)
    if any(c.graphs.get(here) != compiled[0].graphs.get(here) for c in compiled):
        raise GraphError("export: these levels lay out the weights in different ways; export them one by one")
    name, programs, levels = bundle.program.name, [_as_loaded(c, bundle.trains) for c in compiled], []
    for target, program in zip(targets, programs, strict=True):
        prefix = f"{name}_{target.name.replace('-', '_')}"
        emitted = emit_c(replace(program, name=prefix), optimizer, exported=replace(exported, public=name))
        levels.append(Level(target, prefix, emitted))
    offsets = {
        entry: {**places, "": max(program.offsets[entry].get("", 0) for program in programs)}
        for entry, places in bundle.program.offsets.items()
        if entry in bundle.plans
    }
    public = replace(
        bundle.program, offsets=offsets, arena_bytes=max(program.arena_bytes for program in programs)
    )
    stack = max(level.emitted.stack_bytes for level in levels)
    emitted = emit_c(public, optimizer, exported=replace(exported, single_file=True, least_stack=stack))
    chosen = [CLevel(level.name, level.target.features or ()) for level in levels]
    emitted = replace(emitted, sources=emit_levels(public, emitted, chosen))
    return replace(bundle, program=public, emitted=emitted, levels=tuple(levels))


def _computed_here(train: bool) -> str:
    """Return the entry point whose results come with the weights."""
    return "freeze" if train else "fold"


def _as_loaded(compiled: Compiled, train: bool) -> Program:
    """Return the program without what was computed here, which comes with the weights, and without its operands."""
    program = compiled.program
    entries = tuple(entry for entry in program.entries if entry.name != _computed_here(train))
    arena = max(compiled.plans[entry.name].arena_bytes for entry in entries)
    program = replace(program, entries=entries, arena_bytes=arena)
    if not train:
        return replace(
            program, params=(), states=(), params_size=0, trainable_size=0, grads_size=0, states_size=0
        )
    trained = tuple(slot for slot in program.params if slot.trainable)
    return replace(program, params=trained, params_size=program.trainable_size)


def _recorded(module: Module, entry: Entry, inputs: Mapping[str, np.ndarray], batch: int) -> Record:
    given: dict[str, Any] = {a.name: inputs[a.name] for a in entry.inputs}
    return Record(entry.name, batch, given, module.predict(**given))


def _recorded_training(module: Module, entry: Entry, inputs: Mapping[str, np.ndarray], batch: int) -> Record:
    given: dict[str, Any] = {a.name: inputs[a.name] for a in entry.inputs}
    steps = [module.train_step(**given) for _ in range(STEPS)]
    outputs = {"loss": np.array(steps, module.dtype)}
    outputs |= {k: np.array([s.metrics[k] for s in steps], module.dtype) for k in steps[0].metrics}
    return Record(entry.name, batch, given, outputs)
