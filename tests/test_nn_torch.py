"""Every layer against PyTorch: values in inference, gradients for the input and for every parameter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from helpers import weighted_sum

import graphc as gc

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
nn, F = torch.nn, torch.nn.functional

# Both sum in different orders: 1e-10 of the largest entry leaves five digits of double precision for
# that; in float32 a gradient of a few thousand terms keeps four to five digits.
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}
GRADIENT = {"float64": 1e-10, "float32": 1e-4}
DTYPES = pytest.mark.parametrize("dtype", ["float64", "float32"])
BATCH = 3


@dataclass(frozen=True)
class Case:
    """One layer in both libraries; ``shape`` is the input's without the batch."""

    label: str
    shape: tuple[int, ...]
    build: Callable[[gc.Tensor, str], gc.Tensor]
    peer: Any  # a torch module, or a function of a tensor


def close(got: np.ndarray, want: Any, tolerance: float, label: str) -> None:
    expected = want.detach().numpy() if hasattr(want, "detach") else np.asarray(want)
    scale = max(1e-3, float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0)))
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance * scale, err_msg=label)


def peer_sum(y: Any) -> Any:
    """Return helpers.weighted_sum in PyTorch."""
    total = y + y * y * 0.25
    for axis in range(y.dim()):
        index = torch.arange(y.shape[axis], dtype=y.dtype).reshape(
            [-1 if a == axis else 1 for a in range(y.dim())]
        )
        total = total * torch.cos(index * 0.7 + 0.3 * axis + 0.1)
    return total.sum()


def set_weights(module: gc.Module, name: str, peer: Any) -> None:
    """Copy a torch module's parameters and buffers by name."""
    if isinstance(peer, nn.Module):
        for field, value in peer.named_parameters():
            module.params[f"{name}.{field}"] = value.detach().numpy()
        for field, value in peer.named_buffers():
            if value.dim():
                module.state[f"{name}.{field}"] = value.numpy()


def check(cases: list[Case], dtype: str, seed: int = 0) -> None:
    """Compile all cases into one module, and compare values and gradients one by one."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    kind = getattr(torch, dtype)
    outputs: dict[str, gc.Tensor] = {}
    # A parameter of its own, since a module trains at least one, even where no case has any.
    loss = gc.parameter("dummy", (1,))[0]
    given: dict[str, np.ndarray] = {}
    for k, case in enumerate(cases):
        x = gc.input(f"x{k}", ("N", *case.shape))
        out = case.build(x, f"layer{k}")
        score = weighted_sum(out)
        outputs[f"out{k}"] = out
        outputs[f"grad{k}"] = gc.grad(score, [x])[0]
        loss = loss + score
        given[f"x{k}"] = rng.standard_normal((BATCH, *case.shape)).astype(dtype)
    module = gc.compile(outputs, loss=loss, batch=BATCH + 2, dtype=dtype)
    peers = [c.peer.to(kind) if isinstance(c.peer, nn.Module) else c.peer for c in cases]
    for k, peer in enumerate(peers):
        set_weights(module, f"layer{k}", peer)
    got = module.predict(**given)
    result = module.backward(**given)
    total = 0.0
    for k, (case, peer) in enumerate(zip(cases, peers, strict=True)):
        x = torch.tensor(given[f"x{k}"], requires_grad=True)
        y = peer(x)
        score = peer_sum(y)
        score.backward()
        total += float(score.detach())
        close(got[f"out{k}"], y, TOLERANCE[dtype], f"{case.label}: value")
        close(got[f"grad{k}"], x.grad, GRADIENT[dtype], f"{case.label}: gradient of the input")
        if isinstance(peer, nn.Module):
            for field, value in peer.named_parameters():
                name = f"layer{k}.{field}"
                close(module.grads[name], value.grad, GRADIENT[dtype], f"{case.label}: gradient of {field}")
    assert result == pytest.approx(total, rel=GRADIENT[dtype])


def conv_case(channels: int, size: tuple[int, int], out: int, kernel: Any, **options: Any) -> Case:
    return Case(
        f"conv {channels}x{size} to {out}, kernel {kernel}, {options}",
        (channels, *size),
        lambda x, name: gc.nn.conv2d(x, out, kernel, name=name, **options),
        nn.Conv2d(channels, out, kernel, **options),
    )


class Weighted(nn.Module):
    """A layer's weights under its own names, with another forward function around them."""

    def __init__(self, layer: Any, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.weight, self.bias, self.function = layer.weight, layer.bias, forward

    def forward(self, x: Any) -> Any:
        return self.function(x, self.weight, self.bias)


def padded_conv() -> Case:
    return Case(
        "conv with asymmetrical padding",
        (2, 5, 6),
        lambda x, name: gc.nn.conv2d(x, 3, (2, 3), stride=(1, 2), padding=((1, 2), (3, 0)), name=name),
        Weighted(
            nn.Conv2d(2, 3, (2, 3)), lambda x, w, b: F.conv2d(F.pad(x, (3, 0, 1, 2)), w, b, stride=(1, 2))
        ),
    )


def conv_cases() -> list[Case]:
    return [
        conv_case(1, (7, 9), 4, 3),
        conv_case(3, (8, 8), 5, 5, bias=False),
        conv_case(4, (6, 5), 8, 1),
        conv_case(4, (9, 7), 6, 1, stride=2, bias=False),
        conv_case(3, (9, 11), 17, 3, stride=2, padding=1),
        conv_case(2, (11, 8), 3, (3, 2), stride=(2, 1), padding=(0, 1), dilation=(2, 3)),
        conv_case(4, (7, 7), 6, 3, padding=1, groups=2),
        conv_case(6, (8, 7), 6, 3, padding=1, groups=6),
        conv_case(5, (9, 9), 10, 3, stride=2, padding=2, dilation=2, groups=5, bias=False),
        conv_case(3, (6, 6), 4, 3, padding="same"),
        conv_case(2, (6, 7), 3, (4, 2), padding="same", dilation=(1, 3)),
        conv_case(3, (5, 5), 2, 5, padding="valid"),
        conv_case(3, (3, 3), 4, 5, padding=2),
        conv_case(2, (4, 4), 3, 2, stride=3, padding=1),  # the last rows are never read
        conv_case(1, (1, 17), 2, (1, 4), stride=(1, 2), padding=(0, 3)),
        padded_conv(),
    ]


@DTYPES
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_conv2d(dtype: str) -> None:
    check(conv_cases(), dtype)


def pool_case(what: str, size: tuple[int, int], *arguments: Any, **options: Any) -> Case:
    return Case(
        f"{what} {size} {arguments} {options}",
        (2, *size),
        lambda x, name: getattr(gc.nn, what)(x, *arguments, **options),
        lambda x: getattr(F, what)(x, *arguments, **options),
    )


def pool_cases() -> list[Case]:
    return [
        pool_case("max_pool2d", (6, 8), 2),
        pool_case("max_pool2d", (7, 9), 3, stride=2, padding=1),
        pool_case("max_pool2d", (8, 7), 3, stride=2, ceil_mode=True),
        pool_case("max_pool2d", (7, 10), (2, 3), stride=(1, 2), padding=(1, 0), dilation=(2, 1)),
        pool_case("max_pool2d", (9, 8), 3, stride=3, padding=1, dilation=2, ceil_mode=True),
        pool_case("max_pool2d", (5, 5), 2, stride=3),
        pool_case("avg_pool2d", (6, 8), 2),
        pool_case("avg_pool2d", (7, 9), 3, stride=2, padding=1),
        pool_case("avg_pool2d", (7, 9), 3, stride=2, padding=1, count_include_pad=False),
        pool_case("avg_pool2d", (8, 6), 3, stride=2, padding=1, ceil_mode=True),
        pool_case("avg_pool2d", (8, 6), 3, stride=2, padding=1, ceil_mode=True, count_include_pad=False),
        pool_case("avg_pool2d", (8, 7), 3, stride=2, ceil_mode=True),
        pool_case("avg_pool2d", (6, 7), (2, 3), stride=(3, 1), divisor_override=4),
        pool_case("avg_pool2d", (6, 6), 3, stride=2, padding=1, ceil_mode=True, divisor_override=2),
        pool_case("adaptive_avg_pool2d", (6, 9), (3, 3)),
        pool_case("adaptive_avg_pool2d", (7, 5), (3, 4)),
        pool_case("adaptive_avg_pool2d", (3, 4), (5, 7)),
        pool_case("adaptive_avg_pool2d", (5, 7), 1),
        Case("global_avg", (2, 5, 3), lambda x, n: gc.nn.global_avg_pool2d(x),
             lambda x: F.adaptive_avg_pool2d(x, 1)),
        Case("global_max", (2, 5, 3), lambda x, n: gc.nn.global_max_pool2d(x),
             lambda x: F.adaptive_max_pool2d(x, 1)),
    ]  # fmt: skip


@DTYPES
def test_pooling(dtype: str) -> None:
    check(pool_cases(), dtype)


def dense_cases() -> list[Case]:
    return [
        Case("linear", (7,), lambda x, name: gc.nn.linear(x, 5, name=name), nn.Linear(7, 5)),
        Case(
            "no bias", (33,), lambda x, name: gc.nn.linear(x, 1, name=name, bias=False),
            nn.Linear(33, 1, bias=False),
        ),
        Case("n-d linear", (2, 3, 6), lambda x, name: gc.nn.linear(x, 4, name=name), nn.Linear(6, 4)),
        Case("flatten", (2, 3, 4), lambda x, name: gc.nn.linear(gc.flatten(x), 20, name=name),
             Weighted(nn.Linear(24, 20), lambda x, w, b: F.linear(x.flatten(1), w, b))),
        Case("layer_norm", (4, 6), lambda x, name: gc.nn.layer_norm(x, name=name), nn.LayerNorm(6)),
        Case("layer_norm over two axes", (4, 6), lambda x, name: gc.nn.layer_norm(x, 2, eps=1e-2, name=name),
             nn.LayerNorm((4, 6), eps=1e-2)),
        Case("layer_norm without bias", (3, 5), lambda x, name: gc.nn.layer_norm(x, bias=False, name=name),
             nn.LayerNorm(5, bias=False)),
        Case("layer_norm without weights", (5,), lambda x, name: gc.nn.layer_norm(x, affine=False),
             nn.LayerNorm(5, elementwise_affine=False)),
        Case("layer_norm of large values", (9,), lambda x, name: gc.nn.layer_norm(x * 3 + 1000, name=name),
             lambda x: F.layer_norm(x * 3 + 1000, (9,))),
    ]  # fmt: skip


@DTYPES
def test_dense_and_layer_norm(dtype: str) -> None:
    cases = dense_cases()
    for case in cases:
        if isinstance(case.peer, nn.LayerNorm) and case.peer.weight is not None:
            nn.init.normal_(case.peer.weight)
            if case.peer.bias is not None:
                nn.init.normal_(case.peer.bias)
    if dtype == "float32":  # a mean of 1000 leaves three digits there, in PyTorch as here
        cases = [c for c in cases if "large" not in c.label]
    check(cases, dtype)


# ---------------------------------------------------------------- activations

KINKS = [-1e4, -100.0, -20.0, -6.0, -3.0, -1.0, -1e-30, -0.0, 0.0, 1e-30, 1.0, 3.0, 6.0, 20.0, 100.0, 1e4]

ACTIVATIONS: dict[str, tuple[Callable[[gc.Tensor], gc.Tensor], Callable[[Any], Any]]] = {
    "relu": (gc.relu, F.relu),
    "leaky_relu": (gc.leaky_relu, F.leaky_relu),
    "leaky_relu 0.3": (lambda x: gc.leaky_relu(x, 0.3), lambda x: F.leaky_relu(x, 0.3)),
    "leaky_relu -0.5": (lambda x: gc.leaky_relu(x, -0.5), lambda x: F.leaky_relu(x, -0.5)),
    "leaky_relu 0": (lambda x: gc.leaky_relu(x, 0.0), lambda x: F.leaky_relu(x, 0.0)),
    "sigmoid": (gc.sigmoid, torch.sigmoid),
    "tanh": (gc.tanh, torch.tanh),
    "softplus": (gc.softplus, lambda x: F.softplus(x, threshold=30 if x.dtype == torch.float32 else 80)),
    "elu": (gc.elu, F.elu),
    "elu 0.3": (lambda x: gc.elu(x, 0.3), lambda x: F.elu(x, 0.3)),
    "elu -0.7": (lambda x: gc.elu(x, -0.7), lambda x: F.elu(x, -0.7)),
    "gelu": (gc.gelu, F.gelu),
    "gelu tanh": (lambda x: gc.gelu(x, "tanh"), lambda x: F.gelu(x, approximate="tanh")),
    "silu": (gc.silu, F.silu),
    "hard_swish": (gc.hard_swish, F.hardswish),
    "hard_sigmoid": (gc.hard_sigmoid, F.hardsigmoid),
    "mish by formula": (lambda x: gc.elementwise("mish", "x*tanh(log(1 + exp(x)))", x), F.mish),
    "clip": (lambda x: gc.clip(x, -1.0, 3.0), lambda x: torch.clamp(x, -1.0, 3.0)),
    "relu6": (lambda x: gc.clip(x, 0.0, 6.0), lambda x: torch.clamp(x, 0.0, 6.0)),
    "clip below": (lambda x: gc.clip(x, 1.0), lambda x: torch.clamp(x, min=1.0)),
    "clip above": (lambda x: gc.clip(x, high=-3.0), lambda x: torch.clamp(x, max=-3.0)),
    "clip crossed": (lambda x: gc.clip(x, 3.0, 1.0), lambda x: torch.clamp(x, 3.0, 1.0)),
    "abs": (gc.abs, torch.abs),
}


@DTYPES
def test_activations(dtype: str) -> None:
    """Values and slopes at random points, at kinks and at extremes; NaN and infinity as PyTorch's."""
    rng = np.random.default_rng(5)
    values = np.concatenate([rng.standard_normal(64) * 3, KINKS, [np.nan, np.inf, -np.inf]]).astype(dtype)
    x = gc.input("x", ("N", len(values)))
    outputs = {}
    for k, (ours, _) in enumerate(ACTIVATIONS.values()):
        out = ours(x)
        outputs[f"out{k}"], outputs[f"grad{k}"] = out, gc.grad(gc.sum(out), [x])[0]
    got = gc.compile(outputs, batch=1, dtype=dtype).predict(x=values[None])
    finite = np.isfinite(values)
    # Elementwise: each is a handful of operations, and slopes lose at most three digits to cancellation.
    usual = {"float64": 1e-10, "float32": 2e-6}[dtype]
    problems = []
    for k, (label, (_, peer)) in enumerate(ACTIVATIONS.items()):
        t = torch.tensor(values, requires_grad=True)
        y = peer(t)
        y.sum().backward()
        want, slope = y.detach().numpy(), t.grad.numpy()
        out, grad = got[f"out{k}"][0], got[f"grad{k}"][0]
        # PyTorch's hardsigmoid has a sixth in single precision even for doubles.
        tolerance = 1e-7 if label == "hard_sigmoid" and dtype == "float64" else usual
        for what, ours, theirs in (("value", out, want), ("slope", grad, slope)):
            wrong = finite & ~np.isclose(ours, theirs, rtol=tolerance, atol=tolerance)
            wrong[-2:] = ~np.isnan(theirs[-2:]) & ~np.isclose(ours[-2:], theirs[-2:], rtol=tolerance)
            problems += [f"{label}: {what} at {v}: {a}, PyTorch {b}" for v, a, b in
                         zip(values[wrong], ours[wrong], theirs[wrong], strict=True)]  # fmt: skip
        if not np.isnan(out[-3]):
            problems.append(f"{label}: NaN became {out[-3]}")
    assert not problems, "\n".join(problems)


# ---------------------------------------------------------------- batch norm


@dataclass(frozen=True)
class NormCase:
    shape: tuple[int, ...]
    options: dict[str, Any]

    def peer(self) -> Any:
        options = {k: v for k, v in self.options.items() if k not in ("track",)}
        options["track_running_stats"] = self.options.get("track", True)
        return (nn.BatchNorm2d if len(self.shape) == 3 else nn.BatchNorm1d)(self.shape[0], **options)


NORMS = [
    NormCase((4, 5, 3), {}),
    NormCase((3,), {}),
    NormCase((5, 2), {"momentum": 0.7, "eps": 1e-2}),
    NormCase((3, 4, 4), {"affine": False}),
    NormCase((2, 3, 5), {"track": False}),
    NormCase((6,), {"affine": False, "track": False}),
    NormCase((2, 2, 2), {"momentum": 0.0}),
    NormCase((2, 2, 2), {"momentum": 1.0}),
]


@DTYPES
def test_batch_norm(dtype: str) -> None:
    """Batch statistics and gradients in training, running statistics over steps, inference by them."""
    torch.manual_seed(1)
    rng = np.random.default_rng(1)
    kind = getattr(torch, dtype)
    outputs, given = {}, {}
    loss = gc.parameter("dummy", (1,))[0] * 0.0
    for k, case in enumerate(NORMS):
        x = gc.input(f"x{k}", ("N", *case.shape))
        # The gradient of this parameter is the gradient of the input, summed over the batch ...
        shift = gc.parameter(f"shift{k}", case.shape)
        # ... and this one, with an entry for every row, is not summed.
        rows = gc.parameter(f"rows{k}", (BATCH, *case.shape))
        picked = gc.take(
            gc.reshape(rows, (BATCH, int(np.prod(case.shape)))), gc.input(f"i{k}", ("N",), "int32")
        )
        out = gc.nn.batch_norm(x + shift + gc.reshape(picked, x.shape), name=f"bn{k}", **case.options)
        outputs[f"out{k}"] = out
        loss = loss + weighted_sum(out)
    module = gc.compile(outputs, loss=loss, optimizer=gc.SGD(lr=0.0), batch=BATCH + 1, dtype=dtype)
    peers = [case.peer().to(kind) for case in NORMS]
    for k, peer in enumerate(peers):
        for field, value in peer.named_parameters():
            nn.init.normal_(value)
            module.params[f"bn{k}.{field}"] = value.detach().numpy()
    tight = GRADIENT[dtype]
    for step in range(4):
        for k, case in enumerate(NORMS):
            given[f"x{k}"] = (rng.standard_normal((BATCH, *case.shape)) * 2 + step).astype(dtype)
            given[f"i{k}"] = np.arange(BATCH, dtype=np.int32)
        before = {n: v.copy() for n, v in module.state.items()}
        module.backward(**given)
        for name, value in before.items():
            np.testing.assert_array_equal(module.state[name], value, err_msg="backward must not update")
        module.train_step(**given)
        for k, peer in enumerate(peers):
            label = f"step {step}, {NORMS[k]}"
            x = torch.tensor(given[f"x{k}"], requires_grad=True)
            peer.train()
            peer.zero_grad()
            peer_sum(peer(x)).backward()
            close(module.grads[f"rows{k}"], x.grad, tight, f"{label}: gradient of the input")
            for field, value in peer.named_parameters():
                close(module.grads[f"bn{k}.{field}"], value.grad, tight, f"{label}: gradient of {field}")
            for field, value in peer.named_buffers():
                if value.dim():
                    close(module.state[f"bn{k}.{field}"], value, TOLERANCE[dtype], f"{label}: {field}")
    got = module.predict(**given)
    for k, peer in enumerate(peers):
        peer.eval()
        close(
            got[f"out{k}"], peer(torch.tensor(given[f"x{k}"])), TOLERANCE[dtype] * 3, f"inference {NORMS[k]}"
        )


def test_batch_norm_folds_into_the_convolution_before_it() -> None:
    """In inference the fold changes nothing but rounding; it is done again after the weights change."""
    torch.manual_seed(2)
    peer = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(80, 4), nn.BatchNorm1d(4)
    )
    peer = peer.double()
    for _ in range(3):
        peer(torch.randn(8, 3, 6, 6, dtype=torch.float64))
    for name, value in peer.named_parameters():
        if name.startswith(("1.", "5.")):
            nn.init.normal_(value)
    peer.eval()
    x = gc.input("x", ("N", 3, 6, 6))
    h = gc.relu(gc.nn.batch_norm(gc.nn.conv2d(x, 5, 3, name="l0"), name="l1"))
    out = gc.nn.batch_norm(gc.nn.linear(gc.flatten(h), 4, name="l4"), name="l5")
    module = gc.compile(out, batch=4, dtype="float64")
    values = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    for _ in range(2):
        for k in (0, 1, 4, 5):
            set_weights(module, f"l{k}", peer[k])
        close(module.predict(x=values.numpy())["out"], peer(values), 1e-10, "folded")
        with torch.no_grad():
            peer[0].weight.mul_(0.5)
            peer[1].running_mean.add_(0.3)


# ---------------------------------------------------------------- embedding


@DTYPES
def test_embedding(dtype: str) -> None:
    """Rows and their gradients with repeated indices, and a padding row that gets no gradient."""
    torch.manual_seed(3)
    index = np.array([[0, 4, 4, 2], [2, 2, 2, 2], [1, 0, 4, 4]], dtype=np.int32)
    i = gc.input("i", ("N", 4), "int32")
    plain = gc.nn.embedding(i, 6, 3, name="plain")
    padded = gc.nn.embedding(i, 6, 3, padding_index=2, name="padded")
    last = gc.nn.embedding(i, 5, 2, padding_index=-1, name="last")
    outputs = {"plain": plain, "padded": padded, "last": last}
    loss = gc.parameter("dummy", (1,))[0]
    for out in outputs.values():
        loss = loss + weighted_sum(out)
    module = gc.compile(outputs, loss=loss, batch=4, dtype=dtype)
    got_first = {k: module.params[f"{k}.weight"].copy() for k in outputs}
    module.backward(i=index)
    got = module.predict(i=index)
    peers = {"plain": nn.Embedding(6, 3), "padded": nn.Embedding(6, 3, padding_idx=2),
             "last": nn.Embedding(5, 2, padding_idx=-1)}  # fmt: skip
    for name, peer in peers.items():
        peer = peer.to(getattr(torch, dtype))
        with torch.no_grad():
            peer.weight.copy_(torch.tensor(got_first[name]))
        y = peer(torch.tensor(index))
        peer_sum(y).backward()
        close(got[name], y, TOLERANCE[dtype], name)
        close(module.grads[f"{name}.weight"], peer.weight.grad, GRADIENT[dtype], name)
    assert not module.grads["padded.weight"][2].any()
    assert module.grads["plain.weight"][2].any()
    assert not module.grads["plain.weight"][[3, 5]].any(), "rows that are not read get no gradient"
