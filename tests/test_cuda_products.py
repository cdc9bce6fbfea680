"""Products of emitted CUDA on the emulated device: tiles, and depths that are divided into shares."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import reference

import graphc as gc
from graphc.cli.tasks import digits
from graphc.emit import tiling
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


def many() -> tuple[list[Node], dict[str, Node]]:
    """Products of every kind with more than 64 rows and columns, which cut tiles; rows are aligned or not."""
    inputs, outputs = [], {}
    for kind, (m, k, n) in {"even": (132, 68, 136), "odd": (131, 67, 133)}.items():
        for a_shape, b_shape in (((m, k), (k, n)), ((m, k), (n, k)), ((k, m), (k, n)), ((k, m), (n, k))):
            name = f"{kind}{len(outputs)}"
            a, b = given(f"{name}_a", *a_shape), given(f"{name}_b", *b_shape)
            left, right = a if a_shape[0] == m else gc.transpose(a), b if b_shape[0] == k else gc.transpose(b)
            inputs, outputs = [*inputs, a, b], {**outputs, name: gc.matmul(left, right)}
    for name, taps, padding, size in (("three", 3, 1, 5), ("point", 1, 0, 6), ("uneven", 1, 0, 5)):
        x, w = given(f"{name}_x", "N", 68, size, size), given(f"{name}_w", 72, 68, taps, taps)
        out = Conv2d(ConvGeometry(padding=((padding, padding), (padding, padding))))(x, w)
        g = given(f"{name}_g", *["N" if k == 0 else d for k, d in enumerate(out.shape)])
        to_x, to_w = gc.grad(gc.sum(out * g), [x, w])
        inputs, outputs = (
            [*inputs, x, w, g],
            {**outputs, name: out, f"{name}_to_x": to_x, f"{name}_to_w": to_w},
        )
    return inputs, outputs


def draw(inputs: list[Node], batch: int) -> dict[str, np.ndarray]:
    """Return values between -1 and 1, which float32 holds."""
    rng = np.random.default_rng(7)
    shapes = {i.op.name: [d if isinstance(d, int) else batch for d in i.shape] for i in inputs}  # type: ignore[attr-defined]
    return {name: rng.uniform(-1, 1, shape).astype("f").astype("d") for name, shape in shapes.items()}


Values = Mapping[str, np.ndarray]


def compare(
    got: Values, inputs: list[Node], outputs: Mapping[str, Node], values: Values, error: float
) -> None:
    """Outputs are those of the reference, but for a part of the largest sum of magnitudes."""
    batch = next((len(values[i.op.name]) for i in inputs if not isinstance(i.shape[0], int)), 1)  # type: ignore[attr-defined]
    want = reference(outputs, inputs, list(values.values()), batch)
    sums = reference(outputs, inputs, [np.abs(v) for v in values.values()], batch)
    for name in outputs:
        np.testing.assert_allclose(
            got[name], want[name], rtol=0, atol=error * float(sums[name].max()), err_msg=name
        )


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
        got = module.predict(**given)
        # Each of at most 16 + 8 + 1000 / 16 additions that a term passes through rounds by half a place at the most.
        compare(got, inputs, outputs, values, 100 * np.finfo(dtype).eps)
        np.testing.assert_array_equal(got["out"], module.predict(**given)["out"])


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
    a, b = given("a", 4096, 300), given("b", 300, 4096)
    module = gc.compile({"out": gc.matmul(a, b)}, target="cuda-emulated", build=FLAGS)
    emitted = emit_cuda(module.compiled.program)
    assert "gc_add_shares" not in emitted.sources["net.cu"]
    assert emitted.arena_bytes < 4 * (300 * 4096 * 2 + 4096 * 4096) + 4096


@pytest.mark.parametrize(
    "tile", [*tiling._TILES, *tiling._MEASURED], ids=lambda tile: "x".join(map(str, tile))
)
def test_every_tile_computes_every_product(
    tile: tuple[int, int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All products are right in all tiles, whichever their sizes would choose, at two batches."""
    monkeypatch.setattr(tiling, "_TILES", (tile,))
    inputs, outputs = many()
    # What is dumped is emitted anew instead of taken from the cache.
    module = gc.compile(outputs, batch=5, target="cuda-emulated", build=FLAGS, dump_dir=tmp_path)
    height, width, _ = tile
    assert f"a block computes {height} x {width} " in (tmp_path / "99-net.cu").read_text()
    for batch in (5, 2):
        values = draw(inputs, batch)
        got = module.predict(**{name: values[name].astype("f") for name in module.input_types})
        # Sums of up to 612 terms, one after the other, each of which rounds by half a place of the sum at the most;
        # errors of both signs cancel to a tenth of that.
        compare(got, inputs, outputs, values, 60 * np.finfo("float32").eps)


def test_rows_that_begin_at_multiples_of_16_bytes_are_read_by_16_bytes() -> None:
    """Matrices and pointwise convolutions are, unless a row has another length; windows are read one by one."""
    text = emit_cuda(
        gc.compile(many()[1], batch=5, target="cuda-emulated", build=FLAGS).compiled.program
    ).sources["net.cu"]
    read = {
        name: set(re.findall(r"gc_(?:along|across)_depth<(\d)>", body))
        for name, body in re.findall(r"\b(\w+)\([^()]*\)\n{\n([^}]*?gc_product<.*?>\()", text, re.DOTALL)
    }
    for name, runs in read.items():
        kind = re.match("even|odd|three|point|uneven", name)
        assert kind, name
        if kind[0] in ("even", "point"):
            assert runs == {"4"}, name
        elif kind[0] == "odd":
            assert runs == {"1"}, name
        else:
            assert "1" in runs, name
    assert len(read) == 17


def rounded(values: Values, precision: str) -> dict[str, np.ndarray]:
    """Return float32 values to 11 (tf32, ties away from zero) or 8 significant bits (bf16, ties to even)."""
    words = {name: value.astype("f").view(np.uint32) for name, value in values.items()}
    if precision == "tf32":
        words = {name: (word + 0x1000) & 0xFFFFE000 for name, word in words.items()}
    else:
        words = {name: (word + 0x7FFF + (word >> 16 & 1)) & 0xFFFF0000 for name, word in words.items()}
    return {name: word.astype(np.uint32).view("f").astype("d") for name, word in words.items()}


@pytest.mark.parametrize("tile", [(128, 128, 2), (64, 32, 1)], ids=lambda tile: "x".join(map(str, tile)))
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_tensor_cores_multiply_rounded_operands_and_sum_in_float32(
    precision: str, tile: tuple[int, int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results are those of a float64 product of the rounded operands, to what sums in float32 may differ."""
    monkeypatch.setattr(tiling, "_TILES", (tile,))
    inputs, outputs = many()
    module = gc.compile(
        outputs, batch=5, target="cuda-emulated", precision=precision, build=FLAGS, dump_dir=tmp_path
    )
    text = (tmp_path / "99-net.cu").read_text()
    assert (
        f"gc_product<gc_tensor_sums<gc_{precision}, {tile[2]}>" in text and "gc_product<gc_sums<" not in text
    )
    for batch in (5, 2):
        values = draw(inputs, batch)
        got = module.predict(**{name: values[name].astype("f") for name in module.input_types})
        # As without tensor cores. Rounding of the operands is much more than that: unrounded ones do not pass.
        compare(got, inputs, outputs, rounded(values, precision), 60 * np.finfo("float32").eps)
        with pytest.raises(AssertionError):
            compare(got, inputs, outputs, values, 60 * np.finfo("float32").eps)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_shares_and_epilogues_are_in_float32(precision: str) -> None:
    """What is rounded is the operands alone: neither the shares' sums nor bias and activation."""
    inputs, outputs = with_an_epilogue()
    module = gc.compile(outputs, batch=3, target="cuda-emulated", precision=precision, build=FLAGS)
    values = draw(inputs, 3)
    got = module.predict(**{name: values[name].astype("f") for name in module.input_types})
    exact = {**rounded(values, precision), "bias": values["bias"]}
    compare(got, inputs, outputs, exact, 100 * np.finfo("float32").eps)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"precision": "fp16", "target": "cuda-emulated"}, gc.errors.RangeError, "'fp32', 'tf32', 'bf16'"),
        ({"precision": "tf32"}, gc.errors.GraphError, "not 'c'"),
        ({"precision": "bf16", "target": "cuda", "dtype": "float64"}, gc.errors.GraphError, "float64"),
    ],
)
def test_a_precision_that_there_is_not_is_refused(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        gc.compile({"out": gc.relu(given("x", "N", 3))}, **options)


# Operands are off by at most 2^-11 (tf32) or 2^-8 (bf16) of themselves. Errors of many terms have both signs, so that
# a loss is off by less than one of them; but gradients are off too, and every step starts from what the last ones
# left: twenty steps that move the loss by a fifth may move it by some such parts more or less.
@pytest.mark.parametrize(("precision", "apart"), [("tf32", 8 * 2.0**-11), ("bf16", 4 * 2.0**-8)])
def test_lenet_learns_as_in_float32(precision: str, apart: float) -> None:
    """Losses of twenty steps on a batch stay near those of float32, which fall; they are not the same."""
    task, order = digits(), np.random.default_rng(0).permutation(7000)
    batch = next(task.train.batches(16, order[:16]))
    nets = {}
    for chosen in ("fp32", precision):
        x, y = gc.input("x", ("N", 1, 32, 32)), gc.input("y", ("N",), dtype="int32")
        loss = gc.losses.cross_entropy(gc.models.lenet(x), y)
        nets[chosen] = gc.compile(
            {}, loss, gc.SGD(lr=0.05, momentum=0.9), batch=16, target="cuda-emulated", precision=chosen,
            name="lenet", build=FLAGS,
        )  # fmt: skip
    losses = {chosen: [float(net.train_step(**batch)) for _ in range(20)] for chosen, net in nets.items()}
    assert losses["fp32"][-1] < 0.85 * losses["fp32"][0]
    assert losses[precision] == pytest.approx(losses["fp32"], rel=apart)
    assert losses[precision] != losses["fp32"]
