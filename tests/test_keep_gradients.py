"""Without a block of gradients: parameters are updated as their gradients are computed, with the same bits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import graphc as gc
from graphc.errors import GraphcError, GraphError, RangeError
from graphc.optim import Optimizer

BATCH = 5
FLAGS = gc.BuildOptions(optimisation=("-O1", "-march=native"))
Net = Callable[[], tuple[dict[str, gc.Tensor], gc.Tensor]]


def classes() -> gc.Tensor:
    return gc.input("y", ("N",), dtype="int32")


def images() -> tuple[dict[str, gc.Tensor], gc.Tensor]:
    """Convolutions with batch norm, large and small products, dropout."""
    x = gc.input("x", ("N", 3, 14, 14))
    h = gc.relu(gc.nn.batch_norm(gc.nn.conv2d(x, 160, 3, stride=2, bias=False, name="conv1"), name="norm"))
    h = gc.relu(gc.nn.conv2d(h, 40, 3, padding=1, name="conv2"))
    h = gc.nn.dropout(gc.relu(gc.nn.linear(gc.flatten(h), 90, name="fc1")), 0.4)
    logits = gc.nn.linear(h, 7, name="fc2")
    return {"logits": logits}, gc.losses.cross_entropy(logits, classes())


def sequence() -> tuple[dict[str, gc.Tensor], gc.Tensor]:
    """An embedding, positions that are added (and computed with again), and weights that are used twice."""
    words = gc.input("x", ("N", 60), dtype="int32")
    table = gc.parameter("table", (80, 64), gc.initialisers.Normal(0.5))
    places = gc.parameter("places", (60, 64 * 2), gc.initialisers.Normal(0.5))
    square = gc.parameter("square", (64, 64), gc.initialisers.Normal(0.1))
    h = gc.matmul(gc.matmul(gc.take(table, words), square), square)
    h = gc.tanh(gc.concat([h, h * h], 2) + places)
    logits = gc.nn.linear(gc.nn.linear(gc.mean(h * gc.sigmoid(h), 1), 64, name="wide"), 7, name="fc")
    penalty = 1e-3 * gc.sum(square * square)
    return {"logits": logits}, gc.losses.cross_entropy(logits, classes()) + penalty


def data(net: Net, rows: int, step: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(step)
    labels = generator.integers(0, 7, rows).astype("int32")
    if net is images:
        return {"x": generator.standard_normal((rows, 3, 14, 14)).astype("float32"), "y": labels}
    return {"x": generator.integers(0, 80, (rows, 60)).astype("int32"), "y": labels}


def module(net: Net, optimizer: Optimizer, name: str, **options: object) -> gc.Module:
    outputs, loss = net()
    return gc.compile(
        outputs, loss=loss, optimizer=optimizer, batch=BATCH, name=name, build=FLAGS, fork_us=0.0, **options
    )  # type: ignore[arg-type]


OPTIMIZERS = [
    gc.SGD(lr=0.1),
    gc.SGD(lr=0.05, momentum=0.9, weight_decay=1e-2, nesterov=True),
    gc.SGD(
        lr=0.05, momentum=0.9, dampening=0.3, groups={"*1.weight": {"lr_scale": 0.5, "weight_decay": 0.1}}
    ),
    gc.Adam(lr=0.01, weight_decay=0.01),
    gc.AdamW(lr=0.01, groups={"fc*": {"beta1": 0.8}}, decay="matrices"),
]


@pytest.mark.parametrize("net", [images, sequence])
@pytest.mark.parametrize("number", range(len(OPTIMIZERS)))
def test_every_bit_is_that_of_the_loop_over_the_block(net: Net, number: int) -> None:
    """Losses, parameters, the optimizer's state and statistics after steps of two batch sizes."""
    kept = module(net, OPTIMIZERS[number], f"kept{number}")
    used = module(net, OPTIMIZERS[number], f"used{number}", keep_gradients=False, threads=2)
    for step, rows in enumerate((BATCH, 2, BATCH)):
        batch = data(net, rows, step)
        assert used.train_step(**batch) == kept.train_step(**batch)
        assert used.train_step(**batch, lr=0.02) == kept.train_step(**batch, lr=0.02)
    want = kept.state_dict()
    for name, value in used.state_dict().items():
        np.testing.assert_array_equal(value, want[name], err_msg=name)
    large = {n for n, array in kept.grads.items() if array.size >= 4096}
    assert large
    assert set(used.grads) == set(kept.grads) - large


@pytest.mark.parametrize("net", [images, sequence])
def test_within_a_budget_too(net: Net) -> None:
    """What runs again reads the parameters as they were."""
    optimizer = gc.SGD(lr=0.1, momentum=0.9)
    free = module(net, optimizer, "free", keep_gradients=False)
    with pytest.raises(RangeError, match="the least that was found") as refused:
        module(net, optimizer, "tight", keep_gradients=False, memory_budget=1)
    least = int(str(refused.value).split()[-2].replace(",", ""))
    assert least < 0.95 * free.plan("train").arena_bytes
    tight = module(net, optimizer, "tight", keep_gradients=False, memory_budget=least)
    for step in range(2):
        batch = data(net, BATCH, step)
        assert tight.train_step(**batch) == free.train_step(**batch)
    want = free.state_dict()
    for name, value in tight.state_dict().items():
        np.testing.assert_array_equal(value, want[name], err_msg=name)


def test_the_gradient_of_a_product_is_nowhere() -> None:
    """Two layers of 4 MiB: neither the block of gradients nor the arena has room for one of them."""
    x = gc.input("x", ("N", 1024))
    h = gc.nn.linear(gc.relu(gc.nn.linear(x, 1024, name="fc1")), 1024, name="fc2")
    loss = gc.mean(h * h)
    built = gc.compile(
        {"h": h}, loss, gc.SGD(lr=0.1), batch=4, name="nowhere", keep_gradients=False, build=FLAGS
    )
    assert built.manifest["sizes"]["grads"] == 2 * 1024  # of the biases
    assert built.plan("train").arena_bytes < 2**18
    assert "fc2_weight_update" in built.source["nowhere.c"]


def test_gradients_that_are_used_up_cannot_be_asked_for() -> None:
    built = module(images, gc.SGD(lr=0.1), "asked", keep_gradients=False)
    batch = data(images, 2, 0)
    before = built.state_dict()
    with pytest.raises(GraphcError, match=r"backward: module 'asked' was compiled with keep_gradients=False"):
        built.backward(**batch)
    with pytest.raises(RangeError, match="there is no step without an update"):  # what C says to commit = 0
        built._train(batch, 0.1, False)
    for name, value in built.state_dict().items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_it_needs_an_optimizer() -> None:
    outputs, loss = images()
    with pytest.raises(GraphError, match="keep_gradients=False needs an optimizer"):
        gc.compile(outputs, loss=loss, batch=2, keep_gradients=False)
    with pytest.raises(RangeError, match="keep_gradients must be True or False, got 0"):
        gc.compile(outputs, loss=loss, optimizer=gc.SGD(lr=0.1), keep_gradients=0)  # type: ignore[arg-type]
