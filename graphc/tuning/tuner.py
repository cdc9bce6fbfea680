"""Choosing the variants of a net's kernels by measuring them, each distinct kernel once on each machine."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from time import monotonic
from typing import Any

from graphc.build import BuildOptions
from graphc.isa import Isa
from graphc.passes.variants import AnyTask, ProductTask, Task, Variant, cost_model
from graphc.pipeline import Request, compile_program
from graphc.tuning.bench import Bench
from graphc.tuning.candidates import Trial, trials, work
from graphc.tuning.contest import contest
from graphc.tuning.device import DeviceBench, product_trials
from graphc.tuning.store import Store
from graphc.types import ITEMSIZE, at, product

SECONDS = 120.0  # for a net; what is not measured by then is left to the cost model
_TASKS = 8  # of a module of candidates
_WEIGHT_BYTES = 2**27  # of such a module, packed in several ways


class Tuner:
    """Measures what the store does not know, and answers what the passes ask."""

    def __init__(
        self, request: Request, options: BuildOptions, threads: int, store: Store, target: str = "c"
    ):
        """Prepare; nothing is measured yet."""
        self._request, self._options, self._threads, self._store = request, options, threads, store
        self._target = target
        self._until = monotonic() + SECONDS

    def choices(self) -> dict[str, Variant]:
        """Return the variant of every task of the net that has another than the cost model's."""
        uses, moved = _tasks(self._request)
        known = self._store.read()
        missing = [task for task in uses if str(task) not in known]
        # Training first, where there is any, and the most work: time may run out.
        missing.sort(key=lambda task: (not task.trained, -uses[task] * _work(task, self._request.isa)))
        with _Progress(len(missing)) as progress:
            for tasks in _modules(missing):
                if monotonic() > self._until:
                    break
                found = self._measure(tasks, moved, progress)
                self._store.add(found)
                known |= {str(task): variant for task, (variant, _) in found.items()}
        return {str(task): known[str(task)] for task in uses if known.get(str(task), Variant()) != Variant()}

    def _measure(
        self, tasks: Sequence[AnyTask], moved: dict[bool, int], progress: _Progress
    ) -> dict[AnyTask, tuple[Variant, dict[str, Any]]]:
        """Return the winners of some tasks, with what was measured; without those for which time ran out."""
        todo, bench = self._prepared(tasks, max(moved.values()))
        found: dict[AnyTask, tuple[Variant, dict[str, Any]]] = {}
        for trial in todo:
            if monotonic() > self._until:
                break
            timer = bench.timer(trial.task.batch, moved[trial.task.trained])
            found[trial.task] = _winner(trial, timer)
            progress.advance()
        return found

    def _prepared(self, tasks: Sequence[AnyTask], moved: int) -> tuple[list[Trial], Bench | DeviceBench]:
        """Return what is to be measured for some tasks, and the module that measures it."""
        request, options = self._request, self._options
        products = [task for task in tasks if isinstance(task, ProductTask)]
        if products:
            todo, program = product_trials(request, products, moved)
            return todo, DeviceBench(program, options, self._target, request.precision)
        todo, program = trials(request, [task for task in tasks if isinstance(task, Task)])
        return todo, Bench(program, options, self._threads)


def _winner(trial: Trial, timer: Callable[[str], float]) -> tuple[Variant, dict[str, Any]]:
    """Return the variant that wins, and what was measured."""
    if len(trial.variants) == 1:
        return Variant(), {"candidates": 1}
    outcome = contest(len(trial.variants), lambda k: timer(trial.entries[k]))
    times = {"before_us": round(1e6 * outcome.before, 2), "after_us": round(1e6 * outcome.after, 2)}
    return trial.variants[outcome.winner], {"candidates": len(trial.variants), **times}


def _work(task: AnyTask, isa: Isa) -> int:
    """Return the operations of a task at the largest batch."""
    return at(task.kernel.flops, task.batch) if isinstance(task, ProductTask) else work(task, isa)


def _tasks(request: Request) -> tuple[Counter[AnyTask], dict[bool, int]]:
    """Return how often a net has each task, and the bytes that inference and a training step move."""
    uses: Counter[AnyTask] = Counter()

    def record(task: AnyTask) -> Variant:
        uses[task] += 1
        return cost_model(task)

    program = compile_program(replace(request, choose=record)).program
    moved = dict.fromkeys((False, True), 0)
    for entry in program.entries:
        size = sum(at(call.kernel.bytes, program.batch) for call in entry.calls)
        moved[entry.name == "train_step"] = max(moved[entry.name == "train_step"], size)
    return uses, moved


def _modules(tasks: Iterable[AnyTask]) -> Iterator[list[AnyTask]]:
    """Divide the tasks: a module holds few enough to compile soon, and not too many weights."""
    group: list[AnyTask] = []
    held = 0
    for task in tasks:
        kept = task.kernel.operands if isinstance(task, ProductTask) else task.operands[-1:]
        size = sum(at(product(operand.shape), task.batch) * ITEMSIZE[operand.dtype] for operand in kept)
        if group and (len(group) == _TASKS or held + size > _WEIGHT_BYTES):
            yield group
            group, held = [], 0
        group.append(task)
        held += size
    if group:
        yield group


class _Progress:
    """A bar on the terminal where tqdm is installed and a person looks; nothing elsewhere."""

    def __init__(self, total: int) -> None:
        self._bar: Any = None
        if total and sys.stderr.isatty():
            try:
                # By name, for it carries no types, and is an extra.
                make = import_module("tqdm").tqdm
            except ImportError:
                return
            self._bar = make(total=total, desc="tuning", unit="kernel", leave=False, dynamic_ncols=True)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self) -> None:
        """Show that one more kernel is measured."""
        if self._bar is not None:
            self._bar.update()
