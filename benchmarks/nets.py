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


@dataclass(frozen=True)
class Product:
    """A matrix product: (rows, depth) by (depth, columns), the second of which are weights."""

    rows: int
    columns: int
    depth: int

    def __str__(self) -> str:
        """Return ``64x512x784``: rows, columns, depth."""
        return f"{self.rows}x{self.columns}x{self.depth}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


def _conv(case: dict[str, Any]) -> Convolution:
    return Convolution(**{k: tuple(v) if isinstance(v, list) else v for k, v in case["conv"].items()})


def net_of(case: dict[str, Any]) -> Net:
    """Return the net of a case, by its name or by the convolution it holds."""
    if "conv" not in case:
        return NETS[case["net"]]
    return _conv(case).net()


def kernel_of(gc: Any, case: dict[str, Any]) -> Any:
    """Return the result of one kernel: of the "conv" or "product" of a case, or of one of its two gradients.

    Weights are parameters, so that they are packed, or flipped and packed, before the call, once for all calls.
    """
    from graphc.ops.conv2d import Conv2d, Conv2dBackwardData, Conv2dBackwardWeight, ConvGeometry
    from graphc.ops.matmul import matmul
    from graphc.ops.movement import transpose

    if "product" in case:
        product = Product(**case["product"])
        x, weight = gc.input("x", ("N", product.depth)), _weights(gc, (product.depth, product.columns))
        grad = gc.input("grad", ("N", product.columns))
        results = {
            "forward": lambda: matmul(x, weight),
            "input": lambda: matmul(grad, transpose(weight, (1, 0))),
            "weights": lambda: matmul(transpose(x, (1, 0)), grad),
        }
    else:
        conv = _conv(case)
        pads = (conv.padding[0],) * 2, (conv.padding[1],) * 2
        geometry = ConvGeometry(conv.stride, pads, conv.dilation, conv.groups)
        x = gc.input("x", ("N", conv.channels, conv.height, conv.width))
        weight = _weights(gc, (conv.out, conv.channels // conv.groups, *conv.kernel))
        grad = gc.input("grad", ("N", *Conv2d(geometry)(x, weight).shape[1:]))
        results = {
            "forward": lambda: Conv2d(geometry)(x, weight),
            "input": lambda: Conv2dBackwardData(geometry, x.shape)(grad, weight),
            "weights": lambda: Conv2dBackwardWeight(geometry, weight.shape)(x, grad),
        }
    return results[case["mode"]]()


def _weights(gc: Any, shape: tuple[int, ...]) -> Any:
    return gc.parameter("weight", shape, np.random.default_rng(1).standard_normal(shape, dtype=np.float32))


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
