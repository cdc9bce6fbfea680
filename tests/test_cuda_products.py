"""Products of emitted CUDA on the emulated device: tiles, and depths that are divided into shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pytest
from helpers import reference

import graphc as gc
from graphc.emit.cuda import emit_cuda
from graphc.graph.node import Node
from graphc.ops.conv2d import Conv2d, ConvGeometry

FLAGS = gc.BuildOptions(optimisation=("-O1",))


@dataclass(frozen=True)
class Case:
    """A graph with products: inputs and outputs, the largest batch, and batches that it is run at."""

    name: str
    build: Callable[[], tuple[list[Node], dict[str, Node]]]
    batch: int = 1
    smaller: tuple[int, ...] = ()


def given(name: str, *shape: object) -> Node:
    return gc.input(name, shape)  # type: ignore[arg-type]


def over_the_batch() -> tuple[list[Node], dict[str, Node]]:
    """A linear layer's gradient for its weight: few results, and the batch is summed."""
    x, g = given("x", "N", 40), given("g", "N", 24)
    return [x, g], {"out": gc.matmul(gc.transpose(x), g)}


def with_an_epilogue() -> tuple[list[Node], dict[str, Node]]:
    """A layer whose bias and activation are applied to whole sums alone."""
    x, w, bias = given("x", "N", 1200), given("w", 1200, 30), given("bias", 30)
    return [x, w, bias], {"out": gc.relu(gc.matmul(x, w) + bias)}


def several() -> tuple[list[Node], dict[str, Node]]:
    """Matrices side by side."""
    a, b = given("a", 3, 33, 700), given("b", 3, 700, 17)
    return [a, b], {"out": gc.matmul(a, b)}


def weights(groups: int, stride: int = 1) -> tuple[list[Node], dict[str, Node]]:
    """A convolution's gradient for its weight."""
    x, w = given("x", "N", 8, 13, 13), given("w", 6, 8 // groups, 3, 3)
    geometry = ConvGeometry(stride=(stride, stride), padding=((1, 1), (1, 1)), groups=groups)
    out = Conv2d(geometry)(x, w)
    g = given("g", *["N" if k == 0 else d for k, d in enumerate(out.shape)])
    return [x, w, g], {"out": gc.grad(gc.sum(out * g), [w])[0]}


SHARED = [
    Case("over the batch", over_the_batch, 700, (699, 130, 1)),
    Case("with an epilogue", with_an_epilogue, 3, (1,)),
    Case("several", several),
    Case("weights", lambda: weights(1), 5, (3, 1)),
    Case("weights of groups", lambda: weights(2, stride=2), 12, (1,)),
]


def draw(inputs: list[Node], batch: int) -> dict[str, np.ndarray]:
    """Return values between -1 and 1, which float32 holds."""
    rng = np.random.default_rng(7)
    shapes = {i.op.name: [d if isinstance(d, int) else batch for d in i.shape] for i in inputs}  # type: ignore[attr-defined]
    return {name: rng.uniform(-1, 1, shape).astype("f").astype("d") for name, shape in shapes.items()}


def wanted(
    inputs: list[Node], outputs: Mapping[str, Node], values: Mapping[str, np.ndarray], batch: int
) -> np.ndarray:
    return reference(outputs, inputs, list(values.values()), batch)["out"]


def largest_sum(
    inputs: list[Node], outputs: Mapping[str, Node], values: Mapping[str, np.ndarray], batch: int
) -> float:
    """Return the largest sum of magnitudes: what an error of rounding is a part of."""
    return float(wanted(inputs, outputs, {k: np.abs(v) for k, v in values.items()}, batch).max())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", SHARED, ids=lambda case: case.name)
def test_shares_of_the_depth_add_up(case: Case, dtype: str) -> None:
    """Sums over shares are those of the reference, at the largest batch and at those that leave shares empty."""
    inputs, outputs = case.build()
    module = gc.compile(outputs, batch=case.batch, dtype=dtype, target="cuda-emulated", build=FLAGS)
    assert "gc_add_shares<" in emit_cuda(module.compiled.program).sources["net.cu"]
    for batch in (case.batch, *case.smaller, case.batch):
        values = draw(inputs, batch)
        given = {name: values[name].astype(dtype) for name in module.input_types}
        got = module.predict(**given)["out"]
        # Each of at most 16 + 8 + 1000 / 16 additions that a term passes through rounds by half a place at the most.
        error = 100 * np.finfo(dtype).eps * largest_sum(inputs, outputs, values, batch)
        np.testing.assert_allclose(got, wanted(inputs, outputs, values, batch), rtol=0, atol=error)
        np.testing.assert_array_equal(got, module.predict(**given)["out"])


def test_rows_of_a_smaller_batch_have_the_bits_of_the_largest() -> None:
    """How the depth is divided depends on the largest batch alone, not on that of a call."""
    inputs, outputs = with_an_epilogue()
    module = gc.compile(outputs, batch=3, target="cuda-emulated", build=FLAGS)
    values = {name: value.astype("f") for name, value in draw(inputs, 3).items()}
    whole = module.predict(**values)["out"]
    for row in range(3):
        alone = module.predict(**{**values, "x": values["x"][row : row + 1]})["out"]
        np.testing.assert_array_equal(alone[0], whole[row])


def test_a_product_with_many_tiles_has_no_shares() -> None:
    """Where tiles keep all multiprocessors busy the depth is summed at once, and the arena has no workspace."""
    a, b = given("a", 1200, 300), given("b", 300, 1200)
    module = gc.compile({"out": gc.matmul(a, b)}, target="cuda-emulated", build=FLAGS)
    emitted = emit_cuda(module.compiled.program)
    assert "gc_add_shares" not in emitted.sources["net.cu"]
    assert emitted.arena_bytes < 4 * (300 * 1200 * 2 + 1200 * 1200) + 4096
