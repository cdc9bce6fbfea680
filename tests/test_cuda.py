"""CUDA source, compiled for the emulated device: every registered operation, training, errors.

With GRAPHC_CUDA_TARGET=cuda in the environment, for the GPU of this machine, by nvcc.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers import LARGEST, draw, reference, uses_batch, weighted_sum

import graphc as gc
from graphc.cli.tasks import digits
from graphc.ops.leaves import Input
from graphc.ops.registry import REGISTRY, Sample

TARGET = os.environ.get("GRAPHC_CUDA_TARGET", "cuda-emulated")
SAMPLES = [(f"{name}-{k}", sample) for name, of in REGISTRY.items() for k, sample in enumerate(of())]
TOGETHER = 24  # samples in a module: a compiler starts once for all of them
GROUPS = [SAMPLES[k : k + TOGETHER] for k in range(0, len(SAMPLES), TOGETHER)]
FLAGS = gc.BuildOptions(optimisation=("-O1",))
QUICKLY_BUILT = gc.BuildOptions(optimisation=("-O0",))  # hundreds of kernels that run once
# float32 keeps 24 bits; sums of up to a few hundred terms of size one lose a few of them.
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}


class Case:
    """A sample among others in one module: its inputs, its value, and its gradients where it has them."""

    def __init__(self, number: int, name: str, sample: Sample, second: bool):
        """Build the graph, with second derivatives or without."""
        self.name, self.sample = name, sample
        self.inputs = [
            Input(f"s{number}_{k}", t.dtype, t.shape)(name=f"s{number}_{k}")
            for k, t in enumerate(sample.types)
        ]
        value = sample.build(*self.inputs)
        self.outputs = {f"s{number}_value": value}
        wrt = [i for i in self.inputs if i.type.is_float]
        if sample.smooth and value.type.is_float and wrt:
            grads = gc.grad(weighted_sum(value), wrt)
            self.outputs |= {f"s{number}_g{k}": g for k, g in enumerate(grads)}
            total = sum((weighted_sum(g) for g in grads[1:]), weighted_sum(grads[0]))
            again = gc.grad(total, wrt) if second else []
            self.outputs |= {f"s{number}_h{k}": h for k, h in enumerate(again)}

    def values(self, batch: int, dtype: str) -> dict[str, np.ndarray]:
        """Return values for the inputs, which the dtype can hold."""
        drawn = draw(self.sample, batch, seed=3)
        drawn = [v.astype(dtype).astype(np.float64) if v.dtype.kind == "f" else v for v in drawn]
        return {i.op.name: v for i, v in zip(self.inputs, drawn, strict=True)}  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("group", range(len(GROUPS)))
def test_every_operation_has_its_value_and_its_gradients(group: int, dtype: str) -> None:
    """Values, gradients and in float64 second derivatives are those of the float64 reference, at three batches."""
    cases = [Case(k, name, sample, dtype == "float64") for k, (name, sample) in enumerate(GROUPS[group])]
    outputs = {name: node for case in cases for name, node in case.outputs.items()}
    module = gc.compile(
        outputs, batch=LARGEST, dtype=dtype, target=TARGET, name=f"group{group}", build=QUICKLY_BUILT
    )
    for batch in (1, 3, LARGEST):
        drawn = [case.values(batch, dtype) for case in cases]
        given = {
            n: v.astype(module.input_types[n][0]) for values in drawn for n, v in values.items()
            if n in module.input_types
        }  # fmt: skip
        got = module.predict(**given)
        for case, values in zip(cases, drawn, strict=True):
            if batch > 1 and not uses_batch(case.sample.types):
                continue
            want = reference(case.outputs, case.inputs, list(values.values()), batch)
            for name in case.outputs:
                what = f"{case.name} {name} batch {batch}"
                if got[name].dtype.kind != "f":
                    np.testing.assert_array_equal(got[name], want[name], err_msg=what)
                    continue
                scale = max(1.0, float(np.abs(want[name][np.isfinite(want[name])]).max(initial=0.0)))
                np.testing.assert_allclose(
                    got[name].astype(np.float64), want[name], rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * scale,
                    err_msg=what,
                )  # fmt: skip


def lenet(target: str, batch: int, **options: object) -> gc.Module:
    """Return LeNet with momentum, weight decay and a metric."""
    x, y = gc.input("x", ("N", 1, 32, 32)), gc.input("y", ("N",), dtype="int32")
    logits = gc.models.lenet(x)
    return gc.compile(
        {"logits": logits}, gc.losses.cross_entropy(logits, y), gc.SGD(lr=0.05, momentum=0.9, weight_decay=5e-4),
        metrics={"accuracy": gc.metrics.accuracy(logits, y)}, batch=batch, name="lenet", target=target,
        **options,
    )  # type: ignore[arg-type]  # fmt: skip


def test_lenet_learns_the_digits_as_in_c() -> None:
    """Losses and accuracies of 25 steps on the digits, the last one a smaller batch; then its weights and logits."""
    task, order = digits(), np.random.default_rng(0).permutation(7000)
    device, host = lenet(TARGET, 16, build=FLAGS), lenet("c", 16)
    # The arrays of a data set's batches are its own, and used again.
    whole = [{k: v.copy() for k, v in b.items()} for b in task.train.batches(16, order[: 16 * 3])] * 8
    batches = [*whole, next(task.train.batches(5, order[-5:]))]
    losses = []
    for number, batch in enumerate(batches):
        got, want = device.train_step(**batch, lr=0.05), host.train_step(**batch, lr=0.05)
        losses.append(float(want))
        # Sums in another order, and what has been learned from them: the losses of 25 steps stay together.
        assert got == pytest.approx(float(want), rel=1e-4), number
        assert got.metrics == want.metrics
    assert len(losses) == 25 and losses[-2] < 0.92 * losses[0]
    for name in host.params:
        np.testing.assert_allclose(device.params[name], host.params[name], rtol=1e-3, atol=1e-5)
    images = batches[0]["x"]
    np.testing.assert_allclose(
        device.predict(x=images)["logits"], host.predict(x=images)["logits"], rtol=1e-3, atol=1e-4
    )
    assert device.step == 25


def test_a_step_that_is_not_committed_changes_nothing_but_gradients() -> None:
    """``backward`` and a step with another learning rate replay other launches than the step before."""
    device, host = lenet(TARGET, 4, build=FLAGS), lenet("c", 4)
    rng = np.random.default_rng(1)
    given = {"x": rng.standard_normal((4, 1, 32, 32)).astype("f"), "y": rng.integers(0, 10, 4).astype("i4")}
    for module in (device, host):
        module.train_step(**given)
    before = {name: np.array(value) for name, value in device.params.items()}
    assert float(device.backward(**given)) == pytest.approx(float(host.backward(**given)), rel=1e-5)
    for name, value in before.items():
        np.testing.assert_array_equal(device.params[name], value)
        np.testing.assert_allclose(device.grads[name], host.grads[name], rtol=1e-3, atol=1e-6)
    for lr in (0.5, 0.0):
        for module in (device, host):
            module.train_step(**given, lr=lr)
        for name in host.params:
            np.testing.assert_allclose(device.params[name], host.params[name], rtol=1e-3, atol=1e-5)


def test_threads_in_any_order_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random orders of threads, shared and device memory that is NaN until written: no barrier is missing."""
    rng = np.random.default_rng(2)
    given = {"x": rng.standard_normal((3, 2, 9, 9)).astype("f"), "y": rng.integers(0, 3, 3).astype("i4")}
    losses = []
    for flags in ((), ("-DGC_SIMT_DEBUG",)):
        for seed in ("1", "2") if flags else ("1",):
            monkeypatch.setenv("GC_SIMT_SEED", seed)
            module = small("cuda-emulated", build=gc.BuildOptions(optimisation=("-O1",), extra_flags=flags))
            losses.append([float(module.train_step(**given)) for _ in range(3)])
            losses[-1] += module.predict(x=given["x"])["logits"].ravel().tolist()
    assert losses[0] == losses[1] == losses[2] and np.isfinite(losses[0]).all()


def small(target: str, **options: object) -> gc.Module:
    """Return a net with a strided convolution, batch norm, both poolings, dropout, a long row's softmax, and Adam."""
    x, y = gc.input("x", ("N", 2, 9, 9)), gc.input("y", ("N",), dtype="int32")
    h = gc.relu(gc.nn.batch_norm(gc.nn.conv2d(x, 5, 3, stride=2, padding=1, bias=False)))
    h = gc.nn.avg_pool2d(gc.nn.max_pool2d(gc.nn.conv2d(h, 6, 3, padding=1, groups=1), 2, 1), 2)
    h = gc.nn.dropout(gc.nn.linear(gc.softmax(gc.nn.linear(gc.flatten(h), 70)), 40), 0.25)
    logits = gc.nn.linear(gc.tanh(h), 3)
    loss = gc.losses.cross_entropy(logits, y)
    return gc.compile(
        {"logits": logits}, loss, gc.Adam(lr=0.01), batch=3, name="small", target=target, **options
    )  # type: ignore[arg-type]


def test_dropout_statistics_and_adam_are_those_of_c() -> None:
    """The same random numbers, running statistics and corrections for bias; weights after five steps."""
    rng = np.random.default_rng(2)
    given = {"x": rng.standard_normal((3, 2, 9, 9)).astype("f"), "y": rng.integers(0, 3, 3).astype("i4")}
    device, host = small(TARGET, build=FLAGS), small("c")
    for _ in range(5):
        assert float(device.train_step(**given)) == pytest.approx(float(host.train_step(**given)), rel=1e-4)
    # Adam divides by the root of a mean of squares: where that is tiny, its steps follow the sign of rounding.
    for name in host.params:
        np.testing.assert_allclose(device.params[name], host.params[name], rtol=0, atol=2e-3)
    for name in host.state:
        np.testing.assert_allclose(device.state[name], host.state[name], rtol=1e-4, atol=1e-6)


def test_gradients_can_be_used_up_by_the_kernels_that_compute_them() -> None:
    """The optimizer's rule in a product's epilogue: the losses of the loop over the block, bit for bit."""
    x, y = gc.input("x", ("N", 1, 32, 32)), gc.input("y", ("N",), dtype="int32")
    logits = gc.models.lenet(x)
    loss = gc.losses.cross_entropy(logits, y)
    rng = np.random.default_rng(3)
    given = {"x": rng.standard_normal((4, 1, 32, 32)).astype("f"), "y": rng.integers(0, 10, 4).astype("i4")}
    found = []
    for keep in (True, False):
        module = gc.compile(
            {"logits": logits}, loss, gc.SGD(lr=0.05, momentum=0.9), batch=4, name="lenet", target=TARGET,
            keep_gradients=keep, build=FLAGS,
        )  # fmt: skip
        found.append([float(module.train_step(**given)) for _ in range(4)])
    assert found[0] == found[1] and len(module.grads) < len(module.params)


@pytest.mark.parametrize("failing", range(1, 8))
def test_a_device_without_room_is_an_error_with_a_message(
    failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The n-th allocation or launch fails: an error says so, and the next call is as if nothing had happened."""
    monkeypatch.setenv("GC_SIMT_FAIL_AFTER", str(failing))

    def use() -> None:
        module = small("cuda-emulated", build=FLAGS)
        for _ in range(8):
            module.predict(x=np.zeros((1, 2, 9, 9), "f"))

    with pytest.raises(gc.GraphcError, match=r"the device (has no [\d,]+ bytes left|says: .* \(cuda\w+\))"):
        use()
    monkeypatch.delenv("GC_SIMT_FAIL_AFTER")
    module = small("cuda-emulated", build=FLAGS)
    assert np.isfinite(module.predict(x=np.zeros((1, 2, 9, 9), "f"))["logits"]).all()


def test_without_nvcc_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The compiler's name, where it may be named, and the target that needs no GPU."""
    monkeypatch.setenv("NVCC", "no-such-nvcc")
    options = gc.BuildOptions(cache_dir=tmp_path)
    with pytest.raises(gc.GraphcError, match=r"'no-such-nvcc' was not found.*NVCC.*cuda-emulated"):
        small("cuda", build=options)


def test_without_a_gpu_the_error_says_what_to_do(tmp_path: Path) -> None:
    """What nvcc has compiled is refused when it is loaded, before anything runs."""
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    if Path("/dev/nvidia0").exists():
        pytest.skip("needs a machine without a GPU")
    x = gc.input("x", ("N", 3))
    with pytest.raises(gc.GraphcError, match=r"no GPU can be used \(.+\); target='cuda-emulated' runs"):
        gc.compile({"out": gc.exp(x)}, batch=2, name="tiny", target="cuda")


def test_an_unknown_target_is_refused() -> None:
    """With what there is."""
    x = gc.input("x", ("N", 3))
    with pytest.raises(
        gc.GraphcError, match=r"target 'metal' is unknown; there are 'c', 'cuda' and 'cuda-emulated'"
    ):
        gc.compile({"out": gc.exp(x)}, target="metal")


ARCHITECTURES = ("sm_80", "sm_90")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("net", ["lenet", "small"])
def test_nvcc_takes_every_kernel_without_warnings_and_without_spills(net: str, tmp_path: Path) -> None:
    """For two architectures; no kernel puts registers or arrays into local memory."""
    module = (lenet if net == "lenet" else lambda target, batch, build: small(target, build=build))(
        "cuda-emulated", 64, build=FLAGS
    )
    for name, text in module.source.items():
        (tmp_path / name).write_text(text)
    for architecture in ARCHITECTURES:
        done = subprocess.run(
            ["nvcc", "-std=c++17", f"-arch={architecture}", "-Xptxas", "-v", "-Werror", "all-warnings", "-c",
             f"{module.name}.cu", "-o", "net.o"], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        frames = re.findall(r"\d+ bytes stack frame, .*", done.stdout + done.stderr)
        # Functions that are not inlined are told of, too.
        assert len(frames) >= module.source[f"{module.name}.cu"].count("__global__") > 15
        assert set(frames) == {"0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"}


def run(folder: Path, *command: str) -> str:
    """Run a command in a folder and return what it prints."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("train", [False, True])
def test_an_exported_bundle_agrees_with_that_in_c(train: bool, tmp_path: Path) -> None:
    """Built with make for the emulator; the recorded batches are what C computes."""
    folder = lenet("c", 4).export(
        tmp_path / "lenet", train=train, target="cuda", weights="c" if train else "file"
    )
    checked = run(folder, "make", "-s", "EMULATED=1", "CXXFLAGS=-Wall -Wextra -Werror", "check", "example")
    assert checked.count("ok   ") == 1 + 2 * train and "FAIL" not in checked
    assert run(folder, "./example").startswith(("step  0, loss", "logits"))
    # The same records as those of the bundle in C: what it is compared with did not come from the emulator.
    other = lenet("c", 4).export(tmp_path / "c", train=train)
    for record in sorted((folder / "check").iterdir()):
        expected = np.fromfile(other / "check" / record.name, "f4" if ".y." not in record.name else "i4")
        got = np.fromfile(record, expected.dtype)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_an_exported_bundle_builds_with_cmake_from_an_empty_folder(tmp_path: Path) -> None:
    """By a C++ compiler; where nvcc is, by that as well, though it cannot run."""
    if shutil.which("cmake") is None:
        pytest.skip("needs cmake")
    folder = lenet("c", 4).export(tmp_path / "lenet", target="cuda")
    run(tmp_path, "cmake", "-S", "lenet", "-B", "emulated", "-DLENET_EMULATED=ON")
    run(tmp_path, "cmake", "--build", "emulated")
    assert "ok   predict logits" in run(folder, "../emulated/lenet_check")
    if shutil.which("nvcc") is not None:
        run(tmp_path, "cmake", "-S", "lenet", "-B", "device", "-DCMAKE_CUDA_ARCHITECTURES=80")
        run(tmp_path, "cmake", "--build", "device")
        assert (tmp_path / "device/lenet_example").exists()


def test_a_wheel_is_not_for_a_device(tmp_path: Path) -> None:
    """It holds the library of one processor."""
    with pytest.raises(
        gc.GraphcError, match="a wheel is for this machine's processor, and target 'cuda' is another"
    ):
        lenet("c", 4).export(tmp_path / "dist", target="cuda", wheel=True)
    assert not (tmp_path / "dist").exists()


def test_a_module_for_a_device_is_exported_in_c_as_one_for_a_processor(tmp_path: Path) -> None:
    """The same text as from a module in C: packed weights, vectors, pooling in the convolutions."""
    texts = []
    for target in ("cuda-emulated", "c"):
        folder = lenet(target, 4).export(tmp_path / target)
        texts.append({file: (folder / file).read_text() for file in ("lenet.c", "lenet.h")})
    assert texts[0] == texts[1] and "gc_vec" in texts[0]["lenet.c"]


@pytest.mark.parametrize("length", [40, 3000])
def test_bytes_are_reduced_as_well(length: int) -> None:
    """By a warp and by a block: the largest, the smallest and where they are."""
    x = gc.input("x", ("N", length), dtype="uint8")
    outputs = {"max": gc.max(x, 1), "min": gc.min(x, 1), "argmax": gc.argmax(x, 1), "argmin": gc.argmin(x, 1)}
    module = gc.compile(outputs, batch=3, name="bytes", target=TARGET, build=QUICKLY_BUILT)
    given = np.random.default_rng(0).integers(0, 200, (3, length)).astype("uint8")
    got = module.predict(x=given)
    for name in outputs:
        np.testing.assert_array_equal(got[name], getattr(given, name)(axis=1))


def test_damaged_weights_are_refused_on_the_device_too(tmp_path: Path) -> None:
    """With the message of C."""
    folder = lenet("c", 4).export(tmp_path / "lenet", target="cuda")
    weights = bytearray((folder / "lenet.weights").read_bytes())
    weights[5000] ^= 1
    (folder / "lenet.weights").write_bytes(weights)
    run(folder, "make", "-s", "EMULATED=1", "self-check")
    done = subprocess.run(["./self-check"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 1 and "is damaged: the checksum is wrong" in done.stderr
