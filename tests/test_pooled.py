"""Convolutions that pool their own result: values and indices, bit for bit those of the map that is never stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

import graphc as gc
from graphc.graph.node import Node
from graphc.initialisers import Normal
from graphc.isa import ISAS
from graphc.ops.packed import Border, PackedConv2d
from graphc.ops.pool2d import MaxPool2d, MaxPool2dIndex, pool_geometry
from graphc.ops.pooled import walk
from graphc.types import N, TensorType

BATCH = 3
FLAGS = gc.BuildOptions(optimisation=("-O1", "-march=native"))


@dataclass(frozen=True)
class Case:
    """A convolution and the windows over its result, with the extents that they have in the order of PyTorch's."""

    c: int
    o: int
    size: tuple[int, int]
    kernel: int
    stride: int = 1
    padding: int = 0
    window: tuple[int, int] = (2, 2)
    step: tuple[int, int] = (2, 2)
    border: tuple[int, int] = (0, 0)
    ceil: bool = False

    def convolution(self, number: int) -> Node:
        x = gc.input(f"x{number}", ("N", self.c, *self.size))
        options = {"stride": self.stride, "padding": self.padding, "bias": False, "weight": Normal(1.0)}
        return gc.nn.conv2d(x, self.o, self.kernel, name=f"c{number}", **options)  # type: ignore[arg-type]

    def pools(self, image: Node) -> tuple[MaxPool2d, MaxPool2dIndex]:
        geometry = pool_geometry(image.shape, self.window, self.step, self.border, (1, 1), self.ceil)
        return MaxPool2d(geometry), MaxPool2dIndex(geometry)


# Odd extents, channels that fill no vector, groups of one and of two rows of tiles, and rows with several groups.
WINOGRAD = [
    Case(32, 32, (12, 12), 3, padding=1),
    Case(33, 41, (9, 14), 3, padding=1),
    Case(35, 64, (17, 15), 3),
    Case(40, 33, (29, 10), 3, padding=2),
    Case(32, 35, (11, 41), 3, padding=1),
    Case(36, 32, (18, 15), 3, padding=1, window=(4, 4), step=(4, 4)),
    Case(32, 34, (13, 12), 3, padding=1, window=(4, 2), step=(4, 2)),
]

_THREE = {"window": (3, 3), "step": (2, 2)}
# Groups of one and of two rows of tiles, whole images in chunks; the last case is too large for one chunk.
WINOGRAD_WALKS = [
    Case(32, 36, (16, 28), 3, padding=1, **_THREE),
    Case(34, 32, (13, 13), 3, padding=1, **_THREE),
    Case(33, 48, (15, 13), 3, padding=1, border=(1, 1), **_THREE),
    Case(32, 32, (29, 34), 3, padding=1, ceil=True, **_THREE),
    Case(32, 33, (28, 28), 3, padding=1, border=(1, 1), ceil=True, **_THREE),
    Case(32, 32, (16, 16), 3, padding=1, window=(2, 2), ceil=True, border=(1, 0)),
    Case(32, 40, (15, 36), 3, padding=1, window=(5, 4), step=(4, 2), border=(2, 1), ceil=True),
    Case(32, 32, (9, 35), 3, padding=1, ceil=True),
]
DIRECT = [
    Case(3, 17, (47, 43), 11, 4, 2, **_THREE),
    Case(3, 64, (31, 37), 7, 2, 3, border=(1, 1), **_THREE),
    Case(3, 8, (32, 32), 7, 2, 3, ceil=True, **_THREE),
    Case(19, 48, (13, 15), 5, padding=2, **_THREE),
    Case(40, 33, (12, 11), 3, padding=1, border=(1, 0), ceil=True, window=(3, 2)),
    Case(4, 20, (14, 17), 3, **_THREE),  # no border, few channels: read in place
    Case(36, 5, (9, 10), 1, **_THREE),
    Case(2, 3, (17, 15), 3, 2, window=(2, 2), ceil=True),
    Case(2, 33, (11, 12), 3, padding=1, window=(3, 3), step=(3, 3), border=(1, 1)),
    Case(3, 7, (13, 19), 3, padding=1, window=(5, 5), step=(2, 3), border=(2, 1), ceil=True),
    Case(1, 1, (5, 6), 3, padding=2, window=(4, 4), step=(4, 4)),
    Case(2, 6, (4, 4), 3, padding=1, **_THREE),  # one window
    Case(3, 16, (150, 50), 3, 1, 1, **_THREE),  # several steps and tasks
    Case(8, 24, (9, 9), 2, padding=1, **_THREE),
]


def modules(cases: Sequence[Case], isa: str, dtype: str, winograd: bool) -> tuple[gc.Module, gc.Module]:
    """Return a module that pools within the convolutions' kernels, and one that stores the map for all to read."""
    fused: dict[str, Node] = {}
    apart: dict[str, Node] = {}
    for number, case in enumerate(cases):
        image = case.convolution(number)
        value, index = case.pools(image)
        fused |= {f"value{number}": value(image), f"index{number}": index(image)}
        apart[f"map{number}"] = image
    options = {"batch": BATCH, "dtype": dtype, "isa": isa, "winograd": winograd}
    options |= {"build": FLAGS, "fork_us": 0.0}
    made = gc.compile(fused, name="fused", **options), gc.compile(apart, name="apart", **options)  # type: ignore[arg-type]
    for name in made[0].params:
        made[1].params[name] = made[0].params[name]
    return made


def images(cases: Sequence[Case], dtype: str, kind: str) -> dict[str, np.ndarray]:
    """Return normal numbers, small integers whose sums are often equal, or numbers with NaN and infinities."""
    rng = np.random.default_rng(7)
    found = {}
    for number, case in enumerate(cases):
        values = rng.standard_normal((BATCH, case.c, *case.size))
        if kind == "equal":
            values = np.sign(np.round(values * (rng.random(values.shape) < 0.05)))
        if kind == "nan":
            for k, wrong in enumerate((np.nan, np.inf, -np.inf, np.nan)):
                values[k % BATCH, k % case.c, (5 * k) % case.size[0], (3 * k) % case.size[1]] = wrong
        found[f"x{number}"] = values.astype(dtype)
    return found


def check(cases: Sequence[Case], isa: str, dtype: str, tolerance: float, winograd: bool = True) -> None:
    """Compare with the maxima of the map that the other module stores, and that map with NumPy's in float64.

    Where the direct sums are of small integers, nothing is rounded and the map is NumPy's bit for bit.
    """
    fused, apart = modules(cases, isa, dtype, winograd)
    assert len(next(e for e in fused.manifest["entries"] if e["name"] == "predict")["calls"]) == len(cases)
    for kind in ("normal", "equal", "nan"):
        if kind == "equal":
            for module in (fused, apart):
                for name in module.params:
                    module.params[name] = np.round(module.params[name])
        given = images(cases, dtype, kind)
        for threads, count in ((2, BATCH), (1, BATCH), (2, 1)):
            fused.threads = threads
            data = {name: x[:count] for name, x in given.items()}
            got, maps = fused.predict(**data), apart.predict(**data)
            for number, case in enumerate(cases):
                node, image = case.convolution(number), maps[f"map{number}"]
                value, index = case.pools(node)
                text = f"{case}, {kind}, {threads} threads, batch {count}"
                assert got[f"index{number}"].dtype == np.uint8
                np.testing.assert_array_equal(got[f"value{number}"], value.reference(image), text)
                np.testing.assert_array_equal(got[f"index{number}"], index.reference(image), text)
                if kind != "nan":
                    weight = np.asarray(fused.params[f"c{number}.weight"], np.float64)
                    wanted = node.op.reference(data[f"x{number}"].astype(np.float64), weight)
                    exact = kind == "equal" and not winograd
                    bound = 0 if exact else tolerance * np.abs(wanted).max()
                    np.testing.assert_allclose(image, wanted, rtol=0, atol=bound, err_msg=text)


@pytest.mark.parametrize("isa", sorted(ISAS))
def test_winograds_tiles_are_pooled(isa: str) -> None:
    """The map's largest error is what Winograd's transforms are held to, 5e-5 of the largest result."""
    check(WINOGRAD, isa, "float32", 5e-5)


@pytest.mark.parametrize("isa", sorted(ISAS))
def test_windows_across_winograds_tiles_are_pooled(isa: str) -> None:
    check(WINOGRAD_WALKS, isa, "float32", 5e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("isa", sorted(ISAS))
def test_windows_over_direct_convolutions_are_pooled(isa: str, dtype: str) -> None:
    """Sums of up to 500 terms, by a tree or in a row: 64 units in the last place of the largest."""
    check(DIRECT, isa, dtype, 64 * float(np.finfo(dtype).eps), winograd=False)


def calls(module: gc.Module, entry: str) -> list[list[str]]:
    return [call["nodes"] for e in module.manifest["entries"] if e["name"] == entry for call in e["calls"]]


def test_a_training_step_pools_in_the_same_kernels() -> None:
    """Values and indices leave one kernel, and the gradients are those of a net that stores every map.

    The other net sums in the same order but where an epilogue is fused: a few units in the last place.
    """
    x = gc.input("x", ("N", 3, 41, 45))
    h = gc.nn.max_pool2d(gc.relu(gc.nn.conv2d(x, 34, 7, stride=2, padding=3, name="a")), 3, 2, 1)
    h = gc.nn.max_pool2d(gc.relu(gc.nn.conv2d(h, 32, 3, padding=2, name="b")), 2)
    h = gc.nn.max_pool2d(gc.relu(gc.nn.conv2d(h, 12, 5, padding=2, name="c")), 3, 2, ceil_mode=True)
    options = {"loss": gc.mean(h * h), "batch": BATCH, "build": FLAGS, "optimizer": gc.SGD(lr=0.1)}
    fused = gc.compile({"h": h}, name="fused", **options)  # type: ignore[arg-type]
    apart = gc.compile({"h": h}, name="apart", nan_guard=True, **options)  # type: ignore[arg-type]
    together = [nodes for nodes in calls(fused, "train_step") if "max_pool2d_index" in nodes]
    assert [nodes[0] for nodes in together] == ["a (conv2d)", "b (conv2d)", "c (conv2d)"]
    assert all("max_pool2d" in nodes for nodes in together)
    assert all(nodes[0] != "max_pool2d" for nodes in calls(fused, "predict"))
    images = np.random.default_rng(3).standard_normal((BATCH, 3, 41, 45)).astype(np.float32)
    for module in (fused, apart):
        module.backward(x=images)
    for name, want in apart.grads.items():
        bound = 64 * float(np.finfo(np.float32).eps) * np.abs(want).max()
        np.testing.assert_allclose(fused.grads[name], want, rtol=0, atol=bound, err_msg=name)


def test_batch_norm_leaves_a_number_for_each_channel_that_pooling_passes() -> None:
    """In inference the scale is in the weights, so that the convolution pools; in training it reads the whole map."""
    x = gc.input("x", ("N", 3, 20, 20))
    h = gc.relu(gc.nn.batch_norm(gc.nn.conv2d(x, 8, 3, bias=False, name="a"), name="bn"))
    h = gc.nn.max_pool2d(h, 3, 2, 1)
    module = gc.compile({"h": h}, loss=gc.mean(h * h), batch=BATCH, build=FLAGS, name="normed")
    assert len(calls(module, "predict")) == 1
    assert any(nodes[0] == "max_pool2d" for nodes in calls(module, "train_step"))
    for name in ("bn.weight", "bn.bias"):
        module.params[name] = np.linspace(-1, 1, 8).astype(np.float32)
    guarded = gc.compile({"h": h}, batch=BATCH, build=FLAGS, name="guarded", nan_guard=True)
    for name, value in module.params.items():
        guarded.params[name] = value
    images = np.random.default_rng(4).standard_normal((BATCH, 3, 20, 20)).astype(np.float32)
    got, want = module.predict(x=images)["h"], guarded.predict(x=images)["h"]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * np.abs(want).max())


def single(change: str) -> list[list[str]]:
    """Return the kernels of a convolution and a pooling that something keeps apart."""
    x = gc.input("x", ("N", 3, 30, 30))
    z = gc.nn.conv2d(x, 8, 3, name="a")
    h = z
    window: dict[str, int] = {"kernel": 3, "stride": 2}
    if change == "between":  # a number for each pixel does not commute with a maximum
        h = z + gc.input("y", ("N", 8, 28, 28))
    if change == "dense":
        window = {"kernel": 3, "stride": 1, "padding": 1}
    if change == "wide":
        window = {"kernel": 6, "stride": 3}
    outputs = {"h": gc.cos(gc.nn.max_pool2d(h, **window))}  # type: ignore[arg-type]
    if change == "read":
        outputs["mean"] = gc.mean(z)
    if change == "result":
        outputs["z"] = z
    module = gc.compile(outputs, batch=BATCH, build=FLAGS, name="single")
    return [nodes for nodes in calls(module, "predict") if "max_pool2d" in nodes]


@pytest.mark.parametrize("change", ["nothing", "between", "dense", "wide", "read", "result"])
def test_what_keeps_a_pooling_apart(change: str) -> None:
    """Work between the two that no maximum passes, other readers of the map, and windows that do not pay."""
    (nodes,) = single(change)
    assert (nodes[0] == "a (conv2d)") == (change == "nothing")


def test_few_rows_are_computed_twice() -> None:
    """Tasks that share an image compute at most 2 % of the map's rows again, and fit on a thread's stack."""
    tasks = {
        (3, 64, 112, 7): 2,
        (3, 64, 55, 11): 2,
        (3, 16, 112, 7): 3,
        (3, 512, 112, 7): 1,
        (64, 192, 27, 5): 1,
    }
    for (c, o, size, kernel), parts in tasks.items():
        pad = kernel // 2
        op = PackedConv2d(o, (1, 1), (1, 1), 16, 31, Border(((pad, pad), (pad, pad))))
        image, out = TensorType("float32", (N, c, size, size)), TensorType("float32", (N, o, size, size))
        spec = op.spec(out, image, TensorType("float32", (-(-o // 16), c, kernel, kernel, 16)))
        geometry = pool_geometry(out.shape, (3, 3), (2, 2), (1, 1), (1, 1), False)
        found = walk(spec, geometry)
        assert found is not None
        assert found.parts == parts
        assert (found.parts - 1) * 1 <= 0.02 * size
        rows, row_bytes = 2 * found.rows + 1, geometry.reach[1] * 64
        assert spec.tile_bytes(rows) + rows * row_bytes <= 2**18
        assert found.together * row_bytes <= 2**16
