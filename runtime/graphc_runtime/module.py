"""A compiled module: NumPy arrays in and out of generated C, parameters as views of one flat block."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from graphc_runtime.arrays import Arrays
from graphc_runtime.arrays import aligned as host_aligned
from graphc_runtime.checkpoint import check_fit, load_state, save_state
from graphc_runtime.device import BLOCKS, Device
from graphc_runtime.entry import Entry, extent_at
from graphc_runtime.errors import (
    BuildError,
    DeviceError,
    GraphcError,
    NumericalError,
    RangeError,
    UnknownNameError,
)
from graphc_runtime.loader import load_extension
from graphc_runtime.profile import KernelTime, Profile

ABI = 1
_BAD_DEVICE = 7  # the error code


class StepResult(float):
    """The loss of a step or of an evaluation; ``metrics`` holds what else was asked for."""

    metrics: dict[str, float]

    def __new__(cls, loss: float, metrics: Mapping[str, float] | None = None) -> StepResult:
        """Make a float that carries metrics."""
        result = super().__new__(cls, loss)
        result.metrics = dict(metrics or {})
        return result


class Module:
    """A net as compiled C: trains and predicts on NumPy arrays.

    Not safe for use from two threads at once: a thread needs a module of its own.
    """

    def __init__(
        self,
        manifest: Mapping[str, Any],
        library: Path,
        initial: Mapping[str, np.ndarray | Callable[[], np.ndarray]],
        seed: int = 0,
    ):
        """Load a built extension and set the parameters, those given as functions when they are first needed.

        Raises:
            BuildError: the extension cannot be loaded or has another ABI.
        """
        self.manifest = dict(manifest)
        self.name: str = manifest["name"]
        self.batch: int = manifest["batch"]
        self.fingerprint: str = manifest["fingerprint"]
        self.dtype = np.dtype(manifest["dtype"])
        self.library = library
        self.ffi, self.lib = load_extension(library)
        abi = self._function("abi")()
        if abi != ABI or manifest["abi"] != ABI:
            raise BuildError(
                f"module {self.name!r} has ABI {abi}, this runtime needs {ABI}; compile it again"
            )
        sizes = manifest["sizes"]
        self._device = Device(self.ffi, self.lib, self.name) if manifest.get("device") else None
        self._blocks = self._make_blocks(sizes)
        self._context, self._seed, self._threads = self._make_context(seed), seed, 1
        self._stale = self._stale_frozen = self._drawn_later = True
        fixed = [s for s in manifest["params"] if s.get("constant")]
        learned = [s for s in manifest["params"] if not s.get("constant")]
        self.params = Arrays("parameter", self._blocks["params"], learned, self._mark_stale)
        self.constants = Arrays("constant", self._blocks["params"], fixed, self._mark_stale)
        trainable = [s for s in manifest["params"] if s["trainable"]]
        kept = [s for s in trainable if s["gradient"]]
        self.grads = Arrays("gradient", self._blocks["grads"], kept)
        self._uses_up = len(kept) < len(trainable)
        self.state = Arrays("running statistic", self._blocks["state"], manifest["states"], self._mark_stale)
        self.slots = {
            slot: Arrays(
                slot, self._blocks["slots"][k * sizes["trainable"] : (k + 1) * sizes["trainable"]], trainable
            )
            for k, slot in enumerate(manifest["slots"])
        }
        self._entries = {
            e["name"]: Entry(e, self._function(e["name"]), self.batch, self.ffi, self._staging_of(e))
            for e in manifest["entries"]
        }
        for name, value in initial.items():
            target = next(
                t for t in (self.state, self.constants, self.params) if name in t or t is self.params
            )
            if callable(value):
                target.draw_later(name, value)
            else:
                kind = target[name].dtype if name in target else self.dtype
                target[name] = np.asarray(value).astype(kind)
        self.lr: float | None = manifest.get("lr")

    def _function(self, name: str) -> Any:
        return getattr(self.lib, f"{self.name}_{name}")

    def _staging_of(self, entry: Mapping[str, Any]) -> tuple[Any, Any] | None:
        if self._device is None or not entry["inputs"]:
            return None
        return self._function(f"stage_{entry['name']}"), self._function(f"staged_{entry['name']}")

    def _make_blocks(self, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
        if self._device is not None:
            self._device.check_room(self.manifest)
        aligned = self._device.aligned if self._device is not None else host_aligned
        blocks = {
            name: aligned(sizes[name], self.dtype)
            for name in BLOCKS
            if sizes[name] or name != "frozen"  # few modules have one
        }
        arena = sizes["arena_bytes"]
        blocks["arena"] = (
            self._device.arena(arena) if self._device is not None else host_aligned(arena, "uint8")
        )
        return blocks

    def _make_context(self, seed: int) -> Any:
        ffi = self.ffi
        size = self._function("context_bytes")()
        self._context_memory = host_aligned(size, "uint8")
        context = ffi.cast(f"{self.name}_context *", self._context_memory.ctypes.data)
        memory = ffi.new(f"{self.name}_memory *")
        for name, block in self._blocks.items():
            setattr(memory, name, ffi.cast("void *", block.ctypes.data if block.size else 0))
            setattr(memory, f"{name}_bytes", block.nbytes)
        code = self._function("init")(context, size, memory, seed % 2**64)
        if code:
            why = ffi.string(self._function("message")(context)).decode(errors="replace")
            error = DeviceError if code == _BAD_DEVICE else BuildError
            raise error(f"module {self.name!r}: the context could not be made: {why or f'error code {code}'}")
        if self._device is not None:
            self._device.owns(self, context, self._context_memory)
        return context

    def _mark_stale(self) -> None:
        self._stale = self._stale_frozen = True

    @property
    def threads(self) -> int:
        """The number of OpenMP threads; results do not depend on it."""
        return self._threads

    @threads.setter
    def threads(self, count: int) -> None:
        if not isinstance(count, int) or not 1 <= count <= 1024:
            raise RangeError(f"threads must be an int in 1..1024, got {count!r}")
        self._threads = count
        self._function("set_threads")(self._context, count)

    @property
    def step(self) -> int:
        """How many training steps have been made; random layers depend on it."""
        return int(self._function("get_step")(self._context))

    @property
    def seed(self) -> int:
        """The seed of random layers."""
        return self._seed

    @property
    def input_types(self) -> dict[str, tuple[str, tuple[int | None, ...]]]:
        """The dtype and shape of every input; None stands for the batch."""
        found: dict[str, tuple[str, tuple[int | None, ...]]] = {}
        for entry in self._entries.values():
            for a in entry.inputs:
                found[a.name] = (a.dtype.name, tuple(e if isinstance(e, int) else None for e in a.extents))
        return found

    @property
    def source(self) -> dict[str, str]:
        """The generated C, by file name."""
        return dict(self.manifest["sources"])

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            raise GraphcError(f"module {self.name!r} has no {name}: it was compiled without a loss")
        return self._entries[name]

    def _call(
        self, entry: Entry, given: Mapping[str, Any], out: Mapping[str, np.ndarray] | None, *more: Any
    ) -> dict[str, np.ndarray]:
        if self._drawn_later:
            self._draw_first_values()
        code, arrays, outputs = entry.call(self._context, given, out, *more)
        if code:
            self._fail(entry, code, arrays)
        return outputs

    def _fail(self, entry: Entry, code: int, arrays: list[np.ndarray]) -> None:
        message = self.ffi.string(self._function("message")(self._context)).decode(errors="replace")
        if code == 5:
            call = entry.calls[self._function("fault")(self._context)]
            raise NumericalError(
                f"{entry.name}: a NaN or Inf first appears in {', '.join(call['nodes'])}, kernel {call['kernel']}, "
                f"at {', '.join(call['sources'])}{self._already_there(entry, arrays)}"
            )
        raise (DeviceError if code == _BAD_DEVICE else RangeError)(f"{entry.name}: {message}")

    def _already_there(self, entry: Entry, arrays: list[np.ndarray]) -> str:
        """Return which inputs and parameters were not finite to begin with, as the end of a message."""
        inputs = zip(
            (a.name for a in entry.inputs), arrays, strict=False
        )  # of a staged batch there are no arrays
        named = [(f"input {name!r}", array) for name, array in inputs]
        named += [(f"parameter {name!r}", array) for name, array in self.params.items()]
        found = [name for name, array in named if array.dtype.kind == "f" and not np.isfinite(array).all()]
        return f"; not finite before that: {', '.join(found[:8])}" if found else ""

    def _draw_first_values(self) -> None:
        self.params.draw()
        self.state.draw()
        self._drawn_later = False

    def _run_alone(self, name: str) -> None:
        if name in self._entries:
            code = self._entries[name].run_alone(self._context)
            if code:
                self._fail(self._entries[name], code, [])

    def _freeze(self) -> None:
        self._draw_first_values()
        self._run_alone("freeze")
        self._stale_frozen = False

    def _fold(self) -> None:
        if self._stale_frozen:
            self._freeze()
        self._run_alone("fold")
        self._stale = False

    def weight_blocks(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Return copies of those memory blocks that there are, by name, as a weights file has them."""
        if self._stale:
            self._fold()
        return {name: self._blocks[name].copy() for name in names if name in self._blocks}

    @property
    def stages(self) -> bool:
        """Whether ``stage`` can be used: the module is compiled for a device."""
        return self._device is not None

    @property
    def staged(self) -> tuple[str, ...]:
        """The entry points for which batches are staged."""
        return tuple(name for name, entry in self._entries.items() if entry.has_staged(self._context))

    def stage(self, entry: str = "train_step", /, **inputs: Any) -> None:
        """Begin to copy a batch to the device for a later call of ``train_step``, ``evaluate`` or ``predict``.

        That call is made without inputs. In between the device may compute other batches: the copy goes on beside
        that. The arrays can be changed at once. Two batches may be staged at a time; a call takes the oldest that was
        staged for it, and leaves it where it is if it fails. ``Trainer`` does this by itself.

        Raises:
            GraphcError: the target is no device, two batches are staged already, or an input does not fit.
            DeviceError: there is no memory for the copy; nothing has changed.
        """
        if self._device is None:
            raise GraphcError(
                f"stage: module {self.name!r} is compiled for a processor, which reads arrays where they lie"
            )
        if entry not in ("train_step", "evaluate", "predict"):
            raise UnknownNameError(f"stage: expected 'train_step', 'evaluate' or 'predict', got {entry!r}")
        found = self._entry(entry)
        code = found.stage(self._context, inputs)
        if code:
            self._fail(found, code, [])

    def unstage(self) -> None:
        """Forget the batches that are staged."""
        if self.staged:
            self._function("unstage")(self._context)

    def predict(self, *, out: Mapping[str, np.ndarray] | None = None, **inputs: Any) -> dict[str, np.ndarray]:
        """Return the outputs for a batch of 1 up to the compiled batch, in inference mode.

        ``out`` names arrays to write into instead of new ones.

        Raises:
            ShapeError, DTypeError, UnknownNameError, RangeError: an input does not fit.
        """
        entry = self._entry("predict")
        if self._stale:
            self._fold()
        return self._call(entry, inputs, out)

    def evaluate(self, **inputs: Any) -> StepResult:
        """Return loss and metrics of a batch in inference mode."""
        entry = self._entry("evaluate")
        if self._stale:
            self._fold()
        return self._result(self._call(entry, inputs, None))

    def train_step(self, *, lr: float | None = None, **inputs: Any) -> StepResult:
        """Run forward, backward and update on a batch; return the loss before the update, with metrics."""
        return self._train(inputs, self.lr if lr is None else lr, True)

    def backward(self, **inputs: Any) -> StepResult:
        """Compute loss and gradients (``module.grads``) of a batch in training mode; change nothing else.

        Raises:
            GraphcError: the module was compiled with ``keep_gradients=False``.
        """
        if self._uses_up:
            raise GraphcError(
                f"backward: module {self.name!r} was compiled with keep_gradients=False, which updates parameters "
                "while their gradients are computed; compile it with keep_gradients=True to read them"
            )
        return self._train(inputs, 0.0, False)

    def profile_on(
        self,
        machine: Mapping[str, float],
        inputs: Mapping[str, Any],
        *,
        train: bool = False,
        repeats: int = 20,
    ) -> Profile:
        """Return the time of every kernel; see ``graphc.Module.profile``. ``machine`` is what it is compared with.

        Raises:
            GraphcError: the module was compiled without ``profile=True``.
        """
        if not self.manifest.get("profiled"):
            raise GraphcError(f"profile: module {self.name!r} was compiled without profile=True")
        if not isinstance(repeats, int) or repeats < 1:
            raise RangeError(f"profile: repeats must be an int of at least 1, got {repeats!r}")
        entry = self._entry("train_step" if train else "predict")
        before = self.state_dict() if train else None
        laps = []
        for _ in range(repeats + 1):
            if train:
                self.train_step(**inputs, lr=0.0)
            else:
                self.predict(**inputs)
            noted = self._function("laps")(self._context)
            laps.append([noted[k] for k in range(entry.before_commit + train)])
        if before is not None:
            self.load_state_dict(before)
        seconds = np.median(np.array(laps[1:], np.float64), axis=0) * 1e-9  # the first call warms up
        batch = entry.batch_of(inputs)
        kernels = [
            KernelTime(
                k, call["kernel"], tuple(call["nodes"]), tuple(call["sources"]), float(seconds[k]),
                extent_at(call["flops"], batch), extent_at(call["bytes"], batch),
            ) for k, call in enumerate(entry.calls[: entry.before_commit])
        ]  # fmt: skip
        if train:
            kernels.append(KernelTime(len(kernels), "update", ("optimizer",), (), float(seconds[-1]), 0, 0))
        threads = self._threads if self._device is None else 0
        return Profile(self.name, entry.name, batch, threads, repeats, tuple(kernels), dict(machine))

    def _train(self, inputs: Mapping[str, Any], lr: float | None, commit: bool) -> StepResult:
        entry = self._entry("train_step")
        if commit and lr is None:
            raise GraphcError(f"module {self.name!r} was compiled without an optimizer")
        if commit and not (isinstance(lr, (int, float, np.number)) and 0 <= lr < float("inf")):
            raise RangeError(f"train_step: lr must be a finite number of at least 0, got {lr!r}")
        if self._stale_frozen:
            self._freeze()
        outputs = self._call(entry, inputs, None, float(lr or 0.0), int(commit))
        if commit:
            self._stale = True
        return self._result(outputs)

    def _result(self, outputs: Mapping[str, np.ndarray]) -> StepResult:
        metrics = {k: float(v) for k, v in outputs.items() if k != "loss"}
        return StepResult(float(outputs["loss"]), metrics)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return everything that the next step depends on, as copies under plain names."""
        tensors = {name: array.copy() for name, array in (*self.params.items(), *self.state.items())}
        for slot, arrays in self.slots.items():
            tensors |= {f"optimizer.{slot}.{name}": a.copy() for name, a in arrays.items()}
        tensors["graphc.step"] = np.array([self.step], dtype=np.uint64)
        tensors["graphc.seed"] = np.array([self._seed % 2**64], dtype=np.uint64)
        return tensors

    def load_state_dict(self, tensors: Mapping[str, np.ndarray], strict: bool = True) -> None:
        """Set weights, and whatever else of the training state is there.

        ``strict`` asks for every weight and statistic and refuses unknown names, but for PyTorch's
        ``num_batches_tracked``.

        Raises:
            CheckpointError: lists every missing, unexpected and wrongly shaped tensor; nothing is changed.
        """
        targets = {**dict.fromkeys(self.params, self.params), **dict.fromkeys(self.state, self.state)}
        optional = {
            f"optimizer.{slot}.{name}": (arrays, name)
            for slot, arrays in self.slots.items()
            for name in arrays
        }
        known = (*self.manifest["params"], *self.manifest["states"])
        shapes = {slot["name"]: tuple(slot["shape"]) for slot in known}
        required = {name: shapes[name] for name in targets}
        slots = {key: shapes[name] for key, (_, name) in optional.items()}
        check_fit(f"module {self.name!r}", tensors, required, slots, strict)
        for name, value in tensors.items():
            if name in targets:
                targets[name][name] = np.asarray(value, dtype=self.dtype)
            elif name in optional:
                optional[name][0][optional[name][1]] = np.asarray(value, dtype=self.dtype)
        if "graphc.step" in tensors:
            self._function("set_step")(self._context, int(np.asarray(tensors["graphc.step"]).reshape(-1)[0]))
        if "graphc.seed" in tensors:
            self._seed = int(np.asarray(tensors["graphc.seed"]).reshape(-1)[0])
            self._function("set_seed")(self._context, self._seed)

    def save(self, path: str | Path) -> None:
        """Write the whole training state as safetensors, atomically."""
        metadata = {"graphc.fingerprint": self.fingerprint, "graphc.module": self.name}
        save_state(Path(path), self.state_dict(), metadata)

    def load(self, path: str | Path, strict: bool = True) -> None:
        """Read weights (and the training state, where it is there) from a safetensors file.

        Raises:
            CheckpointError: the file is damaged or of another net; nothing is changed.
        """
        tensors, _ = load_state(Path(path))
        self.load_state_dict(tensors, strict)

    def __repr__(self) -> str:
        """Return one line."""
        learned = [s["shape"] for s in self.manifest["params"] if not s.get("constant")]
        count = sum(int(np.prod(shape, dtype=np.int64)) for shape in learned)
        return f"<Module {self.name!r}: {count:,} parameters, batch up to {self.batch}, {self.dtype}>"


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest beside a built module.

    Raises:
        BuildError: it cannot be read.
    """
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BuildError(f"cannot read the manifest {path}: {error}") from None
    return manifest
