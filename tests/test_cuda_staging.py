"""Between host and device: batches that are copied ahead, memory that is not there, calls that fail on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphc as gc
from graphc.build import build_extension
from graphc.emit.cuda import emulator
from graphc_runtime.data.dataset import Array, Dataset
from graphc_runtime.module import Module as RuntimeModule
from graphc_runtime.trainer import Trainer

TARGET = "cuda-emulated"  # these tests let its device fail
QUICKLY_BUILT = gc.BuildOptions(optimisation=("-O0",))


def tiny(target: str = TARGET, **options: Any) -> gc.Module:
    """Return a classifier with running statistics, dropout and momentum, for batches up to 4."""
    x, y = gc.input("x", ("N", 6)), gc.input("y", ("N",), dtype="int32")
    logits = gc.nn.linear(gc.nn.dropout(gc.relu(gc.nn.batch_norm(gc.nn.linear(x, 8))), 0.25), 3)
    return gc.compile(
        {"logits": logits}, gc.losses.cross_entropy(logits, y), gc.SGD(lr=0.1, momentum=0.9),
        metrics={"accuracy": gc.metrics.accuracy(logits, y)}, batch=4, name="tiny", target=target,
        build=QUICKLY_BUILT, **options,
    )  # fmt: skip


def batches(count: int, seed: int = 0) -> list[dict[str, Array]]:
    """Return batches of 4, 3, 2, 1, 4 examples and so on."""
    rng, sizes = np.random.default_rng(seed), [4 - k % 4 for k in range(count)]
    return [
        {"x": rng.standard_normal((n, 6)).astype("f"), "y": rng.integers(0, 3, n).astype("i4")} for n in sizes
    ]


def bits(module: RuntimeModule) -> dict[str, bytes]:
    """Return everything that the next step depends on."""
    return {name: array.tobytes() for name, array in module.state_dict().items()}


# ---- staging --------------------------------------------------------------------------------------------------


def test_a_staged_batch_gives_the_bits_of_one_that_is_handed_over() -> None:
    """Losses, metrics, logits and weights, with batches of all sizes; the arrays are overwritten at once."""
    staged, plain, given = tiny(), tiny(), batches(6)

    def stage(entry: str, inputs: dict[str, Array]) -> None:
        passing = {name: array.copy() for name, array in inputs.items()}
        staged.stage(entry, **passing)
        for array in passing.values():
            array[...] = 0

    stage("train_step", given[0])
    for number, batch in enumerate(given):
        if number + 1 < len(given):
            stage("train_step", given[number + 1])
        assert staged.staged == ("train_step",)
        got, want = staged.train_step(lr=0.2), plain.train_step(**batch, lr=0.2)
        assert (float(got), got.metrics) == (float(want), want.metrics)
    assert staged.staged == () and bits(staged) == bits(plain)
    stage("evaluate", given[1])
    stage("predict", {"x": given[2]["x"]})
    assert staged.staged == ("predict", "evaluate")
    # What is given is taken, and what is staged stays for later.
    np.testing.assert_array_equal(
        staged.predict(x=given[0]["x"])["logits"], plain.predict(x=given[0]["x"])["logits"]
    )
    out = {"logits": np.empty((2, 3), "f")}
    staged.predict(out=out)
    np.testing.assert_array_equal(out["logits"], plain.predict(x=given[2]["x"])["logits"])
    assert float(staged.evaluate()) == float(plain.evaluate(**given[1])) and staged.staged == ()


def test_what_cannot_be_staged_is_refused_and_changes_nothing() -> None:
    """Nothing there, no room, inputs that do not fit, another batch, another target, another entry point."""
    module, (first, second, third) = tiny(), batches(3)
    with pytest.raises(
        gc.GraphcError, match=r"train_step: expected the inputs x, y; none is given, and no batch"
    ):
        module.train_step()
    with pytest.raises(gc.GraphcError, match=r"expected the inputs x, y; missing y"):
        module.stage(x=first["x"])
    with pytest.raises(gc.GraphcError, match=r"y\[0\] is 9, which is not in 0..2"):
        module.stage(x=first["x"], y=np.full(4, 9, "i4"))
    with pytest.raises(
        gc.GraphcError, match="stage: expected 'train_step', 'evaluate' or 'predict', got 'fold'"
    ):
        module.stage("fold")
    assert module.staged == ()
    module.stage(**first)
    module.stage(**second)
    with pytest.raises(gc.GraphcError, match="two batches are staged already; a call has to take one first"):
        module.stage(**third)
    code = module.lib.tiny_train_step(module._context, 3, *[module.ffi.NULL, 0] * 2, *outputs(module), 0.1, 1)
    message = module.ffi.string(module.lib.tiny_message(module._context)).decode()
    assert (code, message) == (1, "the staged batch is 4, and 3 is asked for")
    plain = tiny()
    assert [float(module.train_step()) for _ in range(2)] == [
        float(plain.train_step(**b)) for b in (first, second)
    ]
    module.stage(**third)
    module.unstage()
    assert module.staged == ()
    code = module.lib.tiny_train_step(module._context, 2, *[module.ffi.NULL, 0] * 2, *outputs(module), 0.1, 1)
    message = module.ffi.string(module.lib.tiny_message(module._context)).decode()
    assert (code, message) == (3, "no inputs are given, and no batch is staged for train_step")
    host = tiny("c")
    assert not host.stages and host.staged == ()
    with pytest.raises(gc.GraphcError, match="stage: module 'tiny' is compiled for a processor"):
        host.stage(**first)
    with pytest.raises(gc.GraphcError, match="train_step: expected the inputs x, y; missing x, y"):
        host.train_step()


def outputs(module: gc.Module) -> list[Any]:
    """Return C's arguments for loss and metric."""
    return [module.ffi.new("float[1]"), 4, module.ffi.new("float[1]"), 4]


@pytest.mark.parametrize(
    ("variable", "number"),
    [*(("GC_SIMT_FAIL_AFTER", n) for n in (1, 2, 3)), *(("GC_SIMT_FAIL_COPY", n) for n in (1, 2))],
)
def test_a_batch_that_fails_to_be_staged_leaves_all_as_it_was(
    variable: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream, the memory of the host, that of the device, either copy; then staging goes on as if nothing was."""
    module, plain, (first, second) = tiny(), tiny(), batches(2)
    losses = [float(plain.train_step(**batch)) for batch in (first, second)]
    before = bits(module)
    monkeypatch.setenv(variable, str(number))
    with pytest.raises(gc.errors.DeviceError, match=r"train_step: the device says: .* \(cudaError\w+\)"):
        module.stage(**second)
    monkeypatch.delenv(variable)
    assert module.staged == () and bits(module) == before
    module.stage(**first)
    module.stage(**second)
    assert [float(module.train_step()) for _ in range(2)] == losses


def test_a_wait_that_is_missing_is_seen_by_the_emulator() -> None:
    """With late copies the loss is the same, and NaN once the line is gone that makes the one stream wait."""
    losses, built = [], tiny()
    artifact = built._translation.artifact
    wait = "status = cudaStreamWaitEvent(context->stream, slot->copied, 0);"
    (batch,) = batches(1)
    options = gc.BuildOptions(optimisation=("-O0",), extra_flags=("-DGC_SIMT_DEBUG",))
    for text in (wait, ""):
        sources = {**built.source, **emulator()}
        assert sources["tiny.cu"].count(wait) == 3
        sources["tiny.cu"] = sources["tiny.cu"].replace(wait, text)
        library = build_extension("tiny", sources, artifact.cdef, options, TARGET)
        module = RuntimeModule(built.manifest, library, {k: v.copy() for k, v in built.params.items()})
        module.stage(**batch)
        losses.append(float(module.train_step()))
    assert losses[0] == float(built.train_step(**batch)) and np.isnan(losses[1])


def test_inputs_may_be_called_as_the_code_calls_its_own() -> None:
    """They get numbers in C, and keep their names in Python."""
    names = ["slot", "staged", "status", "run", "kind", "stream", "waited", "replay", "shares", "steps"]
    names += ["launch_predict"]
    total = gc.input(names[0], ("N", 2))
    for name in names[1:]:
        total = total + gc.input(name, ("N", 2))
    module = gc.compile({"sum": total}, batch=2, name="named", target=TARGET, build=QUICKLY_BUILT)
    given = {name: np.full((2, 2), k, "f") for k, name in enumerate(names)}
    np.testing.assert_array_equal(module.predict(**given)["sum"], np.full((2, 2), 55))
    module.stage("predict", **given)
    np.testing.assert_array_equal(module.predict()["sum"], np.full((2, 2), 55))


# ---- the trainer ----------------------------------------------------------------------------------------------


def data(count: int, seed: int = 5) -> Dataset:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((count, 6)).astype("f"), rng.integers(0, 3, count).astype("i4")
    return Dataset(x=x, y=y)


def fit(module: gc.Module, train: Dataset | None = None, **options: Any) -> list[tuple[float, ...]]:
    """Train for two epochs of 3 batches and a smaller one; return losses and accuracies."""
    options = {"epochs": 2, "lr": 0.1, "seed": 3, "progress": False, "validation": data(6, 6)} | options
    history = Trainer(module, data(14) if train is None else train, **options).fit()
    return [(r.loss, r.validation_loss or 0.0, r.metrics["accuracy"]) for r in history]


@pytest.fixture
def unstaged(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return what makes the trainer hand arrays over."""
    return lambda: monkeypatch.setattr(RuntimeModule, "stages", property(lambda self: False))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which staged batches add their entry points."""
    found: list[str] = []
    original = RuntimeModule.stage

    def stage(self: RuntimeModule, entry: str = "train_step", /, **inputs: Any) -> None:
        original(self, entry, **inputs)
        found.append(entry)

    monkeypatch.setattr(RuntimeModule, "stage", stage)
    return found


def test_the_trainer_stages_every_batch_and_changes_no_bit(
    monkeypatch: pytest.MonkeyPatch, unstaged: Callable[[], None]
) -> None:
    """Records and weights of two epochs with validation, the last batches of which are smaller."""
    staged, plain, seen = tiny(), tiny(), counted(monkeypatch)
    got = fit(staged)
    assert seen == 2 * (["train_step"] * 4 + ["evaluate"] * 2) and staged.staged == ()
    unstaged()
    assert fit(plain) == got and bits(plain) == bits(staged) and len(seen) == 12


class Stop(Exception):  # noqa: N818 (it is no error)
    """A crash at a chosen batch."""


@pytest.mark.parametrize("at", [1, 2, 4])
@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
def test_a_run_that_is_stopped_goes_on_with_the_batch_it_was_at(
    at: int, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    unstaged: Callable[[], None],
) -> None:  # fmt: skip
    """None is lost or used twice, in the module that was stopped and in one that resumes from its checkpoint."""
    whole, stopped = tiny(), tiny()
    expected = fit(whole)
    original = RuntimeModule.train_step

    def step(self: RuntimeModule, **given: Any) -> Any:
        if self.step == at:
            raise error
        return original(self, **given)

    options: dict[str, Any] = {"checkpoint": tmp_path / "run.safetensors", "checkpoint_every": 1}
    with monkeypatch.context() as patch:
        patch.setattr(RuntimeModule, "train_step", step)
        with pytest.raises(error):
            fit(stopped, **options)
    assert stopped.step == at and stopped.staged == ()
    assert fit(stopped, **options) == expected and bits(stopped) == bits(whole)


class Failing:
    """A transform that fails at a chosen batch, or makes the batch one that is refused."""

    def __init__(self, at: int, raises: bool):
        """Count batches from 0."""
        self.left, self.raises = at, raises

    def __call__(self, batch: Array, out: Array | None, /) -> Array:
        """Return the batch as it is, but for one."""
        self.left -= 1
        if self.left != -1:
            return batch
        if self.raises:
            raise Stop
        return batch + 7


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_batch_that_cannot_be_used_is_an_error_in_its_turn(
    at: int, raises: bool, unstaged: Callable[[], None]
) -> None:
    """As many steps have been made as without staging, though the batch was read ahead of them."""

    def run() -> tuple[str, dict[str, bytes]]:
        module, whole = tiny(), data(14)
        train = Dataset(transform={"y": Failing(at, raises)}, **whole.arrays)
        with pytest.raises(Stop if raises else gc.GraphcError) as found:
            fit(module, train)
        assert module.step == at and module.staged == ()
        return str(found.value), bits(module)

    staged = run()
    unstaged()
    assert run() == staged


def test_a_device_without_room_for_staging_trains_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second slot is refused: the batch in the first is used, and the others are handed over."""
    expected, module, seen = fit(tiny()), tiny(), counted(monkeypatch)
    original = RuntimeModule.stage

    def stage(self: RuntimeModule, entry: str = "train_step", /, **inputs: Any) -> None:
        if seen:
            monkeypatch.setenv("GC_SIMT_FAIL_AFTER", "1")
        try:
            original(self, entry, **inputs)
        finally:
            monkeypatch.delenv("GC_SIMT_FAIL_AFTER", raising=False)

    monkeypatch.setattr(RuntimeModule, "stage", stage)
    assert fit(module) == expected
    assert seen.count("train_step") == 2  # one an epoch


def test_batches_that_the_caller_has_staged_are_left_alone() -> None:
    """A run stages nothing then."""
    expected, module, (batch,) = fit(tiny()), tiny(), batches(1)
    module.stage("predict", x=batch["x"])
    assert fit(module) == expected and module.staged == ("predict",)
    np.testing.assert_array_equal(module.predict()["logits"], module.predict(x=batch["x"])["logits"])


# ---- memory ---------------------------------------------------------------------------------------------------


def test_a_module_that_is_too_large_is_refused_before_anything_is_allocated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the bytes of every block, those that are free, and what helps; managed memory counts."""
    sizes, arena = tiny().manifest["sizes"], tiny().manifest["sizes"]["arena_bytes"]
    needed = {name: 4 * sizes[name] for name in ("params", "grads", "slots", "state", "folded")}
    listed = ", ".join(f"{name} {size:,}" for name, size in {**needed, "arena": arena}.items())
    total = sum(needed.values()) + arena
    monkeypatch.setenv("GC_SIMT_FAIL_AFTER", "1")  # an allocation would be seen
    monkeypatch.setenv("GC_SIMT_DEVICE_BYTES", str(total - 1))
    with pytest.raises(gc.errors.DeviceError) as found:
        tiny()
    assert str(found.value) == (
        f"module 'tiny': {total:,} bytes are needed ({listed}), and {total - 1:,} of the device's {total - 1:,} are "
        "free; a smaller batch makes the arena smaller, memory_budget= that of training, "
        "keep_gradients=False leaves out large gradients"
    )
    monkeypatch.setenv("GC_SIMT_DEVICE_BYTES", str(total))
    with pytest.raises(gc.errors.DeviceError, match=r"the device has no [\d,]+ bytes left"):
        tiny()
    monkeypatch.delenv("GC_SIMT_FAIL_AFTER")
    first = tiny()
    with pytest.raises(gc.errors.DeviceError, match=rf"and 0 of the device's {total:,} are free"):
        tiny()
    del first
    assert np.isfinite(tiny().train_step(**batches(1)[0]))


def test_a_context_that_cannot_be_made_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream is what is made behind six blocks."""
    tiny()
    monkeypatch.setenv("GC_SIMT_FAIL_AFTER", "7")
    with pytest.raises(
        gc.errors.DeviceError,
        match=r"'tiny': the context could not be made: the device says: out of memory \(cuda",
    ):
        tiny()


# ---- failing calls --------------------------------------------------------------------------------------------


def failures() -> Iterator[tuple[str, bool, bool]]:
    """Yield the variable that lets something fail, whether a step was made before, and whether batches are staged."""
    for variable in ("GC_SIMT_FAIL_AFTER", "GC_SIMT_FAIL_COPY"):
        for warm in (False, True):
            for staged in (False, True):
                yield variable, warm, staged


def attempt(
    module: gc.Module, inputs: dict[str, Array], variable: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> float | None:
    """Return the loss of a step in which something may fail; None where it does."""
    with monkeypatch.context() as patch:
        patch.setenv(variable, str(number))
        try:
            return float(module.train_step(**inputs))
        except gc.errors.DeviceError as error:
            if "train_step: the device says: " not in str(error):
                raise
            return None


@pytest.mark.parametrize(("variable", "warm", "staged"), [*failures()])
def test_a_step_that_fails_leaves_everything_as_it_was(
    variable: str, warm: bool, staged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever allocation, launch or copy fails; then the step is made with the bits of one that never failed."""
    given, plain, module = batches(3), tiny(), tiny()
    for batch in given[: 1 + warm]:
        loss = float(plain.train_step(**batch))
    if warm:
        module.train_step(**given[0])
    before, batch = bits(module), given[warm]
    if staged:
        module.stage(**batch)
    failed = 0
    while (got := attempt(module, {} if staged else batch, variable, failed + 1, monkeypatch)) is None:
        failed += 1
        assert bits(module) == before and module.staged == (("train_step",) if staged else ())
    # A first step allocates once, captures launches and copies, then replays; all copy what changes, x and y.
    captured = module.source["tiny.cu"].split("void launch_train_step(")[1].split("\n}")[0]
    copies = 3 + captured.count("cudaMemcpyAsync(") * (not warm)
    launches = 1 + (1 + captured.count("GC_LAUNCH(")) * (not warm)
    assert failed == copies if variable == "GC_SIMT_FAIL_COPY" else failed >= launches
    assert got == loss and bits(module) == bits(plain)
