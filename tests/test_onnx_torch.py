"""Nets as PyTorch's two exporters write them, for any batch: their outputs are PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch_nets as peers
from helpers import full_only
from test_onnx import exported
from torch_nets import F, nn, torch

import graphc as gc

SEED, LARGEST = 7, 3


class Inverted(nn.Module):
    """A block of MobileNet-V2: wider, by depth, narrower, with a shortcut where the shapes allow it."""

    def __init__(self, channels: int, out: int, stride: int, widening: int) -> None:
        super().__init__()
        inner = channels * widening
        first = _unit(channels, inner, 1) if widening > 1 else ()
        self.layers = nn.Sequential(
            *first,
            *_unit(inner, inner, 3, stride, inner),
            nn.Conv2d(inner, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.shortcut = stride == 1 and channels == out

    def forward(self, x: Any) -> Any:
        return x + self.layers(x) if self.shortcut else self.layers(x)


def _unit(channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> tuple[Any, ...]:
    conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(out), nn.ReLU6()


def mobilenet_v2(classes: int = 1000) -> Any:
    """Return the net of the paper's table 2, at full width."""
    layers, channels = [*_unit(3, 32, 3, 2)], 32
    for widening, out, count, stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for number in range(count):
            layers.append(Inverted(channels, out, 1 if number else stride, widening))
            channels = out
    return nn.Sequential(
        *layers, *_unit(channels, 1280, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2),
        nn.Linear(1280, classes),
    )  # fmt: skip


class UNet(nn.Module):
    """Two levels down and up again: one by a transposed convolution, one by doubling and bilinear interpolation."""

    def __init__(self, width: int = 8, classes: int = 3) -> None:
        super().__init__()
        self.down1, self.down2 = self._pair(3, width), self._pair(width, 2 * width)
        self.bottom = self._pair(2 * width, 4 * width)
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2)
        self.right2 = self._pair(4 * width, 2 * width)
        self.up1 = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.right1 = self._pair(3 * width, width)
        self.last = nn.Conv2d(width, classes, 1)

    @staticmethod
    def _pair(channels: int, out: int) -> Any:
        return nn.Sequential(
            nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(),
            nn.Conv2d(out, out, 3, padding=1), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: Any) -> Any:
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        h = self.up2(self.bottom(F.max_pool2d(second, 2)))
        h = self.right2(torch.cat([second, h], 1))
        h = self.right1(torch.cat([first, self.up1(h)], 1))
        return self.last(h)


NETS: dict[str, tuple[Callable[[], Any], int]] = {
    "resnet18": (lambda: peers.resnet(18), 32),
    "mobilenet_v2": (mobilenet_v2, 32),
    "unet": (UNet, 24),
}


# The newer exporter takes tens of seconds for the larger nets.
CASES = [
    pytest.param(name, dynamo, id=f"{name}-{exporter}", marks=full_only if dynamo and name != "unet" else ())
    for name in NETS
    for exporter, dynamo in {"script": False, "dynamo": True}.items()
]


@pytest.mark.parametrize(("name", "dynamo"), CASES)
def test_the_outputs_are_pytorchs(name: str, dynamo: bool) -> None:
    make, size = NETS[name]
    torch.manual_seed(SEED)
    net, x = make(), torch.randn(LARGEST, 3, size, size)
    net.train()
    with torch.no_grad():
        for _ in range(
            20
        ):  # so that statistics are those of these images, and values neither vanish nor grow
            net(torch.randn(8, 3, size, size))
    net.eval()
    model = gc.onnx.load(exported(torch, net, x, dynamo))
    (fed,), (output,) = model.inputs, model.outputs
    module = gc.compile(model.outputs, batch=LARGEST)
    for batch in (1, LARGEST):
        wanted = net(x[:batch]).detach().numpy()
        found = module.predict(**{fed: x[:batch].numpy()})[output]
        assert found.shape == wanted.shape
        assert np.std(wanted) > 0.05 * np.abs(wanted).max()
        # float32 sums of up to 4608 terms in some twenty layers, of the largest output
        assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
