"""``compile``: the one place where the compiler, the build and the runtime meet."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from graphc.artifact import Artifact, cached_artifact, fingerprint, make_manifest
from graphc.build import BuildOptions, Cache, build_extension, measure_machine, target_macros
from graphc.emit.c import emit_c
from graphc.emit.cuda import emit_cuda, emulator
from graphc.errors import GraphError, RangeError, UnknownNameError
from graphc.export import make_bundle, targets_named, write_bundle, write_wheel
from graphc.graph.node import Node
from graphc.initialisers import Array as ArrayInitialiser
from graphc.initialisers import Initialiser, stream
from graphc.isa import SIMT, isa_named, isa_of
from graphc.memory import ArenaPlan
from graphc.onnx.export import Given, write_onnx
from graphc.optim import Optimizer
from graphc.passes.variants import Choose, Variant, cost_model
from graphc.pipeline import FORK_US, Compiled, Dump, Request, compile_program, initialisers_of
from graphc.rewrites import ALL, Rewrites
from graphc.translation import Translation
from graphc.tuning import Store, Tuner, device_machine, device_name, machine_of
from graphc.types import PRECISIONS, DType, Precision, check_dtype
from graphc_runtime.module import Module as RuntimeModule
from graphc_runtime.profile import Profile

DEVICES = ("cuda", "cuda-emulated")
_DRAWN_LATER = 2**14  # elements; below that a value is drawn at once


class Module(RuntimeModule):
    """A compiled module that still knows how it was compiled."""

    def __init__(self, translation: Translation, library: Path, seed: int):
        """Load the built extension and draw the parameters' first values."""
        request, artifact = translation.request, translation.artifact
        super().__init__(artifact.manifest, library, _initial_values(request, artifact, seed), seed)
        self._request, self._translation = replace(request, apart=False), translation

    @property
    def compiled(self) -> Compiled:
        """The intermediate results; the pipeline runs again for them."""
        return self._translation.compiled

    def plan(self, mode: str = "inference") -> ArenaPlan:
        """Return the memory plan of ``"inference"``, ``"train"`` or ``"evaluate"``.

        Raises:
            RangeError: the module has no such entry point.
        """
        return self._translation.plan(mode)

    def export(
        self,
        folder: str | Path,
        *,
        train: bool = False,
        target: str = "native",
        weights: str | None = None,
        name: str | None = None,
        batch: int | None = None,
        single_file: bool = False,
        wheel: bool = False,
        overwrite: bool = False,
        libm: bool = True,
        dtype: str | None = None,
        threads: int = 1,
        build: BuildOptions | None = None,
    ) -> Path:
        """Write a folder that needs neither Python nor graphc: C source, weights, build files, example, self-check.

        ``train`` adds the training step with the optimizer's state; without it the bundle holds inference alone, its
        weights folded already. ``target`` is ``"native"`` or a name of ``graphc.export.TARGETS``, or several levels
        of x86-64 separated by commas, among which the library chooses when it runs. ``weights`` are a ``"file"``
        (the default where there are files), an array in ``"c"`` or an ``"object"`` that is linked in. ``name`` is the
        prefix of files and functions, ``batch`` the largest batch, both by default the module's; code for one sample
        has its batch written out. ``single_file`` puts all C into one. A bundle that is there is replaced only with
        ``overwrite``. ``wheel`` puts a Python wheel into the folder instead, which depends on NumPy and cffi alone.
        ``dtype`` is ``"float32"`` or ``"float64"``, by default the module's, ``threads`` what a context starts with.
        Without ``libm`` nothing of the C library's mathematics is called, or the net is refused if it needs that.
        ``build`` says how code is built here, to fold weights and to record what a batch gives.

        Raises:
            GraphcError: the module has no training step or no outputs, the target is unknown, or the folder cannot be
                written; nothing is left behind then.
        """
        if train and self._request.optimizer is None:
            raise GraphError(
                f"export: module {self.name!r} was compiled without an optimizer, so that it cannot train"
            )
        if not train and not self._request.outputs:
            raise GraphError(f"export: module {self.name!r} has no outputs to predict")
        native = self._request.isa.name
        if (
            not self._request.isa.packs
        ):  # a device's module: its processor is the host's, of which it knows nothing
            native = isa_of(target_macros(build or BuildOptions()))
        goals = targets_named(target, native)
        request = replace(
            self._request,
            name=self.name if name is None else _checked_name(name),
            batch=self.batch if batch is None else _checked_batch(batch),
            dtype=self._request.dtype if dtype is None else _checked_dtype(dtype),
            mixed=self._request.mixed and dtype is None,
            target="cuda" if goals[0].device else "c",
        )
        _check_threads(threads)
        bundle = make_bundle(
            request,
            goals,
            self._hand_over,
            train=train,
            build=build or BuildOptions(),
            single_file=single_file,
            libm=libm,
            threads=threads,
        )
        if wheel:
            return write_wheel(bundle, folder)
        return write_bundle(bundle, folder, weights=weights, overwrite=overwrite)

    def to_onnx(self, path: str | Path, *, train: bool = False) -> Path:
        """Write an ONNX file (opset 21) with the weights as they are now; needs the ``onnx`` package.

        Its inputs, outputs and weights have the module's names, its batch is the symbolic dimension ``N``. Nothing is
        folded. With ``train`` the file is a step of training, the gradient written out as ordinary operators.
        Its results are ``loss``, the metrics, ``grad.NAME`` of every trained parameter, and ``new.NAME`` of every
        running statistic and, where the module has an optimizer, of every trained parameter, of the optimizer's own
        values (``optimizer.SLOT.NAME``, as in ``state_dict``) and of the number of the step (``graphc.step``). All
        these are inputs too, and so is the learning rate ``lr``; what is not given is as it is now. A loop that gives
        each ``NAME`` the last step's ``new.NAME`` trains. What a random layer such as dropout draws is an input
        ``random.K``, uniform numbers from [0, 1). Weights of more than a gibibyte go into a file ``PATH.data``.

        Raises:
            GraphcError: the module has no outputs (with ``train``: no loss), the package is missing, or the file
                cannot be written; nothing is left behind then.
        """
        weights = {**self.params, **self.constants, **self.state}
        given = Given(weights, self.slots, self.step, self.lr)
        return write_onnx(path, self._request, given, train=train)

    def profile(self, *, mode: str = "inference", repeats: int = 20, **inputs: Any) -> Profile:
        """Return how long every kernel takes on a batch, beside what this machine can do; needs ``profile=True``.

        ``mode`` is ``"inference"`` or ``"train"``, after which the module is as it was. The machine's peak is
        measured at the first call, which takes some seconds; a device's is not, and its profile has no roof. The
        result has a ``table()``, a ``trace(path)`` for chrome://tracing, and a ``plot(path)`` of the roofline.

        Raises:
            GraphcError: the module was compiled without ``profile=True``, or an input does not fit.
        """
        if mode not in ("inference", "train"):
            raise RangeError(f"profile: mode must be 'inference' or 'train', got {mode!r}")
        roof = {} if self.manifest["device"] else measure_machine(self.threads)
        return self.profile_on(roof, inputs, train=mode == "train", repeats=repeats)

    def _hand_over(self, other: RuntimeModule) -> None:
        """Another module of the net gets what this one has of its weights and, where it trains, of their training."""
        known = other.state_dict()
        other.load_state_dict({name: value for name, value in self.state_dict().items() if name in known})
        for name in other.constants:
            other.constants[name] = self.constants[name].astype(other.constants[name].dtype)


def compile(
    outputs: Mapping[str, Node] | Node,
    loss: Node | None = None,
    optimizer: Optimizer | None = None,
    *,
    metrics: Mapping[str, Node] | None = None,
    batch: int = 1,
    target: str = "c",
    seed: int = 0,
    dtype: str = "float32",
    precision: str = "fp32",
    name: str = "net",
    nan_guard: bool = False,
    poison: bool = False,
    profile: bool = False,
    isa: str | None = None,
    winograd: bool = True,
    fork_us: float = FORK_US,
    threads: int = 1,
    tune: bool = False,
    memory_budget: int | None = None,
    rewrites: Rewrites = ALL,
    keep_gradients: bool = True,
    build: BuildOptions | None = None,
    dump_dir: str | Path | None = None,
) -> Module:
    """Return the compiled module.

    ``outputs`` names what ``predict`` returns. With a loss the module also evaluates and trains;
    ``metrics`` are further scalars that a step reports. ``batch`` is the largest batch. ``dtype`` is what
    all floating-point tensors are computed in, ``"float32"`` or ``"float64"``, whatever the graph says; with
    ``"mixed"`` each keeps the dtype that the graph gives it, and the parameters that are trained and the state are
    float32. ``precision`` says what
    matrix products and convolutions round their operands to on a device: ``"tf32"`` (11 significant bits) and
    ``"bf16"`` (8) are multiplied by tensor cores, ``"fp32"`` rounds nothing; sums, weights and everything else stay
    in float32. ``nan_guard=True`` names the
    kernel that first writes a NaN or Inf. ``poison=True`` fills the arena with NaNs when a call begins, and every
    buffer again after the last kernel that uses it: results are the same, unless a kernel reads what is not alive.
    ``profile=True`` lets the code note how long every kernel takes, for ``module.profile``.
    ``isa`` names the instruction set that the code is laid out for (``graphc.isa``), by default that of the build's
    flags; ``winograd=False`` forbids convolutions that round more than the direct sum (``graphc.ops.winograd``).
    ``fork_us`` is what waking threads costs, in microseconds: a kernel with less work runs on one thread.
    ``threads`` is what ``module.threads`` is at first. ``tune=True`` measures the variants of every distinct
    convolution and matrix product on this machine, with so many threads, and takes one that is at least 3 % faster
    than the cost model's choice (``module.manifest["tuned"]`` tells which); for a device, tiles of its products. That
    takes seconds to minutes; winners are kept in the build cache for each processor or device, compiler and number of
    threads, and not measured again. Values
    differ by rounding from those of the module that is not tuned. ``memory_budget`` is how many bytes the arena of
    a training step may have at the largest batch: parts of the forward pass run again in the backward pass, as few
    operations as make it fit, with the same bits as without. ``rewrites`` says what else may be done to save memory
    (``graphc.Rewrites``). ``keep_gradients=False`` updates every parameter of 4096 elements or more as soon as its
    gradient is known, in the product that computes it where there is one: no block holds these gradients, which saves
    about as many bytes as parameters have, with the same bits. Such a module has no ``backward`` and no large
    gradients in ``grads``, and a step that ``nan_guard`` stops has updated some parameters already. ``dump_dir``
    receives every intermediate result as text.

    Raises:
        GraphcError: whatever is wrong with the graph, the names or the build.
    """
    options = build or BuildOptions()
    request = replace(
        _request(outputs, loss, optimizer, metrics or {}, batch, target, dtype, name, seed),
        isa=SIMT if target in DEVICES else isa_named(isa or isa_of(target_macros(options))),
        winograd=bool(winograd),
        fork_us=_checked_fork(fork_us),
        memory_budget=_checked_budget(memory_budget, loss),
        rewrites=rewrites,
        target="cuda" if target in DEVICES else "c",
        precision=_checked_precision(precision, target, dtype),
        keep_gradients=_checked_gradients(keep_gradients, optimizer),
    )
    _check_threads(threads)
    extras = _Extras(nan_guard, poison, profile)
    cache, settings, tuner = Cache(options.cache_root()), [str(extras)], None
    if tune:
        store = Store(cache, _machine(request, options, threads, target))
        settings.append(f"tuned for {store.digest}")
        tuner = Tuner(request, options, threads, store, target)
    if dump_dir is not None:
        artifact = _make_artifact(request, extras, tuner, _dumper(Path(dump_dir)))
    else:
        key = fingerprint(request, settings)
        artifact = cached_artifact(cache, key, lambda: _make_artifact(request, extras, tuner))
    request = replace(request, choose=_chooser(artifact.manifest.get("tuned", {})), apart=nan_guard)
    sources = {**artifact.sources, **(emulator() if target == "cuda-emulated" else {})}
    library = build_extension(request.name, sources, artifact.cdef, options, target)
    module = Module(Translation(request, artifact), library, seed)
    module.threads = threads
    return module


def translate(
    outputs: Mapping[str, Node] | Node,
    loss: Node | None = None,
    optimizer: Optimizer | None = None,
    *,
    metrics: Mapping[str, Node] | None = None,
    batch: int = 1,
    seed: int = 0,
    name: str = "net",
) -> Translation:
    """Return what ``compile`` would build, without building it: for whoever only reads it.

    Raises:
        GraphcError: whatever is wrong with the graph or the names.
    """
    options = BuildOptions()
    request = replace(
        _request(outputs, loss, optimizer, metrics or {}, batch, "c", "float32", name, seed),
        isa=isa_named(isa_of(target_macros(options))),
    )
    extras = _Extras(nan_guard=False, poison=False, profile=False)
    key = fingerprint(request, [str(extras)])
    artifact = cached_artifact(Cache(options.cache_root()), key, lambda: _make_artifact(request, extras))
    return Translation(request, artifact)


def _machine(request: Request, options: BuildOptions, threads: int, target: str) -> dict[str, Any]:
    """Return what the winners of tuning hold for."""
    if target in DEVICES:
        return device_machine(options, target, device_name(options, target))
    return machine_of(options, request.isa.name, threads, request.fork_us)


def _chooser(tuned: Mapping[str, Any]) -> Choose:
    """Return what answers with the variants of a manifest, and with the cost model's for all other tasks."""
    known = {task: Variant.from_dict(chosen) or Variant() for task, chosen in tuned.items()}
    return (lambda task: known.get(str(task), Variant())) if known else cost_model


def _checked_precision(precision: str, target: str, dtype: str) -> Precision:
    found = next((p for p in PRECISIONS if p == precision), None)
    if found is None:
        raise RangeError(f"compile: precision must be {', '.join(map(repr, PRECISIONS))}, got {precision!r}")
    if found != "fp32" and target not in DEVICES:
        raise GraphError(
            f"compile: precision {found!r} is for targets 'cuda' and 'cuda-emulated', not {target!r}"
        )
    if found != "fp32" and dtype != "float32":
        raise GraphError(f"compile: precision {found!r} rounds float32, not {dtype}")
    return found


def _check_threads(count: int) -> None:
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= 1024:
        raise RangeError(f"threads must be an int in 1..1024, got {count!r}")


def _checked_budget(budget: int | None, loss: Node | None) -> int | None:
    if budget is None:
        return None
    if loss is None:
        raise GraphError("compile: memory_budget is for training, and there is no loss")
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise RangeError(f"compile: memory_budget must be a number of bytes of at least 1, got {budget!r}")
    return budget


def _checked_gradients(keep: bool, optimizer: Optimizer | None) -> bool:
    if not isinstance(keep, bool):
        raise RangeError(f"compile: keep_gradients must be True or False, got {keep!r}")
    if not keep and optimizer is None:
        raise GraphError("compile: keep_gradients=False needs an optimizer, which uses the gradients up")
    return keep


def _checked_fork(value: float) -> float:
    if not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise RangeError(f"fork_us must be a finite number of microseconds of at least 0, got {value!r}")
    return float(value)


@dataclass(frozen=True)
class _Extras:
    """What the emitted code does beside its work."""

    nan_guard: bool
    poison: bool
    profile: bool


def _make_artifact(
    request: Request, extras: _Extras, tuner: Tuner | None = None, dump: Dump | None = None
) -> Artifact:
    """Measure kernels where there is a tuner, run the pipeline and print the C."""
    tuned = {task: v.to_dict() for task, v in tuner.choices().items()} if tuner is not None else {}
    request = replace(request, choose=_chooser(tuned))
    # One kernel for every node: a fused kernel could not tell which of its nodes is at fault.
    compiled = compile_program(replace(request, apart=extras.nan_guard), dump)
    optimizer = request.optimizer if request.loss is not None else None
    emitted = (
        emit_cuda(
            compiled.program,
            optimizer,
            precision=request.precision,
            nan_guard=extras.nan_guard,
            poison=compiled.plans if extras.poison else None,
            profile=extras.profile,
        )
        if request.target == "cuda"
        else emit_c(
            compiled.program,
            optimizer,
            nan_guard=extras.nan_guard,
            poison=compiled.plans if extras.poison else None,
            profile=extras.profile,
        )
    )
    if dump is not None:
        for file, text in emitted.sources.items():
            dump(f"99-{file}", partial(str, text))
    manifest = make_manifest(compiled.program, emitted, optimizer)
    if tuner is not None:
        manifest["tuned"] = tuned
    plans = {name: plan.to_dict() for name, plan in compiled.plans.items()}
    return Artifact(manifest, emitted.sources, emitted.cdef, plans)


def _initial_values(
    request: Request, artifact: Artifact, seed: int
) -> dict[str, np.ndarray | Callable[[], np.ndarray]]:
    """Return the first values of parameters, constants and state; those of many random numbers as functions.

    What the user gave as an array is checked now, so that a wrong shape is reported by ``compile``.
    """
    shapes = {s["name"]: tuple(s["shape"]) for kind in ("params", "states") for s in artifact.manifest[kind]}
    initial = initialisers_of(request)
    values: dict[str, np.ndarray | Callable[[], np.ndarray]] = {}
    for name, shape in shapes.items():
        draw = partial(_draw, initial[name], shape, seed, name)
        later = math.prod(shape) >= _DRAWN_LATER and not isinstance(initial[name], ArrayInitialiser)
        values[name] = draw if later else draw()
    return values


def _draw(initial: Initialiser, shape: tuple[int, ...], seed: int, name: str) -> np.ndarray:
    return initial(shape, stream(seed, name))


def _request(
    outputs: Mapping[str, Node] | Node, loss: Node | None, optimizer: Optimizer | None, metrics: Mapping[str, Node],
    batch: int, target: str, dtype: str, name: str, seed: int,
) -> Request:  # fmt: skip
    if not isinstance(outputs, (Node, Mapping)):
        raise GraphError(
            f"compile: outputs must be a tensor or a dict of tensors, got {type(outputs).__name__}"
        )
    named = {"out": outputs} if isinstance(outputs, Node) else dict(outputs)
    for key, node in [*named.items(), *metrics.items(), *([("loss", loss)] if loss is not None else [])]:
        if not isinstance(node, Node):
            raise GraphError(f"compile: {key!r} must be a tensor, got {type(node).__name__}")
    if not named and loss is None:
        raise GraphError("compile: needs at least one output or a loss")
    if target not in ("c", *DEVICES):
        raise RangeError(f"compile: target {target!r} is unknown; there are 'c', 'cuda' and 'cuda-emulated'")
    _checked_batch(batch)
    mixed = dtype == "mixed"
    if not mixed and dtype not in ("float32", "float64"):
        raise RangeError(f"compile: dtype must be 'float32', 'float64' or 'mixed', got {dtype!r}")
    _checked_name(name)
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise GraphError(f"compile: optimizer must be one such as gc.SGD(...), got {optimizer!r}")
    if optimizer is not None and loss is None:
        raise GraphError("compile: an optimizer needs a loss")
    if not isinstance(seed, int):
        raise RangeError(f"compile: seed must be an int, got {seed!r}")
    kind = check_dtype("float32" if mixed else dtype)
    return Request(name, named, loss, dict(metrics), optimizer, batch, kind, mixed=mixed)


def _checked_batch(batch: int) -> int:
    if not isinstance(batch, int) or isinstance(batch, bool) or not 1 <= batch <= 2**20:
        raise RangeError(f"compile: batch must be an int in 1..{2**20}, got {batch!r}")
    return batch


def _checked_dtype(dtype: str) -> DType:
    if check_dtype(dtype) not in ("float32", "float64"):
        raise RangeError(f"dtype must be 'float32' or 'float64', got {dtype!r}")
    return check_dtype(dtype)


def _checked_name(name: str) -> str:
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]{0,40}", name):
        shown = name if len(str(name)) <= 80 else f"{str(name)[:77]}..."
        raise UnknownNameError(f"compile: name {shown!r} must be a short lower-case identifier")
    if name in ("f", "r", "w", "x"):
        macro = f"{name.upper()}_OK"
        raise UnknownNameError(
            f"compile: name {name!r} would give the macro {macro} of unistd.h a second meaning"
        )
    return name


def _dumper(folder: Path) -> Dump:
    folder.mkdir(parents=True, exist_ok=True)

    def dump(step: str, text: Callable[[], str]) -> None:
        suffix = "" if "." in step else ".txt"
        (folder / f"{step}{suffix}").write_text(text())

    return dump


def dump_manifest(manifest: Mapping[str, Any]) -> str:
    """Return the manifest as JSON text."""
    return json.dumps(manifest, indent=1, sort_keys=True)
