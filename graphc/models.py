"""The nets that the field grew up with, as plain functions of a tensor that return logits.

Layers carry the names of the PyTorch modules of the same architecture (torchvision's where it has one), so
that weights move over by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from graphc.errors import RangeError
from graphc.graph.node import Node
from graphc.initialisers import HeNormal
from graphc.nn import (
    adaptive_avg_pool2d,
    avg_pool2d,
    batch_norm,
    conv2d,
    dropout,
    flatten,
    global_avg_pool2d,
    linear,
    local_response_norm,
    max_pool2d,
)
from graphc.ops.elementwise import relu, tanh
from graphc.ops.movement import concat, pad

Activation = Callable[[Node], Node]


def mlp(
    x: Node, classes: int = 10, hidden: Sequence[int] = (512, 512), activation: Activation = relu
) -> Node:
    """Return a multilayer perceptron: flatten, then hidden layers ``fc1``, ``fc2``, ... and the output."""
    h = flatten(x)
    for number, width in enumerate(hidden, 1):
        h = activation(linear(h, width, name=f"fc{number}"))
    return linear(h, classes, name=f"fc{len(hidden) + 1}")


def lenet(x: Node, classes: int = 10) -> Node:
    """Return LeNet-5 as it is taught today: ReLU and max pooling. Shapes: x (N, 1, 32, 32)."""
    h = max_pool2d(relu(conv2d(x, 6, 5, name="conv1")), 2)
    h = max_pool2d(relu(conv2d(h, 16, 5, name="conv2")), 2)
    h = relu(linear(flatten(h), 120, name="fc1"))
    h = relu(linear(h, 84, name="fc2"))
    return linear(h, classes, name="fc3")


def lenet_1998(x: Node, classes: int = 10) -> Node:
    """Return LeNet-5 with tanh and average pooling, every map connected to every map.

    Shapes: x (N, 1, 32, 32). Source: LeCun, Bottou, Bengio and Haffner 1998, section II.B.
    """
    h = avg_pool2d(tanh(conv2d(x, 6, 5, name="conv1")), 2)
    h = avg_pool2d(tanh(conv2d(h, 16, 5, name="conv2")), 2)
    h = tanh(linear(flatten(h), 120, name="fc1"))
    h = tanh(linear(h, 84, name="fc2"))
    return linear(h, classes, name="fc3")


def alexnet(x: Node, classes: int = 1000, *, drop: float = 0.5) -> Node:
    """Return the one-column AlexNet. Shapes: x (N, 3, 224, 224). Source: Krizhevsky 2014."""
    h = max_pool2d(relu(conv2d(x, 64, 11, stride=4, padding=2, name="features.0")), 3, 2)
    h = max_pool2d(relu(conv2d(h, 192, 5, padding=2, name="features.3")), 3, 2)
    h = relu(conv2d(h, 384, 3, padding=1, name="features.6"))
    h = relu(conv2d(h, 256, 3, padding=1, name="features.8"))
    h = max_pool2d(relu(conv2d(h, 256, 3, padding=1, name="features.10")), 3, 2)
    h = flatten(adaptive_avg_pool2d(h, 6))
    h = relu(linear(dropout(h, drop), 4096, name="classifier.1"))
    h = relu(linear(dropout(h, drop), 4096, name="classifier.4"))
    return linear(h, classes, name="classifier.6")


def alexnet_2012(x: Node, classes: int = 1000, *, drop: float = 0.5) -> Node:
    """Return AlexNet as published, its two columns as groups, with local response normalisation.

    Shapes: x (N, 3, 227, 227). Source: Krizhevsky, Sutskever and Hinton 2012, section 3.
    """
    h = local_response_norm(relu(conv2d(x, 96, 11, stride=4, name="conv1")), 5, alpha=5e-4, beta=0.75, k=2.0)
    h = relu(conv2d(max_pool2d(h, 3, 2), 256, 5, padding=2, groups=2, name="conv2"))
    h = max_pool2d(local_response_norm(h, 5, alpha=5e-4, beta=0.75, k=2.0), 3, 2)
    h = relu(conv2d(h, 384, 3, padding=1, name="conv3"))
    h = relu(conv2d(h, 384, 3, padding=1, groups=2, name="conv4"))
    h = max_pool2d(relu(conv2d(h, 256, 3, padding=1, groups=2, name="conv5")), 3, 2)
    h = dropout(relu(linear(flatten(h), 4096, name="fc6")), drop)
    h = dropout(relu(linear(h, 4096, name="fc7")), drop)
    return linear(h, classes, name="fc8")


_VGG = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


def vgg(
    x: Node,
    classes: int = 1000,
    *,
    depth: int = 16,
    norm: bool = False,
    width: int = 64,
    hidden: int = 4096,
    drop: float = 0.5,
) -> Node:
    """Return VGG-11, -13, -16 or -19 (configurations A, B, D, E), with batch norm if asked for.

    Shapes: x (N, 3, 224, 224), or smaller multiples of 32. ``width`` and ``hidden`` slim the net.
    Source: Simonyan and Zisserman 2015, table 1.

    Raises:
        RangeError: there is no such depth.
    """
    if depth not in _VGG:
        raise RangeError(f"vgg: depth {depth} is not one of {', '.join(map(str, _VGG))}")
    h, layer = x, 0
    for stage, count in enumerate(_VGG[depth]):
        for _ in range(count):
            h = conv2d(
                h,
                width * min(8, 2**stage),
                3,
                padding=1,
                name=f"features.{layer}",
                weight=HeNormal("fan_out"),
            )
            h = relu(batch_norm(h, name=f"features.{layer + 1}") if norm else h)
            layer += 3 if norm else 2
        h, layer = max_pool2d(h, 2), layer + 1
    h = flatten(adaptive_avg_pool2d(h, 7)) if hidden == 4096 else flatten(h)
    h = dropout(relu(linear(h, hidden, name="classifier.0")), drop)
    h = dropout(relu(linear(h, hidden, name="classifier.3")), drop)
    return linear(h, classes, name="classifier.6")


def vgg11(x: Node, classes: int = 1000, *, norm: bool = False, drop: float = 0.5) -> Node:
    """Return VGG-11."""
    return vgg(x, classes, depth=11, norm=norm, drop=drop)


def vgg13(x: Node, classes: int = 1000, *, norm: bool = False, drop: float = 0.5) -> Node:
    """Return VGG-13."""
    return vgg(x, classes, depth=13, norm=norm, drop=drop)


def vgg16(x: Node, classes: int = 1000, *, norm: bool = False, drop: float = 0.5) -> Node:
    """Return VGG-16."""
    return vgg(x, classes, depth=16, norm=norm, drop=drop)


def vgg19(x: Node, classes: int = 1000, *, norm: bool = False, drop: float = 0.5) -> Node:
    """Return VGG-19."""
    return vgg(x, classes, depth=19, norm=norm, drop=drop)


class GoogLeNetLogits(NamedTuple):
    """The logits of GoogLeNet, and those of its two auxiliary classifiers."""

    logits: Node
    aux1: Node
    aux2: Node


@dataclass(frozen=True)
class _Unit:
    """How GoogLeNet's convolutions are built: with batch norm (and no bias) or with a bias."""

    norm: bool

    def __call__(
        self, x: Node, channels: int, kernel: int, name: str, stride: int = 1, padding: int = 0
    ) -> Node:
        """Return convolution, batch norm if chosen, ReLU."""
        h = conv2d(
            x, channels, kernel, stride=stride, padding=padding, bias=not self.norm, name=f"{name}.conv"
        )
        return relu(batch_norm(h, eps=1e-3, name=f"{name}.bn") if self.norm else h)


# Columns of table 1: 1x1; 3x3 reduced, 3x3; 5x5 reduced, 5x5; projection of the pooled input.
_INCEPTION = {
    "3a": (64, 96, 128, 16, 32, 32), "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64), "4b": (160, 112, 224, 24, 64, 64), "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64), "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128), "5b": (384, 192, 384, 48, 128, 128),
}  # fmt: skip


def _inception(x: Node, block: str, unit: _Unit, kernel: int) -> Node:
    one, reduce3, three, reduce5, five, project = _INCEPTION[block]
    name = f"inception{block}"
    return concat(
        [
            unit(x, one, 1, f"{name}.branch1"),
            unit(unit(x, reduce3, 1, f"{name}.branch2.0"), three, 3, f"{name}.branch2.1", padding=1),
            unit(
                unit(x, reduce5, 1, f"{name}.branch3.0"),
                five,
                kernel,
                f"{name}.branch3.1",
                padding=kernel // 2,
            ),
            unit(max_pool2d(x, 3, 1, 1, ceil_mode=True), project, 1, f"{name}.branch4.1"),
        ],
        axis=1,
    )


def _auxiliary(x: Node, classes: int, name: str, unit: _Unit, drop: float) -> Node:
    h = unit(adaptive_avg_pool2d(x, 4), 128, 1, f"{name}.conv")
    h = dropout(relu(linear(flatten(h), 1024, name=f"{name}.fc1")), drop)
    return linear(h, classes, name=f"{name}.fc2")


def googlenet_with_heads(
    x: Node,
    classes: int = 1000,
    *,
    norm: bool = True,
    kernel: int = 5,
    drop: float = 0.4,
    head_drop: float = 0.7,
) -> GoogLeNetLogits:
    """Return GoogLeNet with its auxiliary classifiers: train on loss + 0.3 * (aux1 + aux2).

    Shapes: x (N, 3, 224, 224). ``kernel`` is that of the third branch: 5 as in the paper, or 3 as in
    torchvision. ``head_drop`` is the dropout of the auxiliary classifiers.
    Source: Szegedy et al. 2015, table 1 and section 5; batch norm after Ioffe and Szegedy 2015.

    Raises:
        RangeError: the kernel is neither 3 nor 5.
    """
    if kernel not in (3, 5):
        raise RangeError(f"googlenet: the third branch has kernel 5 (paper) or 3 (torchvision), got {kernel}")
    unit = _Unit(norm)
    h = max_pool2d(unit(x, 64, 7, "conv1", 2, 3), 3, 2, ceil_mode=True)
    h = unit(unit(h, 64, 1, "conv2"), 192, 3, "conv3", padding=1)
    h = max_pool2d(h, 3, 2, ceil_mode=True)
    h = _inception(_inception(h, "3a", unit, kernel), "3b", unit, kernel)
    first = h = _inception(max_pool2d(h, 3, 2, ceil_mode=True), "4a", unit, kernel)
    for block in ("4b", "4c", "4d"):
        second = h = _inception(h, block, unit, kernel)
    h = max_pool2d(_inception(h, "4e", unit, kernel), 2, 2, ceil_mode=True)
    h = _inception(_inception(h, "5a", unit, kernel), "5b", unit, kernel)
    logits = linear(dropout(flatten(global_avg_pool2d(h)), drop), classes, name="fc")
    return GoogLeNetLogits(
        logits,
        _auxiliary(first, classes, "aux1", unit, head_drop),
        _auxiliary(second, classes, "aux2", unit, head_drop),
    )


def googlenet(x: Node, classes: int = 1000, *, norm: bool = True, kernel: int = 5, drop: float = 0.4) -> Node:
    """Return GoogLeNet's logits without auxiliary classifiers; see :func:`googlenet_with_heads`."""
    return googlenet_with_heads(x, classes, norm=norm, kernel=kernel, drop=drop).logits


def _conv_norm(x: Node, channels: int, kernel: int, stride: int, names: tuple[str, str]) -> Node:
    h = conv2d(
        x,
        channels,
        kernel,
        stride=stride,
        padding=kernel // 2,
        bias=False,
        name=names[0],
        weight=HeNormal("fan_out"),
    )
    return batch_norm(h, name=names[1])


def _shortcut(x: Node, channels: int, stride: int, name: str) -> Node:
    """Return x, projected by a 1x1 convolution where its shape changes (option B of the paper)."""
    if stride == 1 and x.shape[1] == channels:
        return x
    return _conv_norm(x, channels, 1, stride, (f"{name}.downsample.0", f"{name}.downsample.1"))


def _basic(x: Node, channels: int, stride: int, name: str) -> Node:
    h = relu(_conv_norm(x, channels, 3, stride, (f"{name}.conv1", f"{name}.bn1")))
    h = _conv_norm(h, channels, 3, 1, (f"{name}.conv2", f"{name}.bn2"))
    return relu(h + _shortcut(x, channels, stride, name))


def _bottleneck(x: Node, channels: int, stride: int, name: str) -> Node:
    h = relu(_conv_norm(x, channels, 1, 1, (f"{name}.conv1", f"{name}.bn1")))
    h = relu(_conv_norm(h, channels, 3, stride, (f"{name}.conv2", f"{name}.bn2")))
    h = _conv_norm(h, 4 * channels, 1, 1, (f"{name}.conv3", f"{name}.bn3"))
    return relu(h + _shortcut(x, 4 * channels, stride, name))


_RESNET = {
    18: (_basic, (2, 2, 2, 2)),
    34: (_basic, (3, 4, 6, 3)),
    50: (_bottleneck, (3, 4, 6, 3)),
    101: (_bottleneck, (3, 4, 23, 3)),
    152: (_bottleneck, (3, 8, 36, 3)),
}


def resnet(x: Node, classes: int = 1000, *, depth: int = 50) -> Node:
    """Return ResNet-18, -34, -50, -101 or -152; bottlenecks stride in their 3x3 convolution.

    Shapes: x (N, 3, 224, 224). Source: He et al. 2016, table 1.

    Raises:
        RangeError: there is no such depth.
    """
    if depth not in _RESNET:
        raise RangeError(f"resnet: depth {depth} is not one of {', '.join(map(str, _RESNET))}")
    block, counts = _RESNET[depth]
    h = max_pool2d(relu(_conv_norm(x, 64, 7, 2, ("conv1", "bn1"))), 3, 2, 1)
    for stage, count in enumerate(counts):
        for number in range(count):
            stride = 2 if stage > 0 and number == 0 else 1
            h = block(h, 64 * 2**stage, stride, f"layer{stage + 1}.{number}")
    return linear(flatten(global_avg_pool2d(h)), classes, name="fc")


def resnet18(x: Node, classes: int = 1000) -> Node:
    """Return ResNet-18."""
    return resnet(x, classes, depth=18)


def resnet34(x: Node, classes: int = 1000) -> Node:
    """Return ResNet-34."""
    return resnet(x, classes, depth=34)


def resnet50(x: Node, classes: int = 1000) -> Node:
    """Return ResNet-50."""
    return resnet(x, classes, depth=50)


def resnet101(x: Node, classes: int = 1000) -> Node:
    """Return ResNet-101."""
    return resnet(x, classes, depth=101)


def resnet152(x: Node, classes: int = 1000) -> Node:
    """Return ResNet-152."""
    return resnet(x, classes, depth=152)


def resnet_cifar(x: Node, classes: int = 10, *, depth: int = 20, width: int = 16) -> Node:
    """Return the ResNets for small images with 6n + 2 layers: 20, 32, 44, 56.

    Shapes: x (N, C, 32, 32) or (N, C, 28, 28). Shortcuts that change shape take every second pixel and pad
    with zero channels. Source: He et al. 2016, section 4.2 and option A.

    Raises:
        RangeError: the depth is not 6n + 2.
    """
    if depth < 8 or (depth - 2) % 6:
        raise RangeError(f"resnet_cifar: depth must be 6n + 2, got {depth}")
    h = relu(_conv_norm(x, width, 3, 1, ("conv1", "bn1")))
    for stage in range(3):
        for number in range((depth - 2) // 6):
            stride = 2 if stage > 0 and number == 0 else 1
            name = f"layer{stage + 1}.{number}"
            inner = relu(_conv_norm(h, width * 2**stage, 3, stride, (f"{name}.conv1", f"{name}.bn1")))
            inner = _conv_norm(inner, width * 2**stage, 3, 1, (f"{name}.conv2", f"{name}.bn2"))
            h = relu(inner + (h if stride == 1 else _padded_shortcut(h)))
    return linear(flatten(global_avg_pool2d(h)), classes, name="fc")


def _padded_shortcut(x: Node) -> Node:
    channels = x.shape[1]
    assert isinstance(channels, int)
    return pad(x[:, :, ::2, ::2], ((0, 0), (channels // 2, channels - channels // 2), (0, 0), (0, 0)))


__all__ = [
    "GoogLeNetLogits", "alexnet", "alexnet_2012", "googlenet", "googlenet_with_heads", "lenet", "lenet_1998",
    "mlp", "resnet", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet_cifar", "vgg",
    "vgg11", "vgg13", "vgg16", "vgg19",
]  # fmt: skip
