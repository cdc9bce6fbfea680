"""Passes, lowering and plans on small graphs: a test for every fault that random graphs brought to light."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from replay import ReplayError, check_plan, replay

import graphc as gc
from graphc.graph.interpret import interpret
from graphc.graph.node import Node, topological
from graphc.graph.verify import verify
from graphc.ops.conv2d import Conv2d
from graphc.ops.elementwise import Elementwise
from graphc.ops.leaves import Input, Parameter
from graphc.ops.movement import Reshape
from graphc.ops.pool2d import MaxPool2d
from graphc.ops.reduce import Reduce, iota
from graphc.passes import recompute
from graphc.passes.fold import fixed_nodes
from graphc.passes.generated import is_generated
from graphc.passes.pool_before_activation import pool_before_activation
from graphc.passes.recompute import fuse
from graphc.passes.retype import retype
from graphc.passes.simplify import simplify
from graphc.passes.specialise import specialise
from graphc.pipeline import Request, compile_program
from graphc.program.ir import Space
from graphc.types import N

_QUICK = gc.BuildOptions(optimisation=("-O1",))


def values_of(outputs: Mapping[str, Node], batch: int) -> dict[Node, np.ndarray]:
    """Draw values for the inputs and parameters of a graph."""
    rng = np.random.default_rng(0)
    leaves = [n for n in topological(outputs.values()) if isinstance(n.op, (Input, Parameter))]
    shapes = {n: tuple(d if isinstance(d, int) else d.at(batch) for d in n.shape) for n in leaves}
    return {n: rng.uniform(-2, 2, shape) for n, shape in shapes.items()}


def check(outputs: Mapping[str, Node], batch: int = 3) -> None:
    """Compile for inference in f64 and compare with the interpreter; 1e-12 leaves room for roundings."""
    plain = specialise(outputs, training=False).outputs
    values = values_of(plain, batch)
    module = gc.compile(outputs, batch=4, dtype="float64", build=_QUICK)
    for node, value in values.items():
        if not isinstance(node.op, Input):
            module.params[str(node.name)] = value
    got = module.predict(**{n.op.name: v for n, v in values.items() if isinstance(n.op, Input)})
    for name, want in zip(plain, interpret(list(plain.values()), values, batch=batch), strict=True):
        np.testing.assert_allclose(got[name], want, rtol=1e-12, atol=1e-12, err_msg=name)


def count(outputs: Mapping[str, Node], kind: type) -> int:
    return sum(isinstance(n.op, kind) for n in topological(outputs.values()))


# ---- simplify ------------------------------------------------------------------------------------------


def same_meaning(outputs: Mapping[str, Node], batch: int = 3) -> dict[str, Node]:
    """Return the simplified graph, having compared it with the graph as written."""
    simple = simplify(outputs)
    verify(simple)
    values = values_of(outputs, batch)
    want = interpret(list(outputs.values()), values, batch=batch)
    for a, b in zip(interpret(list(simple.values()), values, batch=batch), want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
    return simple


def test_a_factor_taken_out_of_a_sum_leaves_the_axes_where_they_are() -> None:
    """The factor inside has a lower rank: axis 1 of the sum is its axis 0, and its axis 1 would fit too."""
    outside, inside = gc.input("a", (3, 1, 1)), gc.input("b", (4, 4))
    simple = same_meaning({"s": Reduce("sum", (1,))(outside * inside)})
    assert count(simple, Reduce) == 1


def test_a_factor_of_lower_rank_with_another_extent() -> None:
    same_meaning({"s": gc.sum(gc.input("a", (5, 1)) * gc.input("b", (4,)), 1, keepdims=True)})


def test_a_sum_of_a_bool_factor_stays_a_float() -> None:
    x, w = gc.input("x", ("N", 3)), gc.input("w", ("N", 1))
    same_meaning({"s": gc.sum(gc.mul(w, gc.greater(x, 0.0)), 1)})


def test_a_sum_of_an_integer_factor_keeps_its_fraction() -> None:
    k, w = gc.cast(iota((N, 4), 1), "int64"), gc.input("w", ("N", 1))
    same_meaning({"s": gc.sum(gc.elementwise("third", "a*b/3", w, gc.cast(k, "float32")), 1)})


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1), (1, 2), (0, 2), (0, 1, 2)])
def test_sums_of_broadcast_products(axes: tuple[int, ...]) -> None:
    a, b, c = gc.input("a", ("N", 1, 3)), gc.input("b", (4, 1)), gc.input("c", (3,))
    same_meaning({"s": gc.sum(a * b * c, axes)})


# ---- values that an index determines -------------------------------------------------------------------


def test_generated_values_seen_through_views() -> None:
    along_batch, along_rows = iota((N, 4, 3), 0), iota((2, N, 3), 1)
    x = gc.input("x", ("N", 4, 3))
    flat = gc.reshape(gc.cast(along_rows, "float32"), (-1, 3))  # index modulo N: no stride says that
    assert not is_generated(gc.reshape(along_rows, (-1, 3)))
    assert is_generated(gc.transpose(along_batch, (2, 0, 1)))
    check({
        "flat": flat * 2.0,
        "product": gc.matmul(gc.transpose(flat), flat),
        "turned": gc.transpose(gc.cast(along_batch, "float32"), (2, 0, 1)) + gc.transpose(x, (2, 0, 1)),
        "sliced": gc.cast(along_batch, "float32")[:, 1::2, ::-1] + x[:, 1::2, ::-1],
        "formula": gc.reshape(gc.cos(gc.cast(along_batch, "float32") * 0.3), (-1,)) + gc.reshape(x, (-1,)),
        "repeated": gc.reshape(gc.expand(gc.cast(iota((4,), 0), "float32"), (N, 3, 4)), (-1, 4)) * 3.0,
    })  # fmt: skip


def test_random_numbers_seen_through_a_view_keep_their_stream() -> None:
    x = gc.input("x", ("N", 6))
    noisy = gc.nn.dropout(x, 0.5)
    loss = gc.sum(gc.reshape(noisy, (-1,)) * gc.parameter("w", (), 1.0))
    module = gc.compile({"x2": x + x}, loss, batch=4, dtype="float64", build=_QUICK, seed=7)
    value = np.random.default_rng(1).uniform(1, 2, (3, 6))
    graph = specialise({"loss": loss}, training=True).outputs
    leaves = {n: value if isinstance(n.op, Input) else np.ones(()) for n in topological(graph.values())
              if not n.inputs and not is_generated(n)}  # fmt: skip
    want = interpret(list(graph.values()), leaves, batch=3, seed=7)[0]
    assert float(module.backward(x=value)) == pytest.approx(float(want), rel=1e-12)


# ---- folding -------------------------------------------------------------------------------------------


def test_a_parameter_repeated_along_the_batch_is_not_folded() -> None:
    w = gc.parameter("w", (3,), np.array([1.0, 2.0, 3.0]))
    repeated = gc.softmax(gc.expand(w, (N, 3)), 1)
    assert repeated not in fixed_nodes({"r": repeated})
    check({"r": gc.input("x", ("N", 3)) * repeated})


def test_entry_points_that_fold_different_values_of_one_shape() -> None:
    """Predict folds exp(a), evaluate folds exp(b): one must not read the other's."""
    x = gc.input("x", ("N", 3))
    a, b = gc.parameter("a", (3,), np.full(3, 0.5)), gc.parameter("b", (3,), np.full(3, 2.0))
    loss = gc.mean(gc.relu(x * gc.exp(b)))
    module = gc.compile({"o": gc.relu(x * gc.exp(a))}, loss, batch=2, dtype="float64", build=_QUICK)
    ones = np.ones((2, 3))
    np.testing.assert_allclose(module.predict(x=ones)["o"], np.exp(0.5) * ones, rtol=1e-14)
    assert float(module.evaluate(x=ones)) == pytest.approx(np.exp(2.0), rel=1e-14)
    assert float(module.backward(x=ones)) == pytest.approx(np.exp(2.0), rel=1e-14)


def test_folded_values_follow_the_parameters() -> None:
    x = gc.input("x", ("N", 3))
    module = gc.compile({"o": x * gc.exp(gc.parameter("a", (3,)))}, batch=2, dtype="float64", build=_QUICK)
    ones = np.ones((2, 3))
    np.testing.assert_array_equal(module.predict(x=ones)["o"], ones)
    module.params["a"] = np.array([0.0, 1.0, 2.0])
    np.testing.assert_allclose(module.predict(x=ones)["o"][1], np.exp([0.0, 1.0, 2.0]), rtol=1e-14)


# ---- pooling -------------------------------------------------------------------------------------------


def test_pooling_moves_in_front_of_a_monotone_activation_only() -> None:
    x = gc.input("x", ("N", 1, 4, 4))
    for activation, moves in (
        (gc.relu, True),
        (gc.tanh, True),
        (gc.silu, False),
        (gc.cos, False),
        (gc.neg, False),
    ):
        outputs = {"o": gc.nn.max_pool2d(activation(x), 2)}
        moved = pool_before_activation(outputs)
        assert isinstance(moved["o"].op, Elementwise if moves else MaxPool2d), activation
        values = values_of(outputs, 2)
        got, want = (interpret([o["o"]], values, batch=2)[0] for o in (moved, outputs))
        np.testing.assert_allclose(got, want, rtol=1e-15)


def test_pooling_moves_in_front_of_what_is_added_to_whole_channels_only() -> None:
    x = gc.input("x", ("N", 2, 4, 4))
    for other, moves in (
        (gc.parameter("channel", (2, 1, 1)), True),
        (gc.parameter("number", ()), True),
        (gc.parameter("column", (1, 4)), False),
        (gc.parameter("image", (2, 4, 4)), False),
    ):
        for both in (x + other, other + x):
            outputs = {"o": gc.nn.max_pool2d(gc.relu(both), 2)}
            moved = pool_before_activation(outputs)["o"]
            assert isinstance(moved.inputs[0].op, MaxPool2d) is not moves
            assert [str(n.op.title) for n in (moved, moved.inputs[0])] == (
                ["relu", "add"] if moves else ["relu", "max_pool2d"]
            )
            values = values_of(outputs, 2)
            got, want = (interpret([o], values, batch=2)[0] for o in (moved, outputs["o"]))
            np.testing.assert_array_equal(got, want)


def test_an_activation_that_is_read_elsewhere_stays_before_its_pooling() -> None:
    h = gc.relu(gc.input("x", ("N", 1, 4, 4)))
    assert isinstance(pool_before_activation({"o": gc.nn.max_pool2d(h, 2), "h": h})["o"].op, MaxPool2d)


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_a_convolution_pools_only_windows_inside_its_image(ceil_mode: bool) -> None:
    """In ceil mode, the last windows of a height of 3 and a width of 5 leave the image."""
    x = gc.input("x", ("N", 1, 5, 7))
    out = gc.nn.conv2d(x, 2, 3, name="c")
    outputs = {"o": gc.cos(gc.nn.max_pool2d(out, 2, ceil_mode=ceil_mode))}
    groups = fuse(outputs, 4)
    convolutions = [g for g in groups if g.anchor is not None and isinstance(g.anchor.op, Conv2d)]
    assert [g.pooled for g in convolutions] == [not ceil_mode]
    check(outputs)


# ---- what kernels compute again ------------------------------------------------------------------------


def test_a_value_computed_again_may_have_fewer_axes_than_the_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recompute, "_WORTH", 1)
    x, w = gc.input("x", ("N", 2, 3)), gc.parameter("w", (), 0.3)
    scale = gc.square(gc.exp(w)) * 1.5 + 0.5
    total = gc.sum(x * scale, (0, 1, 2), keepdims=True) * scale
    request = Request("net", {"t": total, "u": gc.cos(x / scale)}, None, {}, None, 4, "float64")
    assert replay(compile_program(request).program) > 0


# ---- views and results ---------------------------------------------------------------------------------


def test_results_that_are_views_or_share_a_buffer() -> None:
    x, w = gc.input("x", ("N", 4, 6)), gc.parameter("w", (4, 6), 0.5)
    h = gc.tanh(x * w)
    check({
        "input": x, "again": x, "turned": gc.transpose(x, (0, 2, 1)), "parameter": w, "part": w[1:3, ::2],
        "h": h, "flat": gc.flatten(h), "h_again": h, "h_turned": gc.transpose(h, (2, 0, 1)),
        "regrouped": gc.reshape(gc.transpose(h, (0, 2, 1)), (-1, 12)), "backwards": h[:, ::-1, 1::2],
        "constant": gc.expand(gc.constant(np.arange(6.0)), (N, 6)), "ones": x * 0.0 + 1.0, "row": h[:, 2],
        "wide": gc.expand(gc.sum(h, (1, 2), keepdims=True), (N, 2, 3)),
    })  # fmt: skip


def test_reshape_of_views_without_strides_is_a_copy() -> None:
    x = gc.input("x", ("N", 4, 6))
    sliced = gc.reshape(x[:, 1:3, ::2], (-1, 6))
    turned = gc.reshape(gc.transpose(x, (2, 0, 1)), (6, -1))
    assert isinstance(sliced.op, Reshape)
    check({"sliced": gc.matmul(sliced, gc.transpose(sliced)), "turned": gc.tanh(turned), "both": turned[1:3]})


def test_several_roles_of_one_buffer() -> None:
    x = gc.input("x", ("N", 5))
    h = gc.exp(x * 0.1)
    check({"gram": gc.matmul(h, gc.transpose(h)), "square": h * h, "outer": h[:, :, None] * h[:, None, :]})


# ---- plans ---------------------------------------------------------------------------------------------


def lenet(optimizer: gc.SGD | None = None) -> Request:
    x, y = gc.input("x", ("N", 1, 32, 32)), gc.input("y", ("N",), dtype="int32")
    h = gc.nn.max_pool2d(gc.relu(gc.nn.conv2d(x, 6, kernel=5, name="conv1")), 2)
    h = gc.nn.max_pool2d(gc.relu(gc.nn.batch_norm(gc.nn.conv2d(h, 16, kernel=5, name="conv2"), name="bn")), 2)
    h = gc.nn.dropout(gc.relu(gc.nn.linear(gc.flatten(h), 120, name="fc1")), 0.3)
    logits = gc.nn.linear(gc.relu(gc.nn.linear(h, 84, name="fc2")), 10, name="fc3")
    return Request("net", {"logits": logits, "sure": gc.softmax(logits)}, gc.losses.cross_entropy(logits, y),
                   {}, optimizer, 16, "float32")  # fmt: skip


def test_lenet_reads_nothing_that_was_overwritten() -> None:
    compiled = compile_program(lenet(gc.SGD(lr=0.1)))
    for batch in (16, 7, 1):
        assert replay(compiled.program, batch) >= 20
    for plan in compiled.plans.values():
        check_plan(plan)
    train = next(e for e in compiled.program.entries if e.name == "train_step")
    assert train.commit, "running statistics are assigned at the end"
    assert any(o.name == "inout" for c in train.calls for o in c.kernel.operands), "something runs in place"


def test_the_replay_finds_a_buffer_that_is_overwritten_too_early() -> None:
    """The checker itself: put every buffer of the training step at the start of the arena."""
    program = compile_program(lenet()).program
    offsets = {
        e: {b: (0 if b else size) for b, size in places.items()} for e, places in program.offsets.items()
    }
    with pytest.raises(ReplayError, match=r"something else|over its operand"):
        replay(replace(program, offsets=offsets))


def test_the_replay_finds_state_that_is_written_before_the_commit() -> None:
    program = compile_program(lenet()).program
    train = next(e for e in program.entries if e.name == "train_step")
    late = replace(train, commit=0)
    assert any(b.space is Space.STATE for c in train.calls[train.commit :] for b in c.buffers)
    with pytest.raises(ReplayError, match="in state"):
        replay(replace(program, entries=(late,)))


# ---- retype and specialise -----------------------------------------------------------------------------


def test_retype_changes_every_float_and_nothing_else() -> None:
    x, k = gc.input("x", ("N", 3)), gc.input("k", ("N",), dtype="int32")
    outputs = {"o": x * gc.constant(np.array([0.1, 0.2, 0.3])) + gc.one_hot(k, 3), "k": k}
    double = retype(outputs, "float64")
    verify(double)
    assert {n.dtype for n in topological(double.values()) if n.type.is_float} == {"float64"}
    assert double["k"].dtype == "int32"
    back = retype(double, "float32")
    assert [n.type for n in back.values()] == [n.type for n in outputs.values()]


def test_specialise_leaves_no_mode_behind() -> None:
    h = gc.nn.dropout(gc.nn.batch_norm(gc.input("x", ("N", 3)), name="bn"), 0.5)
    inference = specialise({"h": h}, training=False)
    training = specialise({"h": h}, training=True)
    assert not inference.updates
    assert len(training.updates) == 2
    titles = {n.op.title for n in topological(inference.outputs.values())}
    assert not titles & {"mode_switch", "updating", "random_uniform", "stop_gradient"}
