"""Movement, gathering and shape computations that ONNX's own suite does not cover: the batch and old versions."""

import numpy as np
import pytest

import graphc as gc

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
ReferenceEvaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator


def _loaded(node, version):
    """Import a model of one node whose input x is (N, 5)."""
    helper, tensor = onnx.helper, onnx.TensorProto
    x = helper.make_tensor_value_info("x", tensor.FLOAT, ["N", 5])
    outputs = [helper.make_tensor_value_info(name, tensor.FLOAT, None) for name in node.output]
    graph = helper.make_graph([node], "g", [x], outputs)
    return gc.onnx.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)]))


def test_parts_with_batch():
    """Values are copied, so that they are equal to the bit."""
    whole = np.iinfo(np.int64).max
    old = onnx.helper.make_node("Slice", ["x"], ["y"], axes=[0, 1], starts=[0, -3], ends=[whole, 9])
    parts = onnx.helper.make_node("Split", ["x"], ["a", "b"], axis=1, num_outputs=2)
    x = np.arange(10, dtype=np.float32).reshape(2, 5)
    nets = {**_loaded(old, 9).outputs}
    found = gc.compile(nets, batch=2).predict(x=x)
    np.testing.assert_array_equal(found["y"], x[:, -3:])
    found = gc.compile(dict(_loaded(parts, 18).outputs), batch=2).predict(x=x)
    np.testing.assert_array_equal(found["a"], x[:, :3])
    np.testing.assert_array_equal(found["b"], x[:, 3:])


def test_slice_of_batch_is_refused():
    """The run-time batch cannot be cut."""
    node = onnx.helper.make_node("Slice", ["x"], ["y"], axes=[0], starts=[1], ends=[2])
    with pytest.raises(gc.GraphcError, match="run-time batch"):
        _loaded(node, 9)


def _model(nodes, version, arrays=(), shape=("N", 5), results=("y",)):
    """Import nodes with the float input x and initializers."""
    helper, tensor = onnx.helper, onnx.TensorProto
    x = helper.make_tensor_value_info("x", tensor.FLOAT, list(shape))
    outputs = [helper.make_tensor_value_info(name, tensor.FLOAT, None) for name in results]
    held = [onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in dict(arrays).items()]
    graph = helper.make_graph(nodes, "g", [x], outputs, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)])


def _agree(model, x, **given):
    """Movement copies values, so that they are equal to the bit."""
    net = gc.onnx.load(model)
    found = gc.compile(dict(net.outputs), batch=len(x)).predict(x=x, **given)
    wanted = ReferenceEvaluator(model).run(None, {"x": x, **given})
    for name, array in zip((o.name for o in model.graph.output), wanted, strict=True):
        np.testing.assert_array_equal(found[name], array)


def test_shape_computations_with_batch():
    """What exporters write around a reshape of an unknown batch, and a mask as long as it."""
    node = onnx.helper.make_node
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["n"]),
        node("Mul", ["n", "five"], ["total"]),
        node("Unsqueeze", ["total"], ["flat"], axes=[0]),
        node("Reshape", ["x", "flat"], ["r"]),
        node("Div", ["total", "five"], ["back"]),
        node("Unsqueeze", ["back"], ["rows"], axes=[0]),
        node("Concat", ["rows", "two"], ["pair"], axis=0),
        node("Equal", ["pair", "minus"], ["same"]),
        node("Where", ["same", "one", "pair"], ["chosen"]),
        node("ReduceProd", ["chosen"], ["count"], keepdims=1),
        node("ConstantOfShape", ["count"], ["zeros"]),
        node("Slice", ["x", "start", "rows", "first"], ["whole"]),
        node("Gather", ["whole", "zero"], ["column"], axis=1),
        node("Range", ["zero", "n", "step"], ["k"]),
        node("Cast", ["k"], ["kf"], to=1),
        node("Add", ["column", "kf"], ["y"]),
    ]
    i64 = np.int64
    arrays = {
        "zero": i64(0), "five": i64(5), "step": i64(1), "first": np.array([0]), "two": np.array([2]),
        "minus": np.array([-1, -1]), "one": np.array([1, 1]), "start": np.array([0]),
    }  # fmt: skip
    model = _model(nodes, 12, arrays, results=("y", "r", "zeros"))
    _agree(model, np.arange(15, dtype=np.float32).reshape(3, 5))


def test_gathers_with_batch():
    """Indices along an axis behind the batch: known ones, and ones that are computed."""
    node = onnx.helper.make_node
    nodes = [
        node("Cast", ["x"], ["whole"], to=7),
        node("Gather", ["whole", "zero"], ["i"], axis=1),
        node("Gather", ["table", "i"], ["y"]),
        node("Gather", ["x", "chosen"], ["z"], axis=1),
        node("Unsqueeze", ["i", "one"], ["j"]),
        node("GatherElements", ["x", "j"], ["m"], axis=1),
        node("Pad", ["x", "pads"], ["p"], mode="reflect"),
        node("Tile", ["x", "repeats"], ["t"]),
    ]
    arrays = {
        "table": np.arange(10).reshape(5, 2), "chosen": np.array([[-1, 0], [3, 3]]),
        "pads": np.array([0, 2, 0, 1]), "repeats": np.array([2, 3]), "zero": np.int64(0),
        "one": np.array([1]),
    }  # fmt: skip
    model = _model(nodes, 13, arrays, results=("y", "z", "m", "p", "t"))
    _agree(model, np.random.default_rng(0).integers(-5, 5, (3, 5)).astype(np.float32))


def test_comparison_that_differs_between_batches_is_refused():
    """A batch of 3 would take another branch than the others."""
    node = onnx.helper.make_node
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Equal", ["s", "three"], ["same"]),
        node("Where", ["same", "s", "three"], ["shape"]),
        node("Reshape", ["x", "shape"], ["y"]),
    ]
    with pytest.raises(gc.GraphcError, match="comparison of N and 3, which depends on the run-time batch"):
        gc.onnx.load(_model(nodes, 13, {"three": np.array([3, 5])}))


def test_reversed_sequences_of_different_lengths():
    """Each sample is as if it were alone, cut to its length; 1e-5 is some rounding steps of numbers below 1."""
    rng = np.random.default_rng(0)
    w, r, b = (rng.standard_normal(s).astype(np.float32) for s in ((1, 6, 3), (1, 6, 2), (1, 12)))
    node = onnx.helper.make_node(
        "GRU", ["t", "w", "r", "b", "lengths"], ["a", "h"], hidden_size=2, direction="reverse"
    )
    arrays = {"w": w, "r": r, "b": b, "lengths": np.array([2, 4], np.int32)}
    nodes = [onnx.helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]), node]
    net = gc.onnx.load(_model(nodes, 14, arrays, shape=(2, 4, 3), results=("a", "h")))
    x = rng.standard_normal((2, 4, 3)).astype(np.float32)
    found = gc.compile(dict(net.outputs)).predict(x=x)
    alone = onnx.helper.make_node("GRU", ["x", "w", "r", "b"], ["a", "h"], hidden_size=2)
    for k, length in enumerate((2, 4)):
        turned = {"x": x[k, :length][::-1][:, None], "w": w, "r": r, "b": b}
        steps, last = ReferenceEvaluator(alone).run(None, turned)
        np.testing.assert_allclose(found["a"][:length, :, k], steps[::-1, :, 0], atol=1e-5)
        np.testing.assert_allclose(found["h"][:, k], last[:, 0], atol=1e-5)
        assert not found["a"][length:, :, k].any()


def test_scatter_trains_rows_and_table():
    """Where a row is replaced, its gradient goes to what replaces it, of equal indices the last."""
    table, index, rows = gc.input("t", (4,)), gc.input("i", (3,), "int64"), gc.input("r", (3,))
    weights = np.array([1, 2, 3, 4], np.float32)
    loss = gc.sum(gc.scatter(table, index, rows) * weights)
    grads = dict(zip("ab", gc.grad(loss, [table, rows]), strict=True))
    found = gc.compile(grads).predict(i=np.array([2, 0, 2]))
    np.testing.assert_array_equal(found["a"], [0, 2, 0, 4])
    np.testing.assert_array_equal(found["b"], [0, 1, 3])


def test_branch_loop_and_scan_with_batch():
    """Sums of whole numbers, which floats hold exactly."""
    helper, node, kind = onnx.helper, onnx.helper.make_node, onnx.TensorProto

    def body(nodes, inputs, outputs, held=()):
        infos = [[helper.make_tensor_value_info(n, k, None) for n, k in side] for side in (inputs, outputs)]
        arrays = [onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in held]
        return helper.make_graph(nodes, "body", *infos, arrays)

    f, b, i = kind.FLOAT, kind.BOOL, kind.INT64
    twice = body([node("Add", ["x", "x"], ["c"])], [], [("c", f)])
    same = body([node("Neg", ["x"], ["c"])], [], [("c", f)])
    turn = body(
        [node("Identity", ["on"], ["on2"]), node("Cast", ["k"], ["kf"], to=1), node("Add", ["v", "kf"], ["v2"]),
         node("Gather", ["v2", "k"], ["part"], axis=1)],
        [("k", i), ("on", b), ("v", f)], [("on2", b), ("v2", f), ("part", f)],
    )  # fmt: skip
    running = body([node("Add", ["s", "e"], ["s2"]), node("Identity", ["s2"], ["o"])],
                   [("s", f), ("e", f)], [("s2", f), ("o", f)])  # fmt: skip
    nodes = [
        node("Gather", ["x", "zero"], ["first"], axis=1),
        node("Cast", ["flag"], ["cond"], to=9),
        node("If", ["cond"], ["y"], then_branch=twice, else_branch=same),
        node("Loop", ["three", "yes", "x"], ["v", "parts"], body=turn),
        node("Scan", ["first", "x"], ["total", "sums"], body=running, num_scan_inputs=1, scan_input_axes=[1],
             scan_input_directions=[1], scan_output_axes=[1]),
        node("SplitToSequence", ["x", "two"], ["seq"], axis=1),
        node("SequenceAt", ["seq", "last"], ["rest"]),
    ]  # fmt: skip
    arrays = {
        "zero": np.int64(0), "three": np.int64(3), "yes": np.array(True), "two": np.int64(2), "last": np.int64(-1),
    }  # fmt: skip
    model = _model(nodes, 17, arrays, results=("y", "v", "parts", "total", "sums", "rest"))
    model.graph.input.append(helper.make_tensor_value_info("flag", f, []))
    x = np.arange(15, dtype=np.float32).reshape(3, 5)
    net = gc.onnx.load(model)
    module = gc.compile(dict(net.outputs), batch=3)
    found = module.predict(x=x, flag=np.float32(1))
    np.testing.assert_array_equal(found["y"], 2 * x)
    np.testing.assert_array_equal(module.predict(x=x, flag=np.float32(0))["y"], -x)
    np.testing.assert_array_equal(found["v"], x + 3)
    np.testing.assert_array_equal(found["parts"], [x[:, 0], x[:, 1] + 1, x[:, 2] + 3])
    steps = x[:, :1] + np.cumsum(x[:, ::-1], 1)
    np.testing.assert_array_equal(found["total"], steps[:, -1])
    np.testing.assert_array_equal(found["sums"], steps)
    np.testing.assert_array_equal(found["rest"], x[:, 4:])


def test_axis_that_is_not_there_is_refused():
    """It would name another axis, if it were only taken modulo the rank."""
    nodes = [onnx.helper.make_node("Gather", ["x", "one"], ["y"], axis=3)]
    with pytest.raises(gc.GraphcError, match="axis 3 of a tensor of 2 axes"):
        gc.onnx.load(_model(nodes, 13, {"one": np.array([1])}))
