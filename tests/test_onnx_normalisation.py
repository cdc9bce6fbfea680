"""Operators of ONNX that reduce, normalise, multiply or are losses, where ONNX's own suite does not go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphc as gc
from graphc.errors import RangeError

CODES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "int32": TensorProto.INT32,
         "uint8": TensorProto.UINT8, "bool": TensorProto.BOOL}  # fmt: skip


def model(
    nodes: Sequence[onnx.NodeProto], inputs: dict[str, tuple[str, Sequence[int | str]]], outputs: Sequence[str],
    initializers: dict[str, np.ndarray] | None = None, opset: int = 21,
) -> onnx.ModelProto:  # fmt: skip
    """Return a model of these nodes."""
    graph = helper.make_graph(
        list(nodes), "test",
        [helper.make_tensor_value_info(n, CODES[d], list(s)) for n, (d, s) in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.UNDEFINED, None) for n in outputs],
        [numpy_helper.from_array(a, n) for n, a in (initializers or {}).items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def expected(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[Any]:
    """Return what the reference implementation of the onnx package computes."""
    from onnx.reference import ReferenceEvaluator

    return list(ReferenceEvaluator(proto).run(None, feeds))


def batch_norm_proto() -> onnx.ModelProto:
    weights = {"bn.weight": random(3, seed=1), "bn.bias": random(3, seed=2), "bn.running_mean": random(3, seed=3),
               "bn.running_var": np.float32([0.5, 1, 2])}  # fmt: skip
    node = helper.make_node("BatchNormalization", ["x", *weights], ["y"], "bn", momentum=0.8)
    return model([node], {"x": ("float32", ["batch", 3, 2, 2])}, ["y"], weights)


def test_a_file_for_inference_has_batch_norms_whose_statistics_are_never_learned() -> None:
    found = gc.onnx.load(batch_norm_proto(), trainable="*")
    learned = {name: node.op.trainable for name, node in found.parameters.items()}  # type: ignore[attr-defined]
    assert learned == {"bn.weight": True, "bn.bias": True, "bn.running_mean": False, "bn.running_var": False}


def test_batch_norm_is_put_back_into_training_form() -> None:
    proto, x = batch_norm_proto(), 2 * random(5, 3, 2, 2) + 1
    with pytest.raises(RangeError, match="'inference' or 'training', got 'both'"):
        gc.onnx.load(proto, batch_norm="both")  # type: ignore[arg-type]
    found = gc.onnx.load(proto, batch_norm="training")
    loss = gc.mean(gc.square(found.outputs["y"]))
    module = gc.compile(found.outputs, loss, gc.SGD(0.1), batch=5)
    # float32, one multiplication and addition
    np.testing.assert_allclose(module.predict(x=x)["y"], expected(proto, {"x": x})[0], rtol=1e-5, atol=1e-5)
    module.train_step(x=x)
    weights = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), ddof=1)
    # float32 sums of 20 terms; ONNX's momentum is the part that is kept
    for name, batch in (("bn.running_mean", mean), ("bn.running_var", var)):
        np.testing.assert_allclose(
            module.state[name], 0.8 * weights[name] + 0.2 * batch, rtol=1e-5, atol=1e-6
        )
    normal = (x - mean[:, None, None]) / np.sqrt(x.var((0, 2, 3)) + 1e-5)[:, None, None]
    y = normal * weights["bn.weight"][:, None, None] + weights["bn.bias"][:, None, None]
    slope = (2 * y * normal).sum((0, 2, 3)) / y.size
    np.testing.assert_allclose(module.params["bn.weight"], weights["bn.weight"] - 0.1 * slope, rtol=1e-4)


def check(
    proto: onnx.ModelProto, feeds: dict[str, np.ndarray], reference: Sequence[np.ndarray] | None = None
) -> None:
    """Compare a model, compiled for a larger batch than it is called with, with what it should give."""
    found = gc.onnx.load(proto)
    module = gc.compile(found.outputs, batch=7)
    results = module.predict(**feeds)
    for name, value in zip(found.outputs, reference or expected(proto, feeds), strict=True):
        assert results[name].dtype == value.dtype
        # float32 in a few operations, and sums of at most some dozens of terms
        np.testing.assert_allclose(results[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


def test_reductions_at_any_batch() -> None:
    """Over the batch too, where the operator can; axes as an attribute and as an input."""
    nodes = [
        helper.make_node("ReduceSum", ["x", "first"], ["sum"], keepdims=0),
        helper.make_node("ReduceMean", ["x"], ["mean"]),
        helper.make_node("ReduceLogSumExp", ["x", "last"], ["lse"]),
        helper.make_node("ReduceProd", ["x", "last"], ["prod"], keepdims=0),
        helper.make_node("ReduceL2", ["x", "first"], ["l2"]),
        helper.make_node("ReduceMax", ["b", "one"], ["any"]),
        helper.make_node("ArgMax", ["x"], ["last_max"], axis=2, select_last_index=1),
        helper.make_node("CumSum", ["x", "axis"], ["running"], exclusive=1, reverse=1),
    ]
    outputs = ["sum", "mean", "lse", "prod", "l2", "any", "last_max", "running"]
    known = {"first": np.array([0]), "last": np.array([-1]), "one": np.array([1]), "axis": np.array(2)}
    proto = model(nodes, {"x": ("float32", ["N", 3, 5]), "b": ("bool", ["N", 3])}, outputs, known)
    x = np.round(random(4, 3, 5), 1)
    check(proto, {"x": x, "b": x[:, :, 0] > 0})


def test_a_product_of_zeros_has_the_right_gradient() -> None:
    proto = model(
        [helper.make_node("ReduceProd", ["x", "axes"], ["y"], keepdims=0)],
        {"x": ("float32", ["N", 5])}, ["y"], {"axes": np.array([1])},
    )  # fmt: skip
    found = gc.onnx.load(proto)
    slope = gc.grad(gc.sum(found.outputs["y"]), [found.inputs["x"]])[0]
    x = np.float32([[2, 0, 3, 4, 5], [0, 1, 0, 2, 3], [1, 2, 3, 4, 5]])
    others = [[np.prod(np.delete(row, k)) for k in range(5)] for row in x]
    np.testing.assert_array_equal(gc.compile({"g": slope}, batch=3).predict(x=x)["g"], others)


@pytest.mark.parametrize("largest", [0, 1])
def test_top_k_orders_ties_and_nan(largest: int) -> None:
    proto = model(
        [helper.make_node("TopK", ["x", "k"], ["values", "indices"], axis=1, largest=largest)],
        {"x": ("float32", ["N", 6])}, ["values", "indices"], {"k": np.array([4])},
    )  # fmt: skip
    x = np.float32([[1, 3, 3, -np.inf, np.inf, 2], [np.nan, 1, 1, np.nan, 0, 5]])
    keys = [[(np.isnan(v), v if v == v else 0.0) for v in row] for row in x.tolist()]
    sign = -1 if largest else 1
    order = [
        sorted(range(6), key=lambda j, row=row: (sign * row[j][0], sign * row[j][1], j))[:4] for row in keys
    ]
    check(proto, {"x": x}, [np.take_along_axis(x, np.array(order), 1), np.array(order)])


def test_old_forms() -> None:
    """Softmax before version 13 spans axes; axes and training were attributes."""
    nodes = [
        helper.make_node("Softmax", ["x"], ["soft"], axis=1),
        helper.make_node("Hardmax", ["x"], ["hard"], axis=1),
        helper.make_node("ReduceSum", ["x"], ["sum"], axes=[-1], keepdims=0),
        helper.make_node("Dropout", ["x"], ["same"], ratio=0.3),
    ]
    proto = model(nodes, {"x": ("float32", ["N", 2, 3])}, ["soft", "hard", "sum", "same"], opset=11)
    x = random(4, 2, 3)
    rows = x.reshape(4, 6)
    soft = np.exp(rows) / np.exp(rows).sum(1, keepdims=True)
    hard = np.eye(6, dtype=np.float32)[rows.argmax(1)]
    check(proto, {"x": x}, [soft.reshape(x.shape), hard.reshape(x.shape), x.sum(-1), x])


def test_einsum_at_any_batch() -> None:
    equations = ["bhid,bhjd->bhij", "b...i,ij->b...j", "biij->bj", "bhid,bhjd,bhjk", "bhii,bk->kh"]
    shapes = {"q": [2, 3, 4], "k": [2, 3, 4], "m": [4, 5], "d": [3, 3, 4], "v": [2, 3, 3], "w": [6]}
    operands = [["q", "k"], ["q", "m"], ["d"], ["q", "k", "v"], ["v", "w"]]
    nodes = [
        helper.make_node("Einsum", o, [f"y{k}"], equation=e)
        for k, (o, e) in enumerate(zip(operands, equations, strict=True))
    ]
    inputs: dict[str, tuple[str, Sequence[int | str]]] = {
        n: ("float32", s if n == "m" else ["N", *s]) for n, s in shapes.items()
    }
    arrays = {n: random(*(s if n == "m" else [3, *s]), seed=k) for k, (n, s) in enumerate(shapes.items())}
    proto = model(nodes, inputs, [f"y{k}" for k in range(len(nodes))])
    results = [np.einsum(e, *(arrays[n] for n in o)) for e, o in zip(equations, operands, strict=True)]
    check(proto, arrays, results)


def test_dropout_drops_in_training_alone_and_its_mask_says_what() -> None:
    nodes = [helper.make_node("Dropout", ["x", "ratio"], ["y", "kept"])]
    known = {"ratio": np.float32(0.25)}
    proto = model(nodes, {"x": ("float32", ["N", 400])}, ["y", "kept"], known)
    found = gc.onnx.load(proto)
    y, kept = found.outputs["y"], gc.cast(found.outputs["kept"], "float32")
    weight = gc.parameter("w", (400,), 1.0)
    loss = gc.sum(weight * y) + gc.sum(weight * kept) * 1000.0
    module = gc.compile({"y": y, "kept": kept}, loss, gc.SGD(1.0), batch=1)
    x = np.ones((1, 400), np.float32)
    results = module.predict(x=x)
    assert (results["y"] == 1).all()
    assert (results["kept"] == 1).all()
    module.train_step(x=x)
    moved = 1 - module.params["w"]
    # 1000 for what was kept, and x/(1 - ratio) of it, in float32
    dropped = moved == 0
    np.testing.assert_allclose(moved[~dropped], 1000 + 1 / 0.75, rtol=1e-6)
    assert 0.1 < dropped.mean() < 0.4


def test_a_loss_of_the_file_trains_and_refuses_labels_that_are_none() -> None:
    known = {"w": random(4, 6, seed=1), "share": np.float32([1, 2, 0.5, 1, 3, 1])}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["scores"]),
        helper.make_node(
            "SoftmaxCrossEntropyLoss", ["scores", "y", "share"], ["loss", "log"], ignore_index=-1
        ),
    ]
    inputs: dict[str, tuple[str, Sequence[int | str]]] = {"x": ("float32", ["N", 4]), "y": ("int32", ["N"])}
    proto = model(nodes, inputs, ["loss", "log"], known)
    feeds = {"x": random(5, 4), "y": np.int32([0, 5, -1, 2, 2])}
    found = gc.onnx.load(proto, freeze="share")
    module = gc.compile({"log": found.outputs["log"]}, found.outputs["loss"], gc.SGD(0.5), batch=5)
    reference = expected(proto, feeds)
    # float32: exp, log and sums of 6 terms
    np.testing.assert_allclose(module.predict(x=feeds["x"])["log"], reference[1], rtol=1e-5, atol=1e-5)
    losses = [float(module.train_step(**feeds)) for _ in range(5)]
    np.testing.assert_allclose(losses[0], reference[0], rtol=1e-5)
    assert losses == sorted(losses, reverse=True)
    with pytest.raises(RangeError, match="6"):
        module.train_step(x=feeds["x"], y=np.int32([0, 6, -1, 2, 2]))


def test_training_forms_of_batch_norm() -> None:
    """Before version 14 the number of outputs says so; statistics that leave the node are the file's formula."""
    proto = batch_norm_proto()
    del proto.opset_import[:]
    proto.opset_import.append(helper.make_opsetid("", 9))
    names = ["y", "mean", "var", "saved_mean", "saved_var"]
    proto.graph.node[0].output[:] = names
    proto.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names[1:])
    x = 2 * random(5, 3, 2, 2) + 1
    w = {t.name: numpy_helper.to_array(t)[:, None, None] for t in proto.graph.initializer}
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
    y = (x - mean[:, None, None]) / np.sqrt(var + 1e-5)[:, None, None] * w["bn.weight"] + w["bn.bias"]
    moved = [0.8 * w[f"bn.running_{n}"].ravel() + 0.2 * b for n, b in (("mean", mean), ("var", var))]
    check(proto, {"x": x}, [y, *moved, mean, var])


def test_quantisation_rounds_ties_to_even_and_saturates() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], axis=1),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], axis=1),
    ]
    known = {"scale": np.float32([0.5, 2]), "zero": np.uint8([3, 128])}
    proto = model(nodes, {"x": ("float32", ["N", 2, 7])}, ["q", "y"], known)
    x = np.float32([0.25, 0.75, -0.25, -0.75, 1.2, 1e9, -1e9]) * np.float32([[[1], [4]]])
    check(proto, {"x": np.repeat(x, 2, 0)})
    q = expected(proto, {"x": x})[0]
    assert q[0].tolist() == [[3, 5, 3, 1, 5, 255, 0], [128, 130, 128, 126, 130, 255, 0]]
