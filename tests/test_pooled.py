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
from graphc.ops.pool2d import MaxPool2d, MaxPool2dIndex, pool_geometry

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


def modules(cases: Sequence[Case], isa: str, dtype: str) -> tuple[gc.Module, gc.Module]:
    """Return a module that pools within the convolutions' kernels, and one that stores the map for all to read."""
    fused: dict[str, Node] = {}
    apart: dict[str, Node] = {}
    for number, case in enumerate(cases):
        image = case.convolution(number)
        value, index = case.pools(image)
        fused |= {f"value{number}": value(image), f"index{number}": index(image)}
        apart[f"map{number}"] = image
    options = {"batch": BATCH, "dtype": dtype, "isa": isa, "build": FLAGS, "fork_us": 0.0}
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


def check(cases: Sequence[Case], isa: str, dtype: str, tolerance: float) -> None:
    """Compare with the maxima of the map that the other module stores, and that map with NumPy's in float64.

    Where the direct sums are of small integers, nothing is rounded and the map is NumPy's bit for bit.
    """
    fused, apart = modules(cases, isa, dtype)
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
                    exact = kind == "equal" and tolerance < 1e-5
                    bound = 0 if exact else tolerance * np.abs(wanted).max()
                    np.testing.assert_allclose(image, wanted, rtol=0, atol=bound, err_msg=text)


@pytest.mark.parametrize("isa", sorted(ISAS))
def test_winograds_tiles_are_pooled(isa: str) -> None:
    """The map's largest error is what Winograd's transforms are held to, 5e-5 of the largest result."""
    check(WINOGRAD, isa, "float32", 5e-5)
