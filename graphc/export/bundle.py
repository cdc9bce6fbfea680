"""What an exported module consists of: its program, its text, its weights, and what it must compute.

An inference bundle is a program of its own: it reads what the fold step made of the parameters and nothing else, so
that no weight is there twice and nothing is computed from weights where it runs. The fold step runs here, in C built
for this machine, whatever machine the layout is for. A training bundle is the module's program as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from graphc.artifact import make_manifest
from graphc.build import BuildOptions, build_extension
from graphc.emit.c import Emitted, emit_c
from graphc.export.samples import sample_inputs
from graphc.export.targets import Target
from graphc.isa import isa_named
from graphc.memory import ArenaPlan
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

    @property
    def trains(self) -> bool:
        """Whether the training step is there."""
        return any(entry.name == "train_step" for entry in self.program.entries)


def make_bundle(
    request: Request,
    target: Target,
    set_up: SetUp,
    *,
    train: bool,
    build: BuildOptions,
    single_file: bool = False,
) -> Bundle:
    """Return the bundle of a net.

    Args:
        request: what was compiled.
        target: what the code is for.
        set_up: gives a module of the same net its weights and its state.
        train: whether the training step is to be there.
        build: how the code is built on this machine, to fold the weights and to record what it computes.
        single_file: one file of C, whatever its size.
    """
    request = replace(request, isa=isa_named(target.isa), frozen=True)
    if not train:
        request = replace(
            request, loss=None, optimizer=None, metrics={}, memory_budget=None, keep_gradients=True
        )
    compiled = compile_program(request)
    optimizer = request.optimizer if train else None
    emitted = emit_c(compiled.program, optimizer)
    manifest = make_manifest(compiled.program, emitted, optimizer)
    graph = manifest["fingerprint"]
    module = Module(manifest, build_extension(request.name, emitted.sources, emitted.cdef, build), {})
    set_up(module)
    batch = min(request.batch, _LARGEST)
    inputs = sample_inputs(compiled.program, batch)
    blocks = module.weight_blocks(("params", "slots", "state", "frozen") if train else ("folded",))
    if train:
        blocks["params"] = blocks["params"][: compiled.program.trainable_size]
    weights = pack_weights(Weights(graph, module.step, module.seed, blocks))
    records = (
        [_recorded(module, _entry(compiled.program, "predict"), inputs, batch)] if request.outputs else []
    )
    if train:
        records.append(_recorded_training(module, _entry(compiled.program, "train_step"), inputs, batch))
    program = _as_loaded(compiled, train)
    emitted = emit_c(program, optimizer, graph=graph, single_file=single_file)
    return Bundle(
        target, program, emitted, graph, weights, tuple(records),
        {entry.name: compiled.plans[entry.name] for entry in program.entries},
        float(optimizer.lr) if optimizer is not None else 0.0,
    )  # fmt: skip


def _entry(program: Program, name: str) -> Entry:
    return next(entry for entry in program.entries if entry.name == name)


def _as_loaded(compiled: Compiled, train: bool) -> Program:
    """Return the program without what was computed here: it comes with the weights, and nothing reads its operands."""
    program = compiled.program
    here = "freeze" if train else "fold"
    entries = tuple(entry for entry in program.entries if entry.name != here)
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
