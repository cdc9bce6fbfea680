"""Every ready-made net is the function that PyTorch computes: values, gradients, running statistics, weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch_nets as peers
from helpers import full_only

import graphc as gc
from graphc import models
from graphc.build import BuildOptions

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
nn = torch.nn

# What is compared does not depend on speed, and this builds three times as fast as the default.
OPTIONS = BuildOptions(optimisation=("-Og", "-march=native"))
CLASSES = 10
STEPS, LR, MOMENTUM, DECAY = 10, 1e-5, 0.9, 1e-3


@dataclass(frozen=True)
class Case:
    """One net on both sides, on images of this shape."""

    label: str
    build: Callable[..., peers.Logits]
    peer: Callable[..., Any]
    shape: tuple[int, int, int]
    batch: int = 3


def vgg_case(depth: int, norm: bool) -> Case:
    slim = {"width": 16, "hidden": 96}
    return Case(
        f"vgg{depth}{'_bn' if norm else ''}",
        partial(models.vgg, depth=depth, norm=norm, drop=0.0, **slim),
        partial(peers.vgg, depth, norm, drop=0.0, size=32, **slim),
        (3, 32, 32),
    )


def googlenet_case(norm: bool, kernel: int) -> Case:
    options = {"norm": norm, "kernel": kernel, "drop": 0.0, "head_drop": 0.0}
    return Case(
        f"googlenet{'_bn' if norm else ''}_{kernel}x{kernel}",
        partial(models.googlenet_with_heads, **options),
        partial(peers.GoogLeNet, **options),
        (3, 80, 80),  # 5 x 5 where the heads pool to 4 x 4, and odd where rounding up matters
    )


def resnet_case(depth: int) -> Case:
    return Case(
        f"resnet{depth}",
        partial(models.resnet, depth=depth),
        partial(peers.resnet, depth),
        (3, 33, 33),  # 17, 9, 5, 3 and 2 pixels: a stride of 2 meets odd sizes everywhere
        3 if depth < 50 else 2,
    )


def cifar_case(depth: int) -> Case:
    return Case(
        f"resnet_cifar{depth}",
        partial(models.resnet_cifar, depth=depth),
        partial(peers.resnet_cifar, depth),
        (3, 32, 32),
    )


CASES = [
    Case("mlp", models.mlp, partial(peers.mlp, 32 * 32, (512, 512)), (1, 32, 32)),
    Case("mlp_tanh", partial(models.mlp, hidden=(64, 32, 16), activation=gc.tanh),
         partial(peers.mlp, 28 * 28, (64, 32, 16), activation=nn.Tanh), (1, 28, 28)),
    Case("lenet", models.lenet, peers.lenet, (1, 32, 32)),
    Case("lenet_1998", models.lenet_1998, peers.lenet_1998, (1, 32, 32)),
    # 3 x 3 where it is pooled to 6 x 6.
    Case("alexnet", partial(models.alexnet, drop=0.0), partial(peers.alexnet, drop=0.0), (3, 127, 127), 2),
    Case("alexnet_2012", partial(models.alexnet_2012, drop=0.0), partial(peers.alexnet_2012, 99, drop=0.0),
         (3, 99, 99), 2),
    # All 4096 units, so that 2 x 2 is pooled to 7 x 7.
    Case("vgg11_pooled", partial(models.vgg, depth=11, width=4, drop=0.0),
         partial(peers.vgg, 11, width=4, drop=0.0), (3, 64, 64), 2),
    *[vgg_case(depth, norm) for norm in (False, True) for depth in (11, 13, 16, 19)],
    *[googlenet_case(norm, kernel) for norm in (False, True) for kernel in (3, 5)],
    *[resnet_case(depth) for depth in (18, 34, 50, 101, 152)],
    *[cifar_case(depth) for depth in (20, 32, 44, 56)],
]  # fmt: skip
SINGLE = [
    "mlp", "lenet", "lenet_1998", "alexnet_2012", "vgg16_bn", "googlenet_3x3", "resnet18", "resnet_cifar20",
]  # fmt: skip
# Nets with batch norm that are trained for some steps, too.
STEPPED = ["vgg16_bn", "googlenet_bn_5x5", "resnet18", "resnet50", "resnet_cifar20"]
LONG = ["googlenet_bn_5x5", "resnet101", "resnet152"]  # in double precision: more of what others are
SLOW = ["alexnet", "googlenet_bn_3x3", "googlenet_bn_5x5", "resnet50", "resnet101", "resnet152"]


def parameters(labels: Iterable[str]) -> list[Any]:
    cases = {case.label: case for case in CASES}
    return [
        pytest.param(cases[label], id=label, marks=[pytest.mark.slow] if label in SLOW else [])
        for label in labels
    ]


def images(case: Case, dtype: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, case.batch).astype(np.int32)
    return rng.standard_normal((case.batch, *case.shape)).astype(dtype), labels


def make(case: Case, dtype: str) -> tuple[gc.Module, Any]:
    """Return both sides with the same weights, none of which is left at what it was made with."""
    net = case.peer(classes=CLASSES).to(getattr(torch, dtype))
    peers.randomise(net, torch.tensor(images(case, dtype, 1)[0]), seed=0)
    build = partial(case.build, classes=CLASSES)
    optimizer = gc.SGD(LR, momentum=MOMENTUM, weight_decay=DECAY) if case.label in STEPPED else None
    module = peers.compile_net(build, case.shape, case.batch, dtype, optimizer, OPTIONS)
    peers.copy_to_module(net, module)
    return module, net


def error(got: np.ndarray, want: np.ndarray, scale: float = 0.0) -> float:
    """Return the largest error, relative to the largest entry wanted or to a larger scale."""
    assert np.isfinite(want).all() and want.any(), "nothing to compare with"
    return float(np.abs(got - want).max() / max(np.abs(want).max(), scale))


def logit_errors(module: gc.Module, net: Any, x: np.ndarray) -> dict[str, float]:
    """Return the errors of logits in inference, those of heads too."""
    with torch.no_grad():
        out = net.eval()(torch.tensor(x))
    got = module.predict(x=x)
    wanted = out if isinstance(out, tuple) else (out,)
    return {name: error(got[name], want.numpy()) for name, want in zip(got, wanted, strict=True)}


def taken_away(net: Any) -> dict[str, str]:
    """Return the biases that the batch norm behind them takes away, with the weights beside them."""
    layers = [(name, part) for name, part in net.named_modules() if not list(part.children())]
    return {
        f"{name}.bias": f"{name}.weight"
        for (name, part), (_, after) in pairwise(layers)
        if isinstance(after, nn.BatchNorm2d) and part.bias is not None
    }


def gradient_errors(module: gc.Module, net: Any, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Return the errors of the loss and of every gradient in training mode.

    The gradient of a bias before a batch norm is zero but for rounding; its error is compared with the
    largest gradient of the weights beside it.
    """
    net.train().zero_grad()
    loss = peers.peer_loss(net(torch.tensor(x)), torch.tensor(y, dtype=torch.int64))
    loss.backward()
    got = module.backward(x=x, y=y)
    wanted = {name: value.grad.numpy() for name, value in net.named_parameters()}
    zero = taken_away(net)
    errors = {"loss": error(np.array(float(got)), loss.detach().numpy())}
    for name, want in wanted.items():
        scale = float(np.abs(wanted[zero[name]]).max()) if name in zero else 0.0
        errors[name] = error(module.grads[name], want, scale)
    return errors


def step_errors(module: gc.Module, net: Any, case: Case) -> dict[str, float]:
    """Return the errors of running statistics and weights after ten training steps."""
    peers.copy_to_module(net, module)  # the peer's statistics have moved while it gave gradients
    before = {name: value.copy() for name, value in peers.weights(net).items()}
    optimizer = torch.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    net.train()
    for step in range(STEPS):
        x, y = images(case, "float64", 10 + step)
        optimizer.zero_grad()
        peers.peer_loss(net(torch.tensor(x)), torch.tensor(y, dtype=torch.int64)).backward()
        optimizer.step()
        module.train_step(x=x, y=y)
    after = peers.weights(net)
    assert all((after[name] != value).any() for name, value in before.items()), "all of them move"
    return {name: error({**module.params, **module.state}[name], want) for name, want in after.items()}


def assert_small(errors: Mapping[str, float], tolerance: float) -> None:
    """Every error is below the tolerance, and none is NaN."""
    wrong = {name: f"{value:.1e}" for name, value in errors.items() if not value < tolerance}
    assert not wrong, f"above {tolerance:.0e}: {wrong}"


@pytest.mark.parametrize(
    "case",
    [
        *parameters(case.label for case in CASES if case.label not in LONG),
        *(pytest.param(*p.values, id=p.id, marks=[*p.marks, full_only]) for p in parameters(LONG)),
    ],
)
def test_double_precision(case: Case) -> None:
    """Logits agree to 1e-10 of the largest, gradients and, after ten steps, statistics and weights to 1e-9.

    Both sides add in different orders, which is seen as 1e-15 to 5e-14 of the logits. Batch norms magnify it
    on the way back: to 2e-13 of the gradients through 20 layers, and to 3e-11 through 150. Each step magnifies
    it again, the more the longer the step is; so steps are short, and 2e-11 are seen after ten.
    """
    module, net = make(case, "float64")
    x, y = images(case, "float64", 2)
    assert_small(logit_errors(module, net, x), 1e-10)
    assert_small(gradient_errors(module, net, x, y), 1e-9)
    if case.label in STEPPED:
        assert_small(step_errors(module, net, case), 1e-9)


@pytest.mark.parametrize("case", parameters(SINGLE))
def test_single_precision(case: Case) -> None:
    """Logits agree to 1e-4 of the largest and, on one of five batches, gradients do too.

    Rounding gives up to 1e-5 and 2e-5. But of several 100,000 activations one may lie so close to zero that
    it is positive on one side only. Its ReLU then passes a gradient there and none on the other side, which
    changes gradients by percents. That befalls about one batch in five; five in a row are no accident.
    """
    module, net = make(case, "float32")
    assert_small(logit_errors(module, net, images(case, "float32", 2)[0]), 1e-4)
    for seed in range(2, 7):
        errors = gradient_errors(module, net, *images(case, "float32", seed))
        if max(errors.values()) < 1e-4:
            break
    assert_small(errors, 1e-4)


@pytest.mark.parametrize("kernel", [3, 5])
def test_googlenet_without_heads(kernel: int) -> None:
    """The net without heads has neither their parameters nor other logits (1e-4 as above)."""
    case = Case(
        "googlenet",
        partial(models.googlenet, kernel=kernel, drop=0.0, classes=CLASSES),
        partial(peers.GoogLeNet, kernel=kernel, drop=0.0, heads=False),
        (3, 80, 80),
    )
    net = case.peer(classes=CLASSES)
    x = images(case, "float32", 1)[0]
    peers.randomise(net, torch.tensor(x), seed=0)
    module = gc.compile({"logits": case.build(gc.input("x", ("N", *case.shape)))}, batch=3, build=OPTIONS)
    peers.copy_to_module(net, module)
    assert_small(logit_errors(module, net, x), 1e-4)


@pytest.mark.parametrize("case", parameters(["lenet", "vgg16_bn", "googlenet_bn_5x5", "resnet_cifar20"]))
def test_weights_move_through_a_file(case: Case, tmp_path: Path) -> None:
    """A file of PyTorch's tensors gives its logits, and a file of graphc's goes back by the same names.

    The logits agree to 1e-10 as above; on the way back nothing is computed and nothing changes.
    """
    files = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    module, net = make(case, "float64")
    x = images(case, "float64", 3)[0]
    other = case.peer(classes=CLASSES).double()
    peers.copy_to_module(other, module)
    assert max(logit_errors(module, net, x).values()) > 1e-2, "the weights must come from the file"
    tensors = {name: value.numpy() for name, value in net.state_dict().items()}
    files.save_file(tensors, tmp_path / "torch.safetensors")
    module.load(tmp_path / "torch.safetensors")
    assert_small(logit_errors(module, net, x), 1e-10)
    module.save(tmp_path / "graphc.safetensors")
    saved = files.load_file(tmp_path / "graphc.safetensors")
    named = {n: torch.tensor(v) for n, v in saved.items() if not n.startswith(("optimizer.", "graphc."))}
    found = other.load_state_dict(named, strict=False)
    assert not found.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in found.missing_keys)
    for name, value in peers.weights(other).items():
        np.testing.assert_array_equal(value, tensors[name], err_msg=name)
