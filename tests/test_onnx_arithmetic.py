"""Elementwise operators of ONNX, compared with NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

import graphc as gc
from graphc.graph.interpret import interpret


@pytest.mark.parametrize("operator", ["Cast", "CastLike"])
def test_casts_truncate_at_every_batch(operator: str) -> None:
    """Float to int32, exactly: every value is a small multiple of 0.5."""
    like = helper.make_tensor("like", TensorProto.INT32, [1], [0])
    node = (
        helper.make_node("Cast", ["x"], ["y"], to=TensorProto.INT32)
        if operator == "Cast"
        else helper.make_node("CastLike", ["x", "like"], ["y"])
    )
    graph = helper.make_graph(
        [node], "casts", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, ["N", 3])], [like],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])
    found = gc.onnx.load(model)
    module = gc.compile(found.outputs, batch=4)
    x = np.array([[-2.5, -0.5, 0.0], [0.5, 1.5, 7.0]], np.float32)
    result = module.predict(x=x)["y"]
    assert result.dtype == np.int32
    np.testing.assert_array_equal(result, x.astype(np.int32))


def test_a_cast_between_float_types_needs_mixed_precision() -> None:
    """Compiled so, the result has the dtype that the model says, exactly: a float32 is a float64."""
    graph = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.DOUBLE)], "casts",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, ["N", 3])],
    )  # fmt: skip
    found = gc.onnx.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)]))
    x = np.array([[0.1, 2.5, -3.0]], np.float32)
    result = gc.compile(found.outputs, dtype="mixed").predict(x=x)["y"]
    assert result.dtype == np.float64
    np.testing.assert_array_equal(result, x.astype(np.float64))


CODES = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32, "int64": TensorProto.INT64}


def loaded(nodes: list[NodeProto], types: dict[str, str], opset: int = 21, **constants: np.ndarray) -> Any:
    """Return what gc.onnx.load makes of nodes whose inputs are (N, 4); results that nothing reads are outputs."""
    read = {name for node in nodes for name in node.input}
    outputs = [name for node in nodes for name in node.output if name not in read]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info(n, CODES[d], ["N", 4]) for n, d in types.items()],
        [helper.make_tensor_value_info(n, TensorProto.UNDEFINED, None) for n in outputs],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )  # fmt: skip
    return gc.onnx.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]))


def node(operator: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(operator, inputs.split(), [output], **attributes)


def test_integers_where_c_says_nothing() -> None:
    """Exactly what NumPy computes: wrapping around, 0 for what is divided by 0, and no bits left of long shifts."""
    nodes = [
        node("Div", "a b", "div"), node("Mod", "a b", "mod"), node("Mod", "a b", "fmod", fmod=1),
        node("BitShift", "a b", "left", direction="LEFT"), node("BitShift", "a b", "right", direction="RIGHT"),
        node("BitwiseXor", "a b", "xor"), node("BitwiseNot", "a", "complement"), node("Abs", "a", "abs"),
        node("Pow", "a b", "pow"), node("Pow", "a e", "fpow"),
    ]  # fmt: skip
    least = -(2**63)
    a = np.array([[least, 7, -7, 7], [-7, -8, 3, 10**17 + 1]])
    b = np.array([[-1, 0, 3, -3], [64, -2, 40, 3]])
    e = np.full((2, 4), 2, np.float32)
    found = loaded(nodes, {"a": "int64", "b": "int64", "e": "float32"})
    got = gc.compile(found.outputs, batch=2).predict(a=a, b=b, e=e)
    assert {array.dtype for array in got.values()} == {np.dtype(np.int64)}
    wanted = {
        "div": [[least, 0, -2, -2], [0, 4, 0, 10**17 // 3]],
        "mod": [[0, 0, 2, -2], [57, 0, 3, (10**17 + 1) % 3]],
        "fmod": [[0, 0, -1, 1], [-7, 0, 3, (10**17 + 1) % 3]],
        "left": [[0, 7, -56, 0], [0, 0, 3 << 40, 8 * (10**17 + 1)]],
        "right": [[-1, 7, -1, 0], [-1, -1, 0, (10**17 + 1) >> 3]],
    }
    for name, values in wanted.items():
        np.testing.assert_array_equal(got[name], np.array(values), err_msg=name)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(got["xor"], a ^ b)
        np.testing.assert_array_equal(got["complement"], ~a)
        np.testing.assert_array_equal(got["abs"], np.abs(a))
        np.testing.assert_array_equal(got["fpow"], a * a)
        np.testing.assert_array_equal(got["pow"][b >= 0], np.power(a[b >= 0], b[b >= 0]))
    np.testing.assert_array_equal(got["pow"][b < 0], [0, 0, 0])


def test_what_is_no_number_and_what_rounds() -> None:
    """Exact: each result is one of the values, or a whole number."""
    nodes = [
        node("IsNaN", "x", "nan"), node("IsInf", "x", "inf"), node("IsInf", "x", "plus", detect_negative=0),
        node("IsInf", "x", "minus", detect_positive=0),
        node("IsInf", "x", "none", detect_positive=0, detect_negative=0),
        node("Round", "x", "round"), node("Floor", "x", "floor"), node("Ceil", "x", "ceil"),
        node("Max", "x y", "max"), node("Min", "x y", "min"), node("Relu", "x", "relu"),
        node("Clip", "x", "clip6", min=-1.0, max=2.0),
        node("Mod", "x y", "mod", fmod=1),
    ]  # fmt: skip
    x = np.array([[np.nan, np.inf, -np.inf, 0.5], [1.5, 2.5, -0.5, -7.25]], np.float32)
    y = np.full((2, 4), 2, np.float32)
    found = loaded(nodes, {"x": "float32", "y": "float32"}, opset=10)
    got = gc.compile(found.outputs, batch=2).predict(x=x, y=y)
    with np.errstate(all="ignore"):
        wanted = {
            "nan": np.isnan(x), "inf": np.isinf(x), "plus": np.isposinf(x), "minus": np.isneginf(x),
            "none": np.zeros_like(x, bool), "round": np.rint(x), "floor": np.floor(x), "ceil": np.ceil(x),
            "max": np.maximum(x, y), "min": np.minimum(x, y), "relu": np.maximum(x, 0),
            "clip6": np.clip(x, -1, 2), "mod": np.fmod(x, y),
        }  # fmt: skip
    for name, array in wanted.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name)
        assert got[name].dtype == array.dtype


def gradient_at(operator: str, x: np.ndarray, **attributes: Any) -> np.ndarray:
    found = loaded([node(operator, "x", "y", **attributes)], {"x": "float32"})
    (leaf,) = found.inputs.values()
    return gc.compile({"g": gc.grad(gc.sum(found.outputs["y"]), [leaf])[0]}, batch=2).predict(x=x)["g"]


@pytest.mark.parametrize(
    ("operator", "attributes", "slope"),
    [
        ("Celu", {"alpha": 2.0}, lambda x: np.where(x < 0, np.exp(np.minimum(x, 0) / 2), 1)),
        ("HardSigmoid", {}, lambda x: np.where(np.abs(x) < 2.5, 0.2, 0)),
        ("ThresholdedRelu", {"alpha": 1.5}, lambda x: x > 1.5),
        ("Shrink", {"lambd": 1.0, "bias": 0.5}, lambda x: np.abs(x) > 1),
    ],
)  # fmt: skip
def test_gradients_of_what_is_composed(operator: str, attributes: dict[str, float], slope: Any) -> None:
    """To 1e-6: a few roundings of numbers below 2. 400 overflows exp."""
    x = np.array([[-400, -2, -0.5, 0.25], [0.5, 2, 3, 400]], np.float32)
    np.testing.assert_allclose(gradient_at(operator, x, **attributes), slope(x), atol=1e-6)


def test_a_known_exponent_becomes_part_of_the_formula() -> None:
    found = loaded([node("Pow", "x two", "y")], {"x": "float32"}, two=np.float32(2))
    assert found.outputs["y"].op.expr == gc.square(found.inputs["x"]).op.expr


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_floats_of_16_bits_are_float32(kind: int) -> None:
    """Weights, inputs, outputs and casts; nothing is rounded in between."""
    weight = helper.make_tensor("w", kind, [2], [1.5, -0.25])
    nodes = [helper.make_node("Mul", ["x", "w"], ["m"]), helper.make_node("Cast", ["m"], ["y"], to=kind)]
    graph = helper.make_graph(
        nodes, "halves", [helper.make_tensor_value_info("x", kind, ["n", 2])],
        [helper.make_tensor_value_info("y", kind, ["n", 2])], [weight],
    )  # fmt: skip
    model = gc.onnx.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))
    assert model.inputs["x"].dtype == model.outputs["y"].dtype == model.parameters["w"].dtype == "float32"
    x = np.array([[1 / 3, 1e6]], np.float32)
    found = interpret(
        [model.outputs["y"]], {model.inputs["x"]: x, model.parameters["w"]: np.array([1.5, -0.25])}
    )[0]
    np.testing.assert_array_equal(found, x.astype(np.float64) * [1.5, -0.25])
