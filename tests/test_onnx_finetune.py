"""A ResNet-18 read from an ONNX file: another head, its first stages fixed, and trained as PyTorch trains it.

Batch norms are in inference form on both sides, unless a test says otherwise.
"""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch_nets as peers
from bundles import build, run
from helpers import full_only
from torch_nets import torch

import graphc as gc
from graphc_runtime.weights import unpack_weights

BATCH, CLASSES, STEPS, LR, MOMENTUM = 4, 10, 30, 0.003, 0.9
FIXED = ("conv1", "bn1", "layer1", "layer2")
FLAGS = ("-O1", "-march=native")  # quicker to build than the default
OPTIONS = gc.BuildOptions(compiler="gcc", optimisation=FLAGS)


@dataclass(frozen=True)
class Source:
    """The peer, its file, and the name of the tensor that its last layer gets."""

    net: Any
    file: bytes
    features: str


@pytest.fixture(scope="module")
def source() -> Source:
    """A seeded net, no two of whose weights are equal: of equal ones PyTorch writes a single one."""
    torch.manual_seed(0)
    net = peers.resnet(18).eval()
    for layer in net.modules():
        if isinstance(layer, peers.nn.BatchNorm2d):
            for vector in (layer.weight.data, layer.running_var):
                vector.uniform_(0.5, 1.5)
            for vector in (layer.bias.data, layer.running_mean):
                vector.normal_(0, 0.1)
    file = io.BytesIO()
    # Exporting for inference would merge batch norms into convolutions.
    torch.onnx.export(
        net, (torch.zeros(2, 3, 32, 32),), file, dynamo=False, input_names=["x"], do_constant_folding=False,
        dynamic_axes={"x": {0: "batch", 2: "height", 3: "width"}}, training=torch.onnx.TrainingMode.PRESERVE,
    )  # fmt: skip
    data = file.getvalue()
    last = onnx.load_from_string(data).graph.node[-1]
    assert last.op_type == "Gemm"
    return Source(net, data, last.input[0])


def headed(
    source: Source,
    fixed: Sequence[str] = (),
    size: int = 32,
    batch: int = BATCH,
    dtype: str = "float32",
    **load: Any,
) -> gc.Module:
    """Return the net compiled with a head of its own."""
    found = gc.onnx.load(
        source.file, dims={"height": size, "width": size}, freeze=[f"{n}*" for n in fixed], **load
    )
    logits = gc.nn.linear(found.tensors[source.features], CLASSES, name="head")
    y = gc.input("y", ("N",), dtype="int32")
    return gc.compile(
        {"logits": logits}, gc.losses.cross_entropy(logits, y), gc.SGD(LR, momentum=MOMENTUM), batch=batch,
        seed=3, name="net", build=OPTIONS, dtype=dtype,
    )  # fmt: skip


@pytest.fixture(scope="module")
def frozen(source: Source) -> gc.Module:
    return headed(source, FIXED)


@pytest.fixture(scope="module")
def whole(source: Source) -> gc.Module:
    return headed(source)


def batches(size: int, batch: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return two batches, which are taken in turn."""
    rng = np.random.default_rng(1)
    return [
        (rng.standard_normal((batch, 3, size, size), np.float32), rng.integers(0, CLASSES, batch, np.int32))
        for _ in range(2)
    ]


def peer_of(source: Source, module: gc.Module, fixed: Sequence[str]) -> tuple[Any, Any]:
    """Return the peer with the module's head, and its optimizer."""
    net = copy.deepcopy(source.net)
    net.fc = peers.nn.Linear(512, CLASSES)
    net.to(getattr(torch, str(module.dtype)))  # before it gets weights that float32 would round
    net.fc.load_state_dict(
        {n: torch.tensor(np.array(module.params[f"head.{n}"])) for n in ("weight", "bias")}
    )
    learned = [p for name, p in net.named_parameters() if not name.startswith(tuple(fixed or ("none",)))]
    assert len(learned) == len(module.grads)
    return net, torch.optim.SGD(learned, LR, momentum=MOMENTUM)


def compare_losses(
    source: Source, module: gc.Module, fixed: Sequence[str], steps: int, rtol: float, *,
    size: int = 32, batch: int = BATCH, norms_train: bool = False,
) -> Any:  # fmt: skip
    """Take steps on both sides; return the peer."""
    net, sgd = peer_of(source, module, fixed)
    net.train(norms_train)
    data, losses, wanted = batches(size, batch), [], []
    for step in range(steps):
        x, y = data[step % 2]
        x = x.astype(module.dtype)
        losses.append(float(module.train_step(x=x, y=y)))
        loss = peers.F.cross_entropy(net(torch.from_numpy(x)), torch.from_numpy(y).long())
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        wanted.append(loss.item())
    np.testing.assert_allclose(losses, wanted, rtol=rtol)
    if steps == STEPS:
        assert np.mean(wanted[-4:]) < 0.8 * np.mean(wanted[:4])  # it learned something
    return net


@full_only
@pytest.mark.parametrize("norms", ["inference", "training"])
def test_losses_in_double_precision(source: Source, norms: str) -> None:
    """Without float32's rounding both sides are equal for as long as they train, batch norms too."""
    module = headed(source, size=64, dtype="float64", batch_norm=norms)
    # 1e-16 a sum, which a step enlarges at most some hundred times: 30 of them leave 1e-9 far away.
    compare_losses(source, module, (), STEPS, 1e-9, size=64, norms_train=norms == "training")


# Each loss has float32's 1e-7 of its own; the steps before add theirs, which momentum carries on: 3e-7 was seen.
# Rates above 0.01 enlarge them: a ReLU or a maximum that is another one changes a gradient by far more.
RTOL = 1e-5


@pytest.mark.parametrize(
    "fixed", [pytest.param(FIXED, id="frozen"), pytest.param((), id="whole", marks=full_only)]
)
def test_losses_and_weights_are_pytorchs(
    fixed: Sequence[str], source: Source, request: pytest.FixtureRequest
) -> None:
    module: gc.Module = request.getfixturevalue("frozen" if fixed else "whole")
    before = {name: np.array(value) for name, value in module.params.items()}
    net = compare_losses(source, module, fixed, STEPS, RTOL)
    for name, value in net.state_dict().items():
        ours = name.replace("fc.", "head.")
        if not name.endswith("num_batches_tracked"):
            # float32; the smallest weights are sums of updates that cancel
            np.testing.assert_allclose(module.params[ours], value.numpy(), rtol=1e-4, atol=1e-5, err_msg=name)
    changed = {name for name, value in before.items() if not np.array_equal(value, module.params[name])}
    assert changed == set(module.grads)


def test_statistics_are_never_trained(source: Source, whole: gc.Module, frozen: gc.Module) -> None:
    learned = {name.replace("fc.", "head.") for name, _ in source.net.named_parameters()}
    assert set(whole.grads) == learned
    assert set(frozen.grads) == {name for name in learned if not name.startswith(FIXED)}
    statistics = {name for name in whole.params if ".running_" in name}
    assert len(statistics) == 40
    assert not statistics & set(whole.grads)


def test_the_plan_without_the_fixed_stages_is_smaller_by_what_they_kept(
    frozen: gc.Module, whole: gc.Module
) -> None:
    """Their activations are not kept for the backward pass, and they have neither gradients nor momentum."""
    plans = [module.plan("train") for module in (whole, frozen)]
    for plan in plans:
        assert plan.arena_bytes == plan.lower_bound_bytes
    saved = plans[0].arena_bytes - plans[1].arena_bytes
    kept = plans[0].kept_bytes - plans[1].kept_bytes
    # What else is alive where most is alive is a convolution's scratch and small values.
    assert kept > 1_000_000
    assert abs(saved - kept) < 0.02 * kept
    fixed = tuple(f"_{name}" for name in FIXED)
    names = [[i.id for i in plan.intervals if i.kept and i.id.startswith(fixed)] for plan in plans]
    assert names[0] and not names[1]
    for module in (whole, frozen):
        trained = sum(-(-value.size // 16) * 16 for value in module.grads.values())  # each padded to 64 bytes
        sizes = module.manifest["sizes"]
        assert sizes["grads"] == sizes["slots"] == sizes["trainable"] == trained


def test_the_exported_c_takes_the_steps_of_python(source: Source, frozen: gc.Module, tmp_path: Path) -> None:
    """Losses of several steps and the weights file after them, to the bit."""
    steps = 5
    folder = frozen.export(tmp_path / "training", train=True, build=OPTIONS)
    x = np.fromfile(folder / "check/train_step.in.x.bin", "f").reshape(BATCH, 3, 32, 32)
    y = np.fromfile(folder / "check/train_step.in.y.bin", "i4")
    losses = [
        float(frozen.train_step(x=x[: BATCH - k % 2], y=y[: BATCH - k % 2])) for k in range(steps)
    ]  # as the driver does
    known = (f"-DIMAGE={3 * 32 * 32}", f"-DCLASSES={CLASSES}", f"-DSTEPS={steps}", f"-DLEARNING_RATE={LR}")
    driver = Path(__file__).parent / "drivers" / "training.c"
    program = build(folder, driver, "driver", *FLAGS, "-ffp-contract=off", "-fopenmp", "-pthread", *known)
    run(folder, program, "steps", "2")
    assert np.fromfile(folder / "losses.bin", "f").tolist() == losses
    assert len(set(losses)) == steps
    graph = re.search(r'NET_GRAPH "(\w+)"', (folder / "net.h").read_text())
    assert graph is not None
    trained = unpack_weights((folder / "trained.weights").read_bytes(), graph[1])
    assert trained.step == frozen.step
    blocks = frozen.weight_blocks(("params", "slots"))
    # In C those that are fixed lie apart, in the constant area.
    size = frozen.manifest["sizes"]["trainable"]
    for name in ("params", "slots"):
        assert np.array_equal(trained.blocks[name].view("f"), blocks[name].view("f")[:size]), name


def test_batch_norms_in_training_form_follow_pytorchs(source: Source) -> None:
    """Those of fixed stages too: only their weights are fixed, not their statistics."""
    module = headed(source, FIXED, 64, batch_norm="training")
    # Normalising by few values, 16 in the last stage, enlarges what rounding differs.
    net = compare_losses(source, module, FIXED, 3, 1e-4, size=64, norms_train=True)
    for name, value in peers.weights(net).items():
        if ".running_" in name:
            np.testing.assert_allclose(module.state[name], value, rtol=1e-3, atol=1e-4, err_msg=name)
            assert not np.allclose(value, source.net.state_dict()[name].numpy(), rtol=1e-2, atol=1e-3)
