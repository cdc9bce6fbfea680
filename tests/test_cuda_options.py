"""What a module for a device does beside its work: a guard against NaN and Inf, times of kernels, poison.

On the emulated device.

With GRAPHC_CUDA_TARGET=cuda in the environment, for the GPU of this machine, by nvcc.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphc as gc
from graphc.errors import NumericalError
from graphc.lower import arena
from graphc.memory import ArenaPlan, Interval, plan_arena

TARGET = os.environ.get("GRAPHC_CUDA_TARGET", "cuda-emulated")
QUICK = gc.BuildOptions(optimisation=("-O0",))
LABELS = np.array([0, 2], "i4")
ONES = np.ones((2, 4), "f")


def line() -> int:
    """Return the line of the caller."""
    return sys._getframe(1).f_lineno


def compiles_without_warnings(module: gc.Module, folder: Path) -> None:
    """By nvcc, for one architecture, where it is."""
    if shutil.which("nvcc") is None:
        return
    for name, text in module.source.items():
        (folder / name).write_text(text)
    done = subprocess.run(
        ["nvcc", "-std=c++17", "-arch=sm_90", "-Werror", "all-warnings", "-c", f"{module.name}.cu", "-o", "net.o"],
        cwd=folder, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


class Guarded:
    """Linear, batch norm, square root, linear: the root is NaN below zero, and its slope is Inf at zero."""

    def __init__(self, **options: bool):
        x, y = gc.input("x", ("N", 4)), gc.input("y", ("N",), dtype="int32")
        h = gc.nn.linear(x, 3, name="fc1")
        self.root_line = line() + 1
        root = gc.sqrt(h, name="root")
        logits = gc.nn.linear(gc.nn.batch_norm(root * 1.5 + h, name="bn"), 3, name="fc2")
        loss = gc.losses.cross_entropy(logits, y)
        self.module = gc.compile(
            {"logits": logits}, loss, gc.SGD(lr=0.1, momentum=0.9), batch=3, name="guarded", target=TARGET,
            build=QUICK, nan_guard=True, **options,
        )  # fmt: skip

    def set(self, weight: float, bias: float) -> None:
        """Set the first layer, and with it what the root is taken of."""
        self.module.params["fc1.weight"] = np.full((3, 4), weight, "f")
        self.module.params["fc1.bias"] = np.full(3, bias, "f")

    def failing_step(self) -> str:
        """Return the message of a step that must fail, having checked that it changed nothing."""
        before = self.module.state_dict()
        with pytest.raises(NumericalError) as caught:
            self.module.train_step(x=ONES, y=LABELS)
        for name, value in self.module.state_dict().items():
            np.testing.assert_array_equal(value, before[name], err_msg=name)
        return str(caught.value)


def test_the_call_that_first_writes_a_nan_is_named_and_nothing_is_changed(tmp_path: Path) -> None:
    """Forward, in inference, and backward; the module goes on afterwards with the bits of one that never failed."""
    net, other = Guarded(), Guarded()
    sound = {"x": np.random.default_rng(0).uniform(0.5, 1.5, (2, 4)).astype("f"), "y": LABELS}
    for n in (net, other):
        n.set(0.25, 0.5)
        assert np.isfinite(float(n.module.train_step(**sound))) and n.module.step == 1
    saved = net.module.state_dict()
    net.set(-0.5, 0.0)
    message = net.failing_step()
    assert message.startswith("train_step: a NaN or Inf first appears in root (sqrt), kernel root_sqrt")
    assert message.endswith(f"at test_cuda_options.py:{net.root_line}")
    kernel = message.split("kernel ")[1].split(",")[0]
    assert f"{kernel}(" in net.module.source["guarded.cu"]
    with pytest.raises(NumericalError, match=rf"^predict: .*root.*:{net.root_line}$"):
        net.module.predict(x=ONES)
    net.set(0.0, 0.0)
    assert np.isfinite(net.module.predict(x=ONES)["logits"]).all()
    assert "sqrt_backward" in net.failing_step()
    net.module.load_state_dict(saved)
    assert net.module.train_step(**sound) == other.module.train_step(**sound)
    compiles_without_warnings(net.module, tmp_path)


def lenet(**options: object) -> gc.Module:
    """Return LeNet with momentum, for small batches."""
    x, y = gc.input("x", ("N", 1, 32, 32)), gc.input("y", ("N",), dtype="int32")
    logits = gc.models.lenet(x)
    return gc.compile(
        {"logits": logits}, gc.losses.cross_entropy(logits, y), gc.SGD(lr=0.05, momentum=0.9), batch=3,
        name="lenet", target=TARGET, build=QUICK, **options,
    )  # type: ignore[arg-type]  # fmt: skip


def digits(rows: int) -> dict[str, np.ndarray]:
    """Return images and labels without meaning."""
    rng = np.random.default_rng(rows)
    images = rng.normal(size=(rows, 1, 32, 32)).astype("f")
    return {"x": images, "y": rng.integers(0, 10, rows).astype("i4")}


def test_a_profile_tells_every_kernel_and_no_roof(tmp_path: Path) -> None:
    """Calls, FLOPs and bytes of the manifest, times above zero; a step leaves the bits of a plain module."""
    module, plain = lenet(profile=True), lenet()
    before = module.state_dict()
    for mode in ("inference", "train"):
        given = digits(3) if mode == "train" else {"x": digits(3)["x"]}
        profile = module.profile(mode=mode, repeats=2, **given)
        entry = next(e for e in module.manifest["entries"] if e["name"] == profile.entry)
        names = [call["kernel"] for call in entry["calls"]] + ["update"] * (mode == "train")
        assert [k.kernel for k in profile.kernels] == names
        assert all(k.seconds > 0 for k in profile.kernels) and profile.machine == {}
    assert all(value.tobytes() == before[name].tobytes() for name, value in module.state_dict().items())
    for batch in (digits(3), digits(2)):
        assert module.train_step(**batch) == plain.train_step(**batch)
    lines = profile.table().splitlines()
    assert lines[0].startswith("lenet train_step, batch 3, on a device: ")
    assert lines[1] == "peak and bandwidth of the device are not measured" and "roof" not in lines[3]
    assert re.fullmatch(r" +[\d.]+ +[\d.]+% +[\d.]+ +[\d.]+  \w+: .*", lines[4])
    with pytest.raises(gc.GraphcError, match="what its device can do at the most is not measured"):
        profile.percent_of_peak(profile.kernels[0])
    assert "cudaEventElapsedTime" not in plain.source["lenet.cu"] and "marks" not in plain.source["lenet.cu"]
    compiles_without_warnings(module, tmp_path)
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    profile.plot(tmp_path / "roofline.svg")
    assert "</svg>" in (tmp_path / "roofline.svg").read_text()


def normed(**options: object) -> gc.Module:
    """Return a net with batch norm, dropout, and a product whose depth is divided into shares."""
    x, y = gc.input("x", ("N", 1, 32, 32)), gc.input("y", ("N",), dtype="int32")
    h = gc.relu(gc.nn.batch_norm(gc.nn.conv2d(x, 4, 3, padding=1), name="bn"))
    h = gc.nn.dropout(gc.nn.max_pool2d(h, 2), 0.25)
    logits = gc.nn.linear(gc.flatten(h), 10)
    return gc.compile(
        {"logits": logits}, gc.losses.cross_entropy(logits, y), gc.Adam(lr=0.01), batch=3, name="normed",
        target=TARGET, build=QUICK, **options,
    )  # type: ignore[arg-type]  # fmt: skip


def results(module: gc.Module) -> dict[str, bytes]:
    """Return the bits of inference and of two training steps, the second with a part of every buffer unused."""
    found = {}
    for rows in (3, 1):
        given = digits(rows)
        found[f"logits {rows}"] = module.predict(x=given["x"])["logits"].tobytes()
        found[f"loss {rows}"] = np.array(float(module.train_step(**given))).tobytes()
    return found | {name: value.tobytes() for name, value in module.state_dict().items()}


def test_a_net_does_not_notice_poison(tmp_path: Path) -> None:
    """The same bits, within a captured graph; and with a guard, which takes no poison for a result, and a clock."""
    want = results(normed())
    module = normed(poison=True)
    text = module.source["normed.cu"]
    assert text.count("cudaMemsetAsync(arena + ") > 10 and "/* shares */" in text and "replay(" in text
    assert results(module) == want
    apart = results(normed(nan_guard=True))  # one kernel for every node rounds in other places
    whole = normed(nan_guard=True, poison=True, profile=True)
    assert results(whole) == apart
    compiles_without_warnings(whole, tmp_path)


def test_a_lifetime_that_is_too_short_shows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A buffer of the training step that dies one kernel before it is read for the last time gives NaN."""
    sound = normed(poison=True)
    want = results(sound)
    spans = {i.id: i.upper - i.lower for i in sound.plan("train").intervals}
    victim = max(spans, key=lambda name: spans[name])

    def plan(intervals: Sequence[Interval], **options: Any) -> ArenaPlan:
        short = [replace(i, upper=i.upper - 1) if i.id == victim else i for i in intervals]
        return plan_arena(short, **options)

    monkeypatch.setattr(arena, "plan_arena", plan)
    # The cache does not know of planners that err.
    monkeypatch.setenv("GRAPHC_CACHE_DIR", str(tmp_path))
    assert results(normed(poison=True)) != want
