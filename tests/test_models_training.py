"""Thirty steps of the full-size nets follow PyTorch's losses from the same weights on the same batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch_nets as peers
from helpers import full_only

import graphc as gc
from graphc import models

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

STEPS, IMAGES, MOMENTUM, DECAY = 30, 8, 0.9, 5e-4


@dataclass(frozen=True)
class Case:
    """One net on both sides at the size it was made for."""

    label: str
    build: Callable[[gc.Tensor], peers.Logits]
    peer: Callable[[], Any]
    shape: tuple[int, int, int] = (3, 224, 224)
    classes: int = 1000
    batch: int = 2
    lr: float = field(kw_only=True)


def vgg_case(depth: int, lr: float, norm: bool = False) -> Case:
    return Case(
        f"vgg{depth}{'_bn' if norm else ''}",
        partial(getattr(models, f"vgg{depth}"), norm=norm, drop=0.0),
        partial(peers.vgg, depth, norm, drop=0.0),
        batch=4 if norm else 2,
        lr=lr,
    )


def googlenet_case(norm: bool, kernel: int, lr: float) -> Case:
    chosen = {"norm": norm, "kernel": kernel, "drop": 0.0, "head_drop": 0.0}
    return Case(
        f"googlenet{'_bn' if norm else ''}_{kernel}x{kernel}",
        partial(models.googlenet_with_heads, **chosen),
        partial(peers.GoogLeNet, **chosen),
        batch=4 if norm else 2,
        lr=lr,
    )


def resnet_case(depth: int, lr: float) -> Case:
    build, peer = getattr(models, f"resnet{depth}"), partial(peers.resnet, depth)
    return Case(f"resnet{depth}", build, peer, batch=4, lr=lr)


def cifar_case(depth: int, lr: float) -> Case:
    build, peer = partial(models.resnet_cifar, depth=depth), partial(peers.resnet_cifar, depth)
    return Case(f"resnet_cifar{depth}", build, peer, (3, 32, 32), 10, 4, lr=lr)


ALWAYS = [
    Case("mlp", models.mlp, partial(peers.mlp, 32 * 32, (512, 512)), (1, 32, 32), 10, 4, lr=3e-3),
    Case("lenet", models.lenet, peers.lenet, (1, 32, 32), 10, 4, lr=5e-3),
    Case("lenet_1998", models.lenet_1998, peers.lenet_1998, (1, 32, 32), 10, 4, lr=2e-2),
    cifar_case(20, lr=1e-3),
    resnet_case(18, lr=3e-4),
]
LONG = [
    Case("alexnet", partial(models.alexnet, drop=0.0), partial(peers.alexnet, drop=0.0), lr=3e-5),
    Case("alexnet_2012", partial(models.alexnet_2012, drop=0.0), partial(peers.alexnet_2012, drop=0.0),
         (3, 227, 227), lr=5e-5),
    vgg_case(11, lr=1e-5),
    vgg_case(13, lr=1e-5),
    vgg_case(16, lr=1e-5),
    vgg_case(19, lr=1e-5),
    vgg_case(16, norm=True, lr=3e-5),
    googlenet_case(norm=True, kernel=5, lr=2e-5),
    googlenet_case(norm=True, kernel=3, lr=2e-5),
    googlenet_case(norm=False, kernel=3, lr=1e-5),
    resnet_case(34, lr=1e-4),
    resnet_case(50, lr=1e-4),
    resnet_case(101, lr=1e-4),
    resnet_case(152, lr=1e-4),
    cifar_case(56, lr=1e-3),
]  # fmt: skip


def start(module: gc.Module, net: Any) -> None:
    """Both have the module's first weights, but those of convolutions so that signals neither fade nor grow.

    PyTorch's default, which some layers follow, lets them fade, and the loss then hardly depends on images.
    The last scale of every residual branch is small, as in Goyal et al. 2017, section 5.1: fifty branches at
    full strength magnify rounding before the first step is made.
    """
    peers.copy_to_net(module, net)
    torch.manual_seed(0)
    for part in net.modules():
        if isinstance(part, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
        if isinstance(part, peers.Residual):
            torch.nn.init.constant_(getattr(part, f"bn{part.count}").weight, 0.2)
    peers.copy_to_module(net, module)


def batches(case: Case) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield random batches of eight random images, which are few enough to be learned by heart."""
    rng = np.random.default_rng(7)
    images = rng.standard_normal((IMAGES, *case.shape)).astype(np.float32)
    labels = rng.integers(0, case.classes, IMAGES).astype(np.int32)
    for _ in range(STEPS):
        chosen = rng.permutation(IMAGES)[: case.batch]
        yield images[chosen], labels[chosen]


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.label, marks=[pytest.mark.slow] if case.label == "resnet18" else [])
        for case in ALWAYS
    ]
    + [pytest.param(case, id=case.label, marks=[full_only, pytest.mark.slow]) for case in LONG],
)
def test_thirty_steps(case: Case) -> None:
    """Losses agree to 1e-3 in single precision while they fall, and logits of what was learned to 1e-4.

    A step rounds losses to 1e-7 or so, and gradients to 1e-5, or to percents where an activation near zero
    falls on the other side of ReLU's kink. Through the weights this comes back in later steps, magnified the
    more the longer the steps are: at three times VGG-11's rate PyTorch's own losses in single precision are
    4e-3 from those in double. The learning rates are such that the loss falls visibly before that. The logits
    are those of the same weights, so that nothing is magnified there.
    """
    optimizer = gc.SGD(case.lr, momentum=MOMENTUM, weight_decay=DECAY)
    build = partial(case.build, classes=case.classes)
    module = peers.compile_net(build, case.shape, case.batch, "float32", optimizer)
    module.threads = 2
    net = case.peer(classes=case.classes)
    start(module, net)
    stepper = torch.optim.SGD(net.parameters(), lr=case.lr, momentum=MOMENTUM, weight_decay=DECAY)
    got, want = [], []
    for x, y in batches(case):
        stepper.zero_grad()
        loss = peers.peer_loss(net(torch.tensor(x)), torch.tensor(y, dtype=torch.int64))
        loss.backward()
        stepper.step()
        want.append(float(loss.detach()))
        got.append(float(module.train_step(x=x, y=y)))
    np.testing.assert_allclose(got, want, rtol=1e-3)
    assert np.mean(got[-5:]) < 0.97 * np.mean(got[:5]), "the loss must fall while it is compared"
    peers.copy_to_net(module, net)
    with torch.no_grad():
        out = net.eval()(torch.tensor(x))
    logits = (out[0] if isinstance(out, tuple) else out).numpy()
    np.testing.assert_allclose(
        module.predict(x=x)["logits"], logits, rtol=0, atol=1e-4 * np.abs(logits).max()
    )
