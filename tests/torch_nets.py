"""PyTorch peers of the ready-made nets, and what the tests that compare the two share.

The peers follow the papers, and their parameters and buffers have graphc's names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import graphc as gc

    Logits: TypeAlias = gc.Tensor | gc.models.GoogLeNetLogits

# Neither graphc nor pytest is loaded with the nets alone: benchmarks measure what PyTorch's process takes.
try:
    import torch
except ModuleNotFoundError:
    import pytest

    pytest.skip("PyTorch is not installed", allow_module_level=True)
nn, F = torch.nn, torch.nn.functional


class Net(nn.Module):
    """Layers under their names, in the order in which they are applied; names without weights are free."""

    def __init__(self, **layers: Any) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Any) -> Any:
        for layer in self.children():
            x = layer(x)
        return x


# ---------------------------------------------------------------- plain chains


def mlp(size: int, hidden: Sequence[int], classes: int = 10, activation: Callable[[], Any] = nn.ReLU) -> Any:
    layers: dict[str, Any] = {"flatten": nn.Flatten()}
    for number, width in enumerate(hidden, 1):
        layers |= {f"fc{number}": nn.Linear(size, width), f"act{number}": activation()}
        size = width
    return Net(**layers, **{f"fc{len(hidden) + 1}": nn.Linear(size, classes)})


def _lenet(activation: Callable[[], Any], pool: Callable[[int], Any], classes: int) -> Any:
    return Net(
        conv1=nn.Conv2d(1, 6, 5), act1=activation(), pool1=pool(2),
        conv2=nn.Conv2d(6, 16, 5), act2=activation(), pool2=pool(2), flatten=nn.Flatten(),
        fc1=nn.Linear(16 * 5 * 5, 120), act3=activation(),
        fc2=nn.Linear(120, 84), act4=activation(), fc3=nn.Linear(84, classes),
    )  # fmt: skip


def lenet(classes: int = 10) -> Any:
    return _lenet(nn.ReLU, nn.MaxPool2d, classes)


def lenet_1998(classes: int = 10) -> Any:
    return _lenet(nn.Tanh, nn.AvgPool2d, classes)


def alexnet(classes: int = 1000, drop: float = 0.5) -> Any:
    return Net(
        features=nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
        ),
        pool=nn.AdaptiveAvgPool2d(6), flatten=nn.Flatten(),
        classifier=nn.Sequential(
            nn.Dropout(drop), nn.Linear(256 * 6 * 6, 4096), nn.ReLU(),
            nn.Dropout(drop), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, classes),
        ),
    )  # fmt: skip


class ResponseNorm(nn.Module):
    """The formula of the 2012 paper, section 3.3, with its constants: alpha multiplies the plain sum."""

    def forward(self, x: Any) -> Any:
        n, k, alpha, beta = 5, 2.0, 1e-4, 0.75
        squares = F.pad(x * x, (0, 0, 0, 0, n // 2, n // 2))
        total = sum(squares[:, i : i + x.shape[1]] for i in range(n))
        return x / (k + alpha * total) ** beta


def alexnet_2012(size: int = 227, classes: int = 1000, drop: float = 0.5) -> Any:
    """Return the net for images of ``size`` pixels; the paper's is 227."""
    left = (size - 11) // 4 + 1
    for _ in range(3):
        left = (left - 3) // 2 + 1
    return Net(
        conv1=nn.Conv2d(3, 96, 11, stride=4), relu1=nn.ReLU(), norm1=ResponseNorm(),
        pool1=nn.MaxPool2d(3, 2),
        conv2=nn.Conv2d(96, 256, 5, padding=2, groups=2), relu2=nn.ReLU(), norm2=ResponseNorm(),
        pool2=nn.MaxPool2d(3, 2),
        conv3=nn.Conv2d(256, 384, 3, padding=1), relu3=nn.ReLU(),
        conv4=nn.Conv2d(384, 384, 3, padding=1, groups=2), relu4=nn.ReLU(),
        conv5=nn.Conv2d(384, 256, 3, padding=1, groups=2), relu5=nn.ReLU(),
        pool5=nn.MaxPool2d(3, 2), flatten=nn.Flatten(),
        fc6=nn.Linear(256 * left * left, 4096), relu6=nn.ReLU(), drop6=nn.Dropout(drop),
        fc7=nn.Linear(4096, 4096), relu7=nn.ReLU(), drop7=nn.Dropout(drop), fc8=nn.Linear(4096, classes),
    )  # fmt: skip


# Output channels in units of the width, by stage; a stage ends with max pooling.
VGG = {
    11: ((1,), (2,), (4, 4), (8, 8), (8, 8)),
    13: ((1, 1), (2, 2), (4, 4), (8, 8), (8, 8)),
    16: ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8)),
    19: ((1, 1), (2, 2), (4, 4, 4, 4), (8, 8, 8, 8), (8, 8, 8, 8)),
}


def vgg(
    depth: int, norm: bool = False, classes: int = 1000, drop: float = 0.5, *,
    size: int = 224, width: int = 64, hidden: int = 4096,
) -> Any:  # fmt: skip
    """Return VGG; with fewer hidden units than published the features are not pooled to 7 x 7 first."""
    layers: list[Any] = []
    channels = 3
    for stage in VGG[depth]:
        for multiple in stage:
            layers.append(nn.Conv2d(channels, multiple * width, 3, padding=1))
            channels = multiple * width
            layers += [nn.BatchNorm2d(channels), nn.ReLU()] if norm else [nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
    side = 7 if hidden == 4096 else size // 32
    return Net(
        features=nn.Sequential(*layers),
        pool=nn.AdaptiveAvgPool2d(side),
        flatten=nn.Flatten(),
        classifier=nn.Sequential(
            nn.Linear(channels * side * side, hidden), nn.ReLU(), nn.Dropout(drop),
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(drop), nn.Linear(hidden, classes),
        ),
    )  # fmt: skip


# ---------------------------------------------------------------- GoogLeNet


def _unit(norm: bool) -> Callable[..., Any]:
    """Return a function that makes convolution, batch norm if chosen, ReLU."""

    def unit(channels: int, out: int, kernel: int, stride: int = 1, padding: int = 0) -> Any:
        conv = nn.Conv2d(channels, out, kernel, stride, padding, bias=not norm)
        return Net(conv=conv, **({"bn": nn.BatchNorm2d(out, eps=1e-3)} if norm else {}), relu=nn.ReLU())

    return unit


class Inception(nn.Module):
    def __init__(self, channels: int, row: Sequence[int], unit: Callable[..., Any], kernel: int) -> None:
        super().__init__()
        one, before3, three, before5, five, pooled = row
        self.branch1 = unit(channels, one, 1)
        self.branch2 = nn.Sequential(unit(channels, before3, 1), unit(before3, three, 3, padding=1))
        self.branch3 = nn.Sequential(
            unit(channels, before5, 1), unit(before5, five, kernel, padding=(kernel - 1) // 2)
        )
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1), unit(channels, pooled, 1))

    def forward(self, x: Any) -> Any:
        return torch.cat([branch(x) for branch in self.children()], 1)


class GoogLeNet(nn.Module):
    """Return logits alone, or with those of the heads: (logits, aux1, aux2)."""

    def __init__(
        self, classes: int = 1000, *, norm: bool = True, kernel: int = 5, drop: float = 0.4,
        head_drop: float = 0.7, heads: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        unit = _unit(norm)
        self.conv1 = unit(3, 64, 7, 2, 3)
        self.conv2 = unit(64, 64, 1)
        self.conv3 = unit(64, 192, 3, padding=1)
        channels = 192
        for block, row in {
            "3a": (64, 96, 128, 16, 32, 32),
            "3b": (128, 128, 192, 32, 96, 64),
            "4a": (192, 96, 208, 16, 48, 64),
            "4b": (160, 112, 224, 24, 64, 64),
            "4c": (128, 128, 256, 24, 64, 64),
            "4d": (112, 144, 288, 32, 64, 64),
            "4e": (256, 160, 320, 32, 128, 128),
            "5a": (256, 160, 320, 32, 128, 128),
            "5b": (384, 192, 384, 48, 128, 128),
        }.items():
            self.add_module(f"inception{block}", Inception(channels, row, unit, kernel))
            channels = row[0] + row[2] + row[4] + row[5]
        for name, width in {"aux1": 512, "aux2": 528}.items() if heads else ():
            head = Net(
                pool=nn.AdaptiveAvgPool2d(4), conv=unit(width, 128, 1), flatten=nn.Flatten(),
                fc1=nn.Linear(128 * 4 * 4, 1024), relu=nn.ReLU(), drop=nn.Dropout(head_drop),
                fc2=nn.Linear(1024, classes),
            )  # fmt: skip
            self.add_module(name, head)
        self.drop, self.fc, self.heads = nn.Dropout(drop), nn.Linear(channels, classes), heads

    def forward(self, x: Any) -> Any:
        pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        h = pool(self.conv3(self.conv2(pool(self.conv1(x)))))
        h = pool(self.inception3b(self.inception3a(h)))
        first = self.inception4a(h)
        second = self.inception4d(self.inception4c(self.inception4b(first)))
        h = F.max_pool2d(self.inception4e(second), 2, ceil_mode=True)
        h = self.inception5b(self.inception5a(h))
        logits = self.fc(self.drop(h.mean((2, 3))))
        return (logits, self.aux1(first), self.aux2(second)) if self.heads else logits


# ---------------------------------------------------------------- residual nets


class Residual(nn.Module):
    """Convolutions with batch norm named conv1, bn1, ..., ReLU between them and after the sum."""

    def __init__(self, layers: Sequence[tuple[int, int, int, int]], shortcut: Any) -> None:
        """Take (channels, out, kernel, stride) of each convolution, and the shortcut or None."""
        super().__init__()
        self.count = len(layers)
        for number, (channels, out, kernel, stride) in enumerate(layers, 1):
            conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False)
            self.add_module(f"conv{number}", conv)
            self.add_module(f"bn{number}", nn.BatchNorm2d(out))
        self.downsample = shortcut

    def forward(self, x: Any) -> Any:
        h = x
        for number in range(1, self.count + 1):
            h = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(h))
            h = F.relu(h) if number < self.count else h
        return F.relu(h + (x if self.downsample is None else self.downsample(x)))


RESNET = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def resnet(depth: int, classes: int = 1000) -> Any:
    stages: dict[str, Any] = {}
    channels = 64
    for stage, count in enumerate(RESNET[depth]):
        inner = 64 << stage
        out = inner if depth < 50 else 4 * inner
        blocks = []
        for number in range(count):
            stride = 2 if stage and not number else 1
            shortcut = None
            if channels != out:
                shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
            layers = [(channels, inner, 3, stride), (inner, inner, 3, 1)]
            if depth >= 50:
                layers = [(channels, inner, 1, 1), (inner, inner, 3, stride), (inner, out, 1, 1)]
            blocks.append(Residual(layers, shortcut))
            channels = out
        stages[f"layer{stage + 1}"] = nn.Sequential(*blocks)
    return Net(
        conv1=nn.Conv2d(3, 64, 7, 2, 3, bias=False), bn1=nn.BatchNorm2d(64), relu=nn.ReLU(),
        maxpool=nn.MaxPool2d(3, 2, 1), **stages,
        pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(channels, classes),
    )  # fmt: skip


class PaddedShortcut(nn.Module):
    """Option A of the paper: every second pixel, and zeros for the new channels, half on either side."""

    def forward(self, x: Any) -> Any:
        new = x.shape[1] // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, new, new))


def resnet_cifar(depth: int, classes: int = 10, channels: int = 3, width: int = 16) -> Any:
    stages: dict[str, Any] = {}
    inputs = width
    for stage in range(3):
        out, blocks = width << stage, []
        for number in range((depth - 2) // 6):
            first = stage > 0 and number == 0
            layers = [(inputs, out, 3, 2 if first else 1), (out, out, 3, 1)]
            blocks.append(Residual(layers, PaddedShortcut() if first else None))
            inputs = out
        stages[f"layer{stage + 1}"] = nn.Sequential(*blocks)
    return Net(
        conv1=nn.Conv2d(channels, width, 3, padding=1, bias=False), bn1=nn.BatchNorm2d(width),
        relu=nn.ReLU(), **stages,
        pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(inputs, classes),
    )  # fmt: skip


# ---------------------------------------------------------------- both sides


def compile_net(
    build: Callable[[gc.Tensor], Logits], shape: Sequence[int], batch: int, dtype: str,
    optimizer: gc.SGD | None, options: gc.BuildOptions | None = None,
) -> gc.Module:  # fmt: skip
    """Return the net compiled with cross-entropy, heads at 0.3 of it, on inputs x and y."""
    import graphc as gc

    x = gc.input("x", ("N", *shape))
    y = gc.input("y", ("N",), dtype="int32")
    out = build(x)
    outputs = out._asdict() if isinstance(out, gc.models.GoogLeNetLogits) else {"logits": out}
    losses = [gc.losses.cross_entropy(logits, y) for logits in outputs.values()]
    loss = losses[0] + 0.3 * (losses[1] + losses[2]) if len(losses) == 3 else losses[0]
    return gc.compile(outputs, loss=loss, optimizer=optimizer, batch=batch, dtype=dtype, build=options)


def peer_loss(out: Any, y: Any) -> Any:
    """Return the same loss of what the peer returned."""
    if isinstance(out, tuple):
        logits, aux1, aux2 = (F.cross_entropy(part, y) for part in out)
        return logits + 0.3 * (aux1 + aux2)
    return F.cross_entropy(out, y)


def weights(net: Any) -> dict[str, np.ndarray]:
    """Return the peer's parameters and running statistics, as views, without its counters of batches."""
    found = {name: value.numpy() for name, value in net.state_dict().items()}
    return {name: value for name, value in found.items() if not name.endswith(".num_batches_tracked")}


def assert_same_names(net: Any, module: gc.Module) -> None:
    """Both sides have the same parameters and the same statistics."""
    learned = {name for name, _ in net.named_parameters()}
    assert learned == set(module.params)
    assert set(weights(net)) - learned == set(module.state)


def copy_to_module(net: Any, module: gc.Module) -> None:
    """The module has the peer's weights and statistics."""
    assert_same_names(net, module)
    for name, value in weights(net).items():
        (module.params if name in module.params else module.state)[name] = value


def copy_to_net(module: gc.Module, net: Any) -> None:
    """The peer has the module's weights and statistics."""
    assert_same_names(net, module)
    for name, value in weights(net).items():
        value[...] = module.params[name] if name in module.params else module.state[name]


def randomise(net: Any, x: Any, seed: int) -> None:
    """No weight of the peer is zero or one, and its running statistics are near, but not at, those of x."""
    torch.manual_seed(seed)
    for part in net.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(part.weight)
            if part.bias is not None:
                nn.init.uniform_(part.bias, -0.2, 0.2)
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, 0.0, 0.2)
            part.momentum = 1.0  # for the one step below
    with torch.no_grad():
        net.train()(x)
        for part in net.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = 0.1
                part.running_mean.add_(part.running_var.sqrt() * torch.randn_like(part.running_mean) * 0.3)
                part.running_var.mul_(torch.empty_like(part.running_var).uniform_(0.5, 2.0))
