"""The nets and single convolutions that are compared: their inputs, and how graphc and PyTorch build them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

TESTS = Path(__file__).resolve().parents[1] / "tests"  # PyTorch's side of the nets: tests/torch_nets.py


@dataclass(frozen=True)
class Net:
    """A net: shape of one sample, classes, the batch beside 1, and whether training draws random numbers."""

    shape: tuple[int, int, int]
    classes: int
    batch: int
    graph: Callable[[Any, Any], Any]  # (graphc, x) -> logits
    torch: Callable[[Any], Any]  # (tests/torch_nets.py) -> module
    dropout: bool = False


def _imagenet(graph: Callable[[Any, Any], Any], torch: Callable[[Any], Any], *, dropout: bool = False) -> Net:
    return Net((3, 224, 224), 1000, 16, graph, torch, dropout)


NETS = {
    "mlp": Net((1, 28, 28), 10, 64, lambda gc, x: gc.models.mlp(x), lambda peers: peers.mlp(784, (512, 512))),
    "lenet": Net((1, 32, 32), 10, 64, lambda gc, x: gc.models.lenet(x), lambda peers: peers.lenet()),
    "alexnet": _imagenet(lambda gc, x: gc.models.alexnet(x), lambda peers: peers.alexnet(), dropout=True),
    "vgg16": _imagenet(lambda gc, x: gc.models.vgg16(x), lambda peers: peers.vgg(16), dropout=True),
    "googlenet": _imagenet(
        lambda gc, x: gc.models.googlenet(x), lambda peers: peers.GoogLeNet(heads=False), dropout=True
    ),
    "resnet18": _imagenet(lambda gc, x: gc.models.resnet18(x), lambda peers: peers.resnet(18)),
    "resnet50": _imagenet(lambda gc, x: gc.models.resnet50(x), lambda peers: peers.resnet(50)),
}


@dataclass(frozen=True)
class Convolution:
    """A convolution with a bias. Shapes: input (N, channels, height, width), weight (out, ...kernel)."""

    channels: int
    height: int
    width: int
    out: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def __str__(self) -> str:
        """Return ``64x56x56 -> 128, 3x3/2``."""
        text = f"{self.channels}x{self.height}x{self.width} -> {self.out}, {self.kernel[0]}x{self.kernel[1]}"
        text += f"/{self.stride[0]}" if self.stride != (1, 1) else ""
        return text + (f", groups {self.groups}" if self.groups != 1 else "")

    def net(self) -> Net:
        """Return the net of this layer alone."""
        pads = tuple((p, p) for p in self.padding)

        def graph(gc: Any, x: Any) -> Any:
            return gc.nn.conv2d(
                x, self.out, self.kernel, stride=self.stride, padding=pads, dilation=self.dilation,
                groups=self.groups, name="conv1",
            )  # fmt: skip

        def torch(peers: Any) -> Any:
            return peers.Net(
                conv1=peers.nn.Conv2d(
                    self.channels, self.out, self.kernel, self.stride, self.padding, self.dilation,
                    self.groups,
                )
            )  # fmt: skip

        return Net((self.channels, self.height, self.width), 0, 16, graph, torch)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, from which ``net_of`` finds the layer again."""
        return asdict(self)


def net_of(case: dict[str, Any]) -> Net:
    """Return the net of a case, by its name or by the convolution it holds."""
    if "conv" not in case:
        return NETS[case["net"]]
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in case["conv"].items()}
    return Convolution(**fields).net()


def convolutions(name: str) -> dict[Convolution, int]:
    """Return the distinct convolutions of a net, in order, and how often it has each."""
    import graphc as gc
    from graphc.graph.node import topological
    from graphc.ops.conv2d import Conv2d

    x = gc.input("x", ("N", *NETS[name].shape))
    found: Counter[Convolution] = Counter()
    for node in topological([NETS[name].graph(gc, x)]):
        if isinstance(node.op, Conv2d):
            geometry, (_, channels, height, width) = node.op.geometry, node.inputs[0].shape
            (top, bottom), (left, right) = geometry.padding
            assert (top, left) == (bottom, right)
            out, _, *kernel = node.inputs[1].shape
            found[
                Convolution(
                    channels, height, width, out, tuple(kernel), geometry.stride, (top, left),
                    geometry.dilation, geometry.groups,
                )
            ] += 1  # fmt: skip
    return dict(found)


def inputs(case: dict[str, Any], batch: int | None = None) -> dict[str, np.ndarray]:
    """Return the same images and labels in every process."""
    net, rng = net_of(case), np.random.default_rng(0)
    count = batch or case["batch"]
    images = rng.standard_normal((count, *net.shape), dtype=np.float32)
    return {"x": images, "y": rng.integers(0, max(1, net.classes), count).astype(np.int32)}


def torch_nets() -> Any:
    """Return the module with PyTorch's side of the nets."""
    if str(TESTS) not in sys.path:
        sys.path.append(str(TESTS))
    import torch_nets as peers

    return peers
