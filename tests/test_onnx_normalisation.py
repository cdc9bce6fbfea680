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

CODES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "int32": TensorProto.INT32}


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
