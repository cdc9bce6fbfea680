"""First values: PyTorch's fans and ranges, the right distributions, streams that do not touch."""

from __future__ import annotations

import math

import numpy as np
import pytest

import graphc as gc
from graphc.errors import GraphcError, RangeError, ShapeError
from graphc.initialisers import (
    Array,
    Constant,
    GlorotNormal,
    GlorotUniform,
    HeNormal,
    HeUniform,
    Initialiser,
    Normal,
    Uniform,
    as_initialiser,
    fans,
    stream,
)

SHAPE = (64, 32, 3, 3)
IN, OUT = 32 * 9, 64 * 9
UNIFORM = {
    "torch default": (Uniform(), 1 / math.sqrt(IN)),
    "given bound": (Uniform(0.25), 0.25),
    "fan of the weight": (Uniform(fan_in=16), 0.25),
    "glorot": (GlorotUniform(), math.sqrt(6 / (IN + OUT))),
    "glorot with gain": (GlorotUniform(2.0), 2 * math.sqrt(6 / (IN + OUT))),
    "he": (HeUniform(), math.sqrt(6 / IN)),
    "he fan out": (HeUniform("fan_out"), math.sqrt(6 / OUT)),
}
NORMAL = {
    "normal": (Normal(0.3), 0.0, 0.3),
    "shifted": (Normal(0.5, 2.0), 2.0, 0.5),
    "glorot": (GlorotNormal(), 0.0, math.sqrt(2 / (IN + OUT))),
    "he": (HeNormal(), 0.0, math.sqrt(2 / IN)),
    "he fan out": (HeNormal("fan_out"), 0.0, math.sqrt(2 / OUT)),
}


def distance(values: np.ndarray, cdf: np.ndarray) -> float:
    """Return the Kolmogorov-Smirnov distance of sorted values from a distribution function there."""
    n = len(values)
    ranks = np.arange(n + 1) / n
    return float(max(np.abs(cdf - ranks[1:]).max(), np.abs(cdf - ranks[:-1]).max()))


def critical(count: int) -> float:
    """Return the distance that a right sample passes with probability 1 - 1e-4 (Kolmogorov's limit law)."""
    return math.sqrt(-0.5 * math.log(1e-4 / 2) / count)


@pytest.mark.parametrize("name", UNIFORM)
def test_uniform(name: str) -> None:
    rule, bound = UNIFORM[name]
    values = np.sort(rule(SHAPE, stream(0, "w")).reshape(-1))
    assert np.abs(values).max() <= bound
    assert distance(values, (values / bound + 1) / 2) < critical(values.size)


@pytest.mark.parametrize("name", NORMAL)
def test_normal(name: str) -> None:
    rule, mean, std = NORMAL[name]
    values = np.sort(rule(SHAPE, stream(0, "w")).reshape(-1))
    cdf = np.array([0.5 * (1 + math.erf((v - mean) / std / math.sqrt(2))) for v in values])
    assert distance(values, cdf) < critical(values.size)


@pytest.mark.parametrize("shape", [(4, 3), (8, 5), (6, 2, 3, 5), (3, 7, 2)])
def test_fans_are_those_of_pytorch(shape: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    assert fans(shape) == torch.nn.init._calculate_fan_in_and_fan_out(torch.empty(shape))


def test_defaults_of_layers_are_those_of_pytorch() -> None:
    """PyTorch's layers draw weight and bias from Uniform(+-1/sqrt(fan_in)), embeddings from Normal(0, 1)."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x, i = gc.input("x", ("N", 8, 6, 6)), gc.input("i", ("N",), "int32")
    h = gc.nn.conv2d(x, 512, 3, groups=2, name="conv")
    h = gc.nn.batch_norm(h, name="bn")
    out = gc.nn.linear(gc.flatten(gc.nn.global_avg_pool2d(h)), 2048, name="fc")
    table = gc.nn.embedding(i, 300, 64, name="table")
    module = gc.compile({"out": out, "table": table}, seed=3)
    torch.manual_seed(3)
    peers = {
        "conv": torch.nn.Conv2d(8, 512, 3, groups=2), "bn": torch.nn.BatchNorm2d(512),
        "fc": torch.nn.Linear(512, 2048), "table": torch.nn.Embedding(300, 64),
    }  # fmt: skip
    for name, peer in peers.items():
        for field, value in peer.named_parameters():
            ours, theirs = module.params[f"{name}.{field}"], value.detach().numpy()
            assert ours.shape == theirs.shape
            # Two samples of at least 512: their deviations differ by a few percent, their bounds by less.
            assert ours.std() == pytest.approx(theirs.std(), rel=0.1)
            assert abs(float(ours.mean() - theirs.mean())) <= 0.25 * float(theirs.std())
            if name in ("conv", "fc"):
                assert np.abs(ours).max() == pytest.approx(np.abs(theirs).max(), rel=0.02)
        for field, value in peer.named_buffers():
            if value.dim():
                np.testing.assert_array_equal(module.state[f"{name}.{field}"], value.numpy())


def net(extra: bool, seed: int) -> gc.Module:
    x = gc.input("x", ("N", 5))
    h = gc.relu(gc.nn.linear(x, 7, name="first"))
    if extra:
        h = gc.relu(gc.nn.linear(h, 7, name="extra"))
    return gc.compile(gc.nn.linear(h, 3, name="last", weight=HeNormal()), seed=seed)


def test_one_seed_gives_the_same_bits_and_layers_do_not_disturb_each_other() -> None:
    a, same, longer, other = net(False, 4), net(False, 4), net(True, 4), net(False, 5)
    for name in a.params:
        np.testing.assert_array_equal(a.params[name], same.params[name])
        np.testing.assert_array_equal(a.params[name], longer.params[name])
        assert not np.array_equal(a.params[name], other.params[name])
    assert not np.array_equal(longer.params["first.bias"], longer.params["extra.bias"])


def test_the_stream_is_fixed_for_good() -> None:
    """A change of these numbers would change every net that somebody trained from a seed."""
    np.testing.assert_array_equal(stream(0, "w").integers(0, 1000, 4), [35, 422, 721, 863])


def test_constants_and_arrays() -> None:
    x = gc.input("x", ("N", 3))
    values = np.arange(6.0).reshape(2, 3) / 7
    out = gc.nn.linear(x, 2, name="fc", weight=values, initial_bias=0.5)
    tail = gc.parameter("tail", (2,), np.float32(3)) * gc.parameter("head", (2,), np.array([1, 2]))
    module = gc.compile(out * tail, dtype="float64")
    np.testing.assert_array_equal(module.params["fc.weight"], values)
    np.testing.assert_array_equal(module.params["fc.bias"], [0.5, 0.5])
    np.testing.assert_array_equal(module.params["tail"], [3, 3])
    np.testing.assert_array_equal(module.params["head"], [1, 2])
    assert as_initialiser(2) == Constant(2.0)
    assert isinstance(as_initialiser(values), Array)


def test_an_array_given_is_not_shared_with_the_caller() -> None:
    values = np.ones((2, 3))
    out = gc.nn.linear(gc.input("x", ("N", 3)), 2, name="fc", weight=values)
    values[:] = 7
    np.testing.assert_array_equal(gc.compile(out).params["fc.weight"], np.ones((2, 3)))


def test_wrong_shapes_are_refused_where_they_are_written() -> None:
    x = gc.input("x", ("N", 3))
    with pytest.raises(ShapeError, match=r"fc.*\(2, 3\).*\(3, 2\).*test_initialisers\.py"):
        gc.nn.linear(x, 2, name="fc", weight=np.zeros((3, 2)))
    with pytest.raises(ShapeError, match=r"w.*\(2,\).*\(3,\)"):
        gc.parameter("w", (2,), np.zeros(3))
    with pytest.raises(ShapeError, match="initial array"):
        Array(np.zeros(3))((2,), stream(0, "w"))


class Wrong(Initialiser):
    """Returns another shape than it was asked for."""

    def __call__(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        return np.zeros(5)


def test_an_initialiser_that_returns_another_shape_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"w.*\(2, 2\).*\(5,\)"):
        gc.compile(gc.input("x", ("N", 2)) @ gc.parameter("w", (2, 2), Wrong()))


@pytest.mark.parametrize(
    "make",
    [
        lambda: HeNormal("fan_on"),
        lambda: HeUniform("out"),
        lambda: Normal(-1.0),
        lambda: Uniform(-0.5),
        lambda: as_initialiser("he"),  # type: ignore[arg-type]
        lambda: as_initialiser(np.array(["a"])),
    ],
)
def test_bad_rules_are_refused_when_they_are_made(make: object) -> None:
    with pytest.raises((RangeError, GraphcError)):
        make()  # type: ignore[operator]
