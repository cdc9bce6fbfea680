"""What layers promise beyond their values: dropout's masks, sharing, freezing, what is kept, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers import weighted_sum

import graphc as gc
from graphc.errors import GraphcError, RangeError, ShapeError
from graphc.graph.node import topological
from graphc.ops.elementwise import Elementwise
from graphc.ops.pool2d import MaxPool2d, MaxPool2dIndex, pool_geometry
from graphc.types import N

# ---------------------------------------------------------------- derivative from the output

FROM_OUTPUT: dict[str, Callable[[gc.Tensor], gc.Tensor]] = {
    "relu": gc.relu, "leaky_relu": gc.leaky_relu, "sigmoid": gc.sigmoid, "tanh": gc.tanh, "elu": gc.elu,
    "exp": gc.exp, "softplus": gc.softplus,
}  # fmt: skip
FROM_INPUT: dict[str, Callable[[gc.Tensor], gc.Tensor]] = {
    "silu": gc.silu, "gelu": gc.gelu, "gelu_tanh": lambda x: gc.gelu(x, "tanh"), "hard_swish": gc.hard_swish,
    "abs": gc.abs, "square": gc.square,
    # Of a negative slope one value comes from two places, with different slopes.
    "leaky_relu": lambda x: gc.leaky_relu(x, -0.5), "elu": lambda x: gc.elu(x, -0.5),
}  # fmt: skip


@pytest.mark.parametrize(("table", "yes"), [(FROM_OUTPUT, True), (FROM_INPUT, False)], ids=["yes", "no"])
def test_the_decision_is_made_and_printed(table: dict[str, Any], yes: bool) -> None:
    x = gc.input("x", ("N", 4))
    for name, function in table.items():
        line = gc.print_graph({"y": function(x)}).splitlines()[1]
        assert f"{name}(" in line
        assert ("derivative from output" in line) == yes, line


def test_a_users_formula_is_decided_on_too() -> None:
    x = gc.input("x", ("N", 4))
    assert "derivative from output" in gc.print_graph({"y": gc.elementwise("s", "2/(1 + exp(-x)) - 1", x)})
    assert "derivative from output" not in gc.print_graph(
        {"y": gc.elementwise("m", "x*tanh(log(1 + exp(x)))", x)}
    )


def test_training_keeps_the_output_only_where_it_can() -> None:
    """In the compiled step the backward node reads the activation, and nothing else reads its input."""
    x = gc.input("x", ("N", 4))
    loss = gc.parameter("dummy", (1,))[0]
    table = {f"y_{n}": f for n, f in FROM_OUTPUT.items()} | {f"n_{n}": f for n, f in FROM_INPUT.items()}
    for name, function in table.items():
        loss = loss + weighted_sum(function(gc.nn.linear(x, 5, name=name)))
    module = gc.compile({}, loss=loss, batch=4)
    order = topological(module.compiled.graphs["train_step"].values())
    readers: dict[gc.Tensor, list[gc.Tensor]] = {}
    for node in order:
        for operand in node.inputs:
            readers.setdefault(operand, []).append(node)
    for name in table:
        (product,) = (n for n in order if n.name == name)
        (total,) = readers[product]  # with its bias
        activation = next(r for r in readers[total] if not r.op.title.endswith("_backward"))
        backward = [r for r in readers[total] if r is not activation]
        if name.startswith("y_"):
            assert not backward, f"{name}: {backward}"
            reading = [r for r in readers[activation] if r.op.title == f"{activation.op.title}_backward"]
            assert len(reading) == 1, name
        else:
            assert [r.op.title for r in backward] == [f"{activation.op.title}_backward"], name
        assert isinstance(activation.op, Elementwise)
        assert (activation.op.from_output is not None) == name.startswith("y_")


# ---------------------------------------------------------------- dropout


def dropout_module(p: float, seed: int = 0, size: int = 1000) -> gc.Module:
    """Return a module that shows the mask in the gradient of a parameter, and counts it in a metric."""
    w = gc.parameter("w", (8, size), 1.0)
    x = gc.input("x", (8, size))
    dropped = gc.nn.dropout(w * x, p)
    return gc.compile(
        {"out": gc.nn.dropout(x, p)},
        loss=gc.sum(gc.square(dropped)) * 0.5,
        metrics={"kept": gc.sum(gc.cast(gc.not_equal(dropped, 0.0), "float32"))},
        optimizer=gc.SGD(lr=0.0),
        dtype="float64",
        seed=seed,
    )


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_masks(p: float) -> None:
    """Inverted scaling, the same mask forward and backward, a new one every step, the same for one seed."""
    module, same, other = dropout_module(p), dropout_module(p), dropout_module(p, seed=1)
    x = np.random.default_rng(0).uniform(1, 2, (8, 1000))
    masks = []
    for _ in range(3):
        result = module.train_step(x=x)
        # d/dw of (s m w x)^2/2 at w = 1 is (s m x)^2, m the mask and s its scale.
        scaled = np.sqrt(module.grads["w"]) / x
        mask = scaled > 0
        np.testing.assert_allclose(scaled[mask], 1 / (1 - p), rtol=1e-12)
        assert result == pytest.approx(0.5 * module.grads["w"].sum(), rel=1e-12), (
            "one mask forward and backward"
        )
        assert result.metrics["kept"] == mask.sum()
        # 8000 draws: five standard deviations.
        assert mask.mean() == pytest.approx(1 - p, abs=5 * np.sqrt(p * (1 - p) / 8000))
        for axis in (0, 1):  # no pattern along an axis: the mean of every row and column is likely
            spread = np.sqrt(p * (1 - p) / mask.shape[axis])
            assert np.abs(mask.mean(axis) - (1 - p)).max() <= 6 * spread
        same.train_step(x=x)
        np.testing.assert_array_equal(module.grads["w"], same.grads["w"])
        other.train_step(x=x)
        assert not np.array_equal(module.grads["w"], other.grads["w"])
        masks.append(mask)
    for a, b in ((0, 1), (1, 2), (0, 2)):
        # Independent masks agree in a fraction p^2 + (1-p)^2.
        agree = (masks[a] == masks[b]).mean()
        assert agree == pytest.approx(p * p + (1 - p) ** 2, abs=0.05)


def test_backward_repeats_the_mask_of_its_step() -> None:
    module = dropout_module(0.5)
    x = np.ones((8, 1000))
    module.backward(x=x)
    first = module.grads["w"].copy()
    module.backward(x=x)
    np.testing.assert_array_equal(module.grads["w"], first)
    module.train_step(x=x)
    np.testing.assert_array_equal(module.grads["w"], first)
    module.train_step(x=x)
    assert not np.array_equal(module.grads["w"], first)


def test_two_dropouts_have_masks_of_their_own() -> None:
    w = gc.parameter("w", (4000,), 1.0)
    loss = gc.sum(gc.nn.dropout(w, 0.5) * gc.nn.dropout(w, 0.5))
    module = gc.compile({}, loss=loss, dtype="float64")
    # Both kept in a quarter of the places, where the product is 4.
    assert float(module.backward()) / 4 / 4000 == pytest.approx(0.25, abs=0.05)


def test_dropout_is_nothing_in_inference() -> None:
    x = gc.input("x", ("N", 6))
    plain, dropped = (
        gc.relu(gc.nn.linear(x, 4, name="a")),
        gc.relu(gc.nn.linear(gc.nn.dropout(x), 4, name="a")),
    )
    modules = [
        gc.compile(gc.nn.linear(h, 2, name="b"), batch=3) for h in (plain, gc.nn.dropout(dropped, 0.9))
    ]
    values = np.random.default_rng(1).standard_normal((3, 6)).astype("float32")
    np.testing.assert_array_equal(*(m.predict(x=values)["out"] for m in modules))
    kernels = [[c.kernel.template for c in m.compiled.program.entries[0].calls] for m in modules]
    assert kernels[0] == kernels[1]
    assert "philox" not in modules[1].source["net.c"]


def test_dropout_at_the_ends() -> None:
    x = gc.input("x", ("N", 3))
    assert gc.nn.dropout(x, 0) is x
    w = gc.parameter("w", (3,), 1.0)
    module = gc.compile({}, loss=gc.sum(gc.nn.dropout(w, 1.0)) + gc.sum(w))
    assert module.backward() == 3.0
    np.testing.assert_array_equal(module.grads["w"], [1, 1, 1])


# ---------------------------------------------------------------- graphs of many shapes


def test_several_inputs_and_outputs_and_a_tensor_used_many_times() -> None:
    a, b = gc.input("a", ("N", 3)), gc.input("b", ("N", 3, 2))
    c = gc.input("c", (2,))
    w = gc.parameter("w", (3,), np.array([1.0, -2.0, 0.5]))
    h = gc.tanh(a * w)
    again = h * h + gc.exp(h) * a + gc.sum(b, 2) * h
    pooled = gc.sum(b * c, 1)
    loss = gc.mean(again) + gc.sum(gc.square(pooled)) * gc.sum(w) + gc.sum(h)
    module = gc.compile(
        {"h": h, "again": again, "pooled": pooled, "same": h}, loss=loss, batch=4, dtype="float64"
    )
    rng = np.random.default_rng(0)
    given = {
        "a": rng.standard_normal((3, 3)),
        "b": rng.standard_normal((3, 3, 2)),
        "c": rng.standard_normal(2),
    }
    values = np.array([1.0, -2.0, 0.5])

    def forward(v: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
        t = np.tanh(given["a"] * v)
        r = t * t + np.exp(t) * given["a"] + given["b"].sum(2) * t
        s = (given["b"] * given["c"]).sum(1)
        return {"h": t, "again": r, "pooled": s, "same": t}, float(
            r.mean() + (s**2).sum() * v.sum() + t.sum()
        )

    wanted, total = forward(values)
    got = module.predict(**given)
    assert list(got) == ["h", "again", "pooled", "same"]
    for name, want in wanted.items():
        np.testing.assert_allclose(got[name], want, rtol=1e-12, atol=1e-12)
    assert module.backward(**given) == pytest.approx(total, rel=1e-12)
    for k in range(3):
        step = np.eye(3)[k] * 1e-6
        difference = (forward(values + step)[1] - forward(values - step)[1]) / 2e-6
        assert module.grads["w"][k] == pytest.approx(difference, rel=1e-7)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [((3, 3), (2, 2), (1, 1), (1, 1)), ((2, 3), (1, 2), (1, 0), (1, 1)), ((3, 2), (2, 2), (1, 1), (2, 3))],
)
def test_max_pooling_takes_the_first_of_equals(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    dtype: str,
) -> None:
    """Of equal elements, and of NaNs, which beat everything, the first in the window counts, row by row."""
    shape = (N, 3, 13, 37)
    geometry = pool_geometry(shape, kernel, stride, padding, dilation, False)
    x = gc.input("x", ("N", *shape[1:]))
    value, index = MaxPool2d(geometry)(x), MaxPool2dIndex(geometry)(x)
    module = gc.compile({"value": value, "index": index}, batch=4, dtype=dtype)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 3, (4, 3, 13, 37)).astype(dtype)
    images[rng.random(images.shape) < 0.02] = np.nan
    images[rng.random(images.shape) < 0.3] = -np.inf
    got = module.predict(x=images)
    np.testing.assert_array_equal(got["value"], value.op.reference(images))
    np.testing.assert_array_equal(
        np.where(np.isneginf(got["value"]), 0, got["index"]),  # a window of -inf alone has no maximum
        np.where(np.isneginf(got["value"]), 0, index.op.reference(images)),
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_of_many_rows_of_weights(dtype: str) -> None:
    """More than a thousand rows are computed in bands, of which the last is not full, and has rows left over."""
    x, g = gc.input("x", ("N", 21)), gc.input("g", ("N", 1101))
    module = gc.compile(
        {}, loss=gc.sum(gc.nn.linear(x, 1101, bias=False, name="wide") * g), batch=7, dtype=dtype
    )
    rng = np.random.default_rng(1)
    images, cotangents = (
        rng.standard_normal((7, 21)).astype(dtype),
        rng.standard_normal((7, 1101)).astype(dtype),
    )
    for count in (7, 2):
        module.backward(x=images[:count], g=cotangents[:count])
        want = cotangents[:count].T.astype(np.float64) @ images[:count]
        tolerance = 16 * float(np.finfo(dtype).eps)  # seven products are added
        np.testing.assert_allclose(
            module.grads["wide.weight"], want, rtol=0, atol=tolerance * np.abs(want).max()
        )


def test_shared_parameters_and_tied_weights() -> None:
    """One table embeds and gives the logits; one layer is used twice."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    i, y = gc.input("i", ("N", 2), "int32"), gc.input("y", ("N",), "int32")
    table = gc.parameter("table", (7, 4), gc.initialisers.Normal())
    hidden, bias = gc.parameter("hidden", (4, 4), gc.initialisers.Uniform()), gc.parameter("bias", (4,), 0.1)
    h = gc.mean(gc.nn.embedding(i, 7, 4, weight=table), 1)
    for _ in range(2):
        h = gc.tanh(gc.nn.linear(h, 4, weight=hidden, bias=bias))
    logits = gc.nn.linear(h, 7, weight=table, bias=False)
    loss = gc.losses.cross_entropy(logits, y)
    module = gc.compile({"logits": logits}, loss=loss, optimizer=gc.SGD(0.2, 0.9), batch=5, dtype="float64")
    assert sorted(module.params) == ["bias", "hidden", "table"]
    weights = {k: torch.tensor(np.array(v), requires_grad=True) for k, v in module.params.items()}
    optimizer = torch.optim.SGD(weights.values(), lr=0.2, momentum=0.9)
    rng = np.random.default_rng(2)
    for _ in range(5):
        index, labels = rng.integers(0, 7, (5, 2)).astype("int32"), rng.integers(0, 7, 5).astype("int32")
        state = weights["table"][torch.tensor(index).long()].mean(1)
        for _ in range(2):
            state = torch.tanh(state @ weights["hidden"].T + weights["bias"])
        want = torch.nn.functional.cross_entropy(state @ weights["table"].T, torch.tensor(labels).long())
        optimizer.zero_grad()
        want.backward()
        optimizer.step()
        assert module.train_step(i=index, y=labels) == pytest.approx(float(want.detach()), rel=1e-11)
        for name, value in weights.items():
            np.testing.assert_allclose(module.params[name], value.detach().numpy(), rtol=1e-10, atol=1e-12)


def test_parameters_that_are_not_trained() -> None:
    """No gradient node or kernel, no place in the update, and the same bits after training."""
    x, y = gc.input("x", ("N", 1, 6, 6)), gc.input("y", ("N",), "int32")
    h = gc.relu(gc.nn.conv2d(x, 2, 3, name="frozen", trainable=False))
    h = gc.nn.batch_norm(h, name="norm", trainable=False)
    h = gc.relu(gc.nn.linear(gc.flatten(h), 5, name="open"))
    h = gc.nn.layer_norm(gc.nn.linear(h, 4, name="later", trainable=False), name="ln", trainable=False)
    scale = gc.parameter("scale", (4,), 2.0, trainable=False)
    logits = gc.nn.linear(h * scale, 3, name="last")
    module = gc.compile({"l": logits}, loss=gc.losses.cross_entropy(logits, y),
                        optimizer=gc.SGD(0.1, 0.9, weight_decay=0.1), batch=4)  # fmt: skip
    trained = ["last.bias", "last.weight", "open.bias", "open.weight"]
    assert sorted(module.grads) == trained
    assert sorted(module.slots["velocity"]) == trained
    before = {k: v.copy() for k, v in module.params.items()}
    rng = np.random.default_rng(3)
    for _ in range(3):
        module.train_step(
            x=rng.standard_normal((4, 1, 6, 6)).astype("f4"), y=rng.integers(0, 3, 4).astype("i4")
        )
    changed = sorted(k for k, v in module.params.items() if not np.array_equal(v, before[k]))
    assert changed == trained
    kernels = [
        c.kernel.template for e in module.compiled.program.entries if e.name == "train_step" for c in e.calls
    ]
    assert not [k for k in kernels if k.startswith("conv2d_backward")], "nothing below needs a gradient"
    assert module.state["norm.running_mean"].any(), "running statistics still move"


def test_an_embedding_that_is_not_trained() -> None:
    i = gc.input("i", ("N",), "int32")
    out = gc.nn.embedding(i, 4, 3, name="table", trainable=False)
    module = gc.compile(out, loss=gc.sum(gc.nn.linear(out, 1, name="fc")), optimizer=gc.SGD(0.1), batch=2)
    assert sorted(module.grads) == ["fc.bias", "fc.weight"]


def test_constants_keep_their_digits_and_their_integers() -> None:
    """A float64 module has float64 constants, integers stay integers, and neither is a parameter."""
    x = gc.input("x", ("N", 4))
    tenths, whole = np.array([0.1, 0.2, 0.3, 0.4]), np.array([7, 2**40 + 1, -3, 0])
    table = np.arange(12.0).reshape(4, 3) / 7
    outputs = {
        "scaled": x * gc.constant(tenths) * gc.constant(0.1),
        "whole": gc.constant(whole) + gc.cast(x, "int64"),
        "small": x + gc.constant(np.array([1, 2, 3, 4], dtype="int32")),
        "rows": gc.take(gc.constant(table), gc.constant(np.array([3, 1], dtype="int32"))),
        "fc": gc.nn.linear(x, 1, name="fc"),
    }
    for dtype in ("float64", "float32"):
        module = gc.compile(outputs, dtype=dtype)
        got = module.predict(x=np.ones((1, 4), dtype))
        assert sorted(module.params) == ["fc.bias", "fc.weight"]
        assert sorted(module.state_dict()) == ["fc.bias", "fc.weight", "graphc.seed", "graphc.step"]
        tolerance = {"float64": 1e-15, "float32": 1e-7}[dtype]
        np.testing.assert_allclose(got["scaled"][0], tenths * 0.1, rtol=2 * tolerance)
        np.testing.assert_array_equal(got["whole"][0], whole + 1)
        np.testing.assert_array_equal(got["small"][0], [2, 3, 4, 5])
        np.testing.assert_allclose(got["rows"], table[[3, 1]], rtol=tolerance)


def test_constants_of_two_precisions_do_not_change_places() -> None:
    x = gc.input("x", ("N", 2))
    same, other = np.array([1.0, 2.0]), np.array([10.0, 20.0])
    out = x * gc.constant(same) + gc.constant(same, "float64") + gc.constant(other)
    for dtype in ("float64", "float32"):
        got = gc.compile(out, dtype=dtype).predict(x=np.ones((1, 2), dtype))["out"]
        np.testing.assert_array_equal(got[0], 2 * same + other)


# ---------------------------------------------------------------- differentiating twice


def penalised(layer: Callable[[gc.Tensor], gc.Tensor], x: gc.Tensor) -> gc.Tensor:
    out = layer(x)
    (slope,) = gc.grad(weighted_sum(out), [x])
    return gc.mean(out) + gc.sum(gc.square(slope)) * 0.1


def test_a_gradient_penalty_is_trained_as_in_pytorch() -> None:
    """The loss holds a gradient; training differentiates it again, through every kind of layer."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from test_nn_torch import peer_sum

    x = gc.input("x", ("N", 2, 6, 6))

    def net(x: gc.Tensor) -> gc.Tensor:
        h = gc.tanh(gc.nn.batch_norm(gc.nn.conv2d(x, 3, 3, padding=1, name="conv"), name="bn"))
        h = gc.nn.avg_pool2d(gc.nn.max_pool2d(h, 2), 2, stride=1)
        h = gc.nn.layer_norm(gc.silu(gc.nn.linear(gc.flatten(h), 5, name="fc1")), name="ln")
        return gc.nn.linear(gc.softmax(h), 2, name="fc2")

    loss = penalised(net, x)
    module = gc.compile({}, loss=loss, optimizer=gc.SGD(0.05, 0.9), batch=4, dtype="float64")
    nn, functional = torch.nn, torch.nn.functional
    layers = nn.ModuleDict({"conv": nn.Conv2d(2, 3, 3, padding=1), "bn": nn.BatchNorm2d(3),
                            "fc1": nn.Linear(12, 5), "ln": nn.LayerNorm(5),
                            "fc2": nn.Linear(5, 2)}).double()  # fmt: skip

    def peer(x: Any) -> Any:
        h = torch.tanh(layers["bn"](layers["conv"](x)))
        h = functional.avg_pool2d(functional.max_pool2d(h, 2), 2, stride=1)
        h = layers["ln"](functional.silu(layers["fc1"](h.flatten(1))))
        return layers["fc2"](torch.softmax(h, -1))

    assert sorted(module.params) == sorted(n for n, _ in layers.named_parameters())
    rng = np.random.default_rng(4)
    with torch.no_grad():
        for name, value in layers.named_parameters():
            module.params[name] = rng.standard_normal(value.shape) * 0.5
            value.copy_(torch.tensor(np.array(module.params[name])))
    optimizer = torch.optim.SGD(layers.parameters(), lr=0.05, momentum=0.9)
    for _ in range(5):
        values = rng.standard_normal((4, 2, 6, 6))
        t = torch.tensor(values, requires_grad=True)
        out = peer(t)
        (slope,) = torch.autograd.grad(peer_sum(out), [t], create_graph=True)
        want = out.mean() + (slope**2).sum() * 0.1
        optimizer.zero_grad()
        want.backward()
        assert module.backward(x=values) == pytest.approx(float(want.detach()), rel=1e-9)
        largest = max(float(p.grad.abs().max()) for p in layers.parameters())
        for name, value in layers.named_parameters():
            np.testing.assert_allclose(
                module.grads[name], value.grad.numpy(), rtol=1e-8, atol=1e-9 * largest, err_msg=name
            )
        optimizer.step()
        module.train_step(x=values)


def test_stop_gradient_stops_in_the_compiled_step_too() -> None:
    w = gc.parameter("w", (2,), np.array([3.0, 5.0]))
    module = gc.compile({}, loss=gc.sum(w * gc.stop_gradient(w)), dtype="float64")
    assert module.backward() == 34.0
    np.testing.assert_array_equal(module.grads["w"], [3.0, 5.0])


# ---------------------------------------------------------------- batch norm at the edge, and errors


def test_batch_norm_of_a_single_row() -> None:
    """PyTorch refuses such a batch; here the result is the bias, and the running variance stays a number."""
    x = gc.input("x", ("N", 3))
    out = gc.nn.batch_norm(gc.nn.linear(x, 3, name="fc"), name="bn", bias=0.25)
    module = gc.compile(out, loss=gc.mean(gc.square(out)), optimizer=gc.SGD(0.1), batch=4, dtype="float64")
    result = module.train_step(x=np.ones((1, 3)))
    assert result == pytest.approx(0.0625)
    np.testing.assert_allclose(module.state["bn.running_var"], 0.9)
    assert all(np.isfinite(g).all() for g in module.grads.values())
    np.testing.assert_allclose(module.grads["fc.weight"], 0, atol=1e-12)


X4, X2 = gc.input("x", ("N", 4, 8, 8)), gc.input("x", ("N", 5))
INDEX = gc.input("i", ("N",), "int32")


@pytest.mark.parametrize(
    ("build", "error", "says"),
    [
        (lambda: gc.nn.linear(X2, 0), RangeError, "features"),
        (lambda: gc.nn.linear(X2, 2.5, name="fc"), RangeError, "fc.*features"),  # type: ignore[arg-type]
        (lambda: gc.nn.linear(gc.flatten(X4, 0), 3), ShapeError, "linear"),
        (
            lambda: gc.nn.linear(X2, 3, weight=gc.parameter("w", (3, 4))),
            ShapeError,
            r"linear: expected \(N, 4\), got",
        ),
        (lambda: gc.nn.linear(X2, 3, bias=gc.parameter("b", (1,))), ShapeError, "bias"),
        (lambda: gc.nn.conv2d(X2, 3, 3, name="c"), ShapeError, r"c.*\(N, C, H, W\)"),
        (lambda: gc.nn.conv2d(X4, 3, 9), ShapeError, "conv2d"),
        (lambda: gc.nn.conv2d(X4, 3, 3, groups=2), ShapeError, "groups"),
        (lambda: gc.nn.conv2d(X4, 3, (3, 3, 3)), RangeError, "kernel"),
        (lambda: gc.nn.conv2d(X4, 3, 3, stride=0), RangeError, "stride"),
        (lambda: gc.nn.conv2d(X4, 3, True), RangeError, "kernel"),
        (lambda: gc.nn.conv2d(X4, 3, 3, padding=-1), RangeError, "padding"),
        (lambda: gc.nn.conv2d(X4, 3, 3, padding="full"), RangeError, "full"),
        (lambda: gc.nn.conv2d(X4, 3, 3, padding="same", stride=2), RangeError, "same"),
        (lambda: gc.nn.conv2d(X4, 3, 3, padding=((1, 1), (1, 1), (0, 0))), RangeError, "padding"),
        (lambda: gc.nn.conv2d(X4, 3, 3, weight=gc.parameter("w", (3, 4, 3, 2))), ShapeError, "weight"),
        (lambda: gc.nn.conv2d(X4, 3, 3, bias=gc.parameter("b", (4,))), ShapeError, "bias"),
        (lambda: gc.nn.max_pool2d(X2, 2), ShapeError, "max_pool2d"),
        (lambda: gc.nn.max_pool2d(X4, 2, padding=2), ShapeError, "padding"),
        (lambda: gc.nn.avg_pool2d(X4, 9), ShapeError, "avg_pool2d"),
        (lambda: gc.nn.avg_pool2d(X4, 2, divisor_override=0), RangeError, "divisor_override"),
        (lambda: gc.nn.adaptive_avg_pool2d(X4, (0, 2)), RangeError, "out"),
        (lambda: gc.nn.global_max_pool2d(X2), ShapeError, "global_max_pool2d"),
        (lambda: gc.nn.dropout(X2, 1.5), RangeError, "1.5"),
        (lambda: gc.nn.batch_norm(gc.input("v", (3,))), ShapeError, "batch_norm"),
        (lambda: gc.nn.batch_norm(X2, eps=-1.0), RangeError, "eps"),
        (lambda: gc.nn.batch_norm(X2, momentum=1.5), RangeError, "momentum"),
        (lambda: gc.nn.layer_norm(X2, 2), ShapeError, "layer_norm"),
        (lambda: gc.nn.layer_norm(X2, 0), ShapeError, "layer_norm"),
        (lambda: gc.nn.embedding(INDEX, 0, 3), RangeError, "rows"),
        (lambda: gc.nn.embedding(INDEX, 4, 3, padding_index=4), RangeError, "padding_index"),
        (lambda: gc.nn.embedding(X2, 4, 3), GraphcError, "integer"),
        (lambda: gc.flatten(X4, 4), RangeError, "flatten"),
    ],
)
def test_errors_name_the_layer_the_values_and_the_line(
    build: Callable[[], Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        build()
    assert "at test_nn.py:" in str(caught.value)
