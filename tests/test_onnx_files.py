"""Damaged ONNX files: one clear error each."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphc as gc
from graphc.errors import GraphcError, GraphError, UnknownNameError
from graphc.graph.interpret import interpret
from graphc.onnx.fold import fold
from graphc.onnx.site import UnsupportedError


def small() -> onnx.ModelProto:
    """Return y = x + w."""
    weight = numpy_helper.from_array(np.ones((2, 3), np.float32), "w")
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 3]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    return helper.make_model(graph)


@pytest.mark.parametrize(
    "data", [b"", b"just some text\n", bytes(range(256)), small().SerializeToString()[:-40]]
)
def test_damaged_bytes_are_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(GraphError):
        gc.onnx.load(data)
    path = tmp_path / "net.onnx"
    path.write_bytes(data)
    with pytest.raises(GraphError, match=r"net\.onnx"):
        gc.onnx.load(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.onnx"):
        with pytest.raises(GraphError, match="cannot be read"):
            gc.onnx.load(path)


@pytest.mark.parametrize("size", [4, 100])
def test_initializer_of_wrong_size_is_refused(size: int) -> None:
    model = small()
    model.graph.initializer[0].raw_data = bytes(4 * size)
    with pytest.raises(GraphError, match=r"tensor 'w' of shape \(2, 3\)"):
        gc.onnx.load(model)


def test_newer_format_is_refused() -> None:
    model = small()
    model.ir_version = onnx.IR_VERSION + 1
    with pytest.raises(GraphError, match="IR version"):
        gc.onnx.load(model.SerializeToString())


def test_output_that_nothing_computes_is_refused() -> None:
    model = small()
    model.graph.output[0].name = "other"
    with pytest.raises(GraphError, match="nothing computes the output 'other'"):
        gc.onnx.load(model)


@pytest.mark.parametrize("version", [0, 1000, 2**40])
def test_unknown_operator_set_is_refused(version: int) -> None:
    model = small()
    model.opset_import[0].version = version
    with pytest.raises(GraphError, match="is not known"):
        gc.onnx.load(model)


def test_bytes_do_not_read_files() -> None:
    model = small()
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="pyproject.toml")
    with pytest.raises(GraphError, match="lies in another file"):
        gc.onnx.load(model.SerializeToString())


def test_input_that_nothing_computes_is_refused() -> None:
    model = small()
    model.graph.node[0].input[0] = "other"
    with pytest.raises(GraphError, match="'y' depends on a name that nothing computes"):
        gc.onnx.load(model)


def external(location: str, **more: str) -> onnx.ModelProto:
    """Return y = x + w, whose w lies in another file."""
    model = small()
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        weight.external_data.add(key=key, value=value)
    return model


def test_weights_are_read_from_the_models_folder(tmp_path: Path) -> None:
    values = np.arange(8, dtype=np.float32)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "w").write_bytes(values.tobytes())
    onnx.save(external("data/w", offset="8", length="24"), tmp_path / "net.onnx")
    weight = gc.onnx.load(tmp_path / "net.onnx").parameters["w"].op
    np.testing.assert_array_equal(weight.initial.values, values[2:].reshape(2, 3))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("location", "more", "message"),
    [
        ("../secret", {}, "outside the model's folder"),
        ("link", {}, "outside the model's folder"),
        ("", {}, "outside the model's folder"),
        ("none", {}, "there is no file 'none'"),
        ("short", {}, "needs 24 bytes, and is said to be 24 at 0 of 'short', which has 8"),
        ("short", {"length": "-5"}, "said to be -5"),
        ("short", {"offset": "some"}, "invalid literal"),
    ],
)
def test_other_files_are_not_read(location: str, more: dict[str, str], message: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(24))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "short").write_bytes(bytes(8))
    (folder / "net.onnx").write_bytes(external(location, **more).SerializeToString())
    with pytest.raises(GraphError, match=message):
        gc.onnx.load(folder / "net.onnx")


def test_attributes_do_not_read_files() -> None:
    model = small()
    tensor = external("pyproject.toml").graph.initializer[0]
    model.graph.node.insert(0, helper.make_node("Constant", [], ["c"], value=tensor))
    model.graph.node[1].input[0] = "c"
    with pytest.raises(GraphError, match="lies in another file"):
        gc.onnx.load(model)


def chain(*nodes: onnx.NodeProto, output: str = "y", version: int = 17) -> onnx.ModelProto:
    """Return a model of nodes on an input x of shape (2, 3)."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])
    y = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    graph = helper.make_graph(list(nodes), "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)])


def node(op: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    """Return a node whose names are single letters."""
    return helper.make_node(op, list(inputs), [output], **attributes)


def test_nodes_may_be_in_any_order() -> None:
    model = gc.onnx.load(chain(node("Neg", "a", "y"), node("Exp", "x", "a")))
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = interpret([model.outputs["y"]], {model.inputs["x"]: x})[0]
    np.testing.assert_allclose(found, -np.exp(x, dtype=np.float64), rtol=1e-12)  # both are float64


def test_nodes_that_no_output_needs_are_left_out() -> None:
    model = gc.onnx.load(chain(node("Nonsense", "x", "a"), node("Neg", "x", "y"), node("Sink", "a", "b")))
    assert list(model.tensors) == ["x", "y"]


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([node("Add", "xb", "a"), node("Neg", "a", "b"), node("Neg", "b", "y")], "on their own results: 'a', 'b'"),
        ([node("Neg", "y", "y")], "depend on their own results: 'y'"),
        ([node("Neg", "x", "y"), node("Exp", "x", "y")], "Exp '': 'y' has a value already"),
        ([node("Neg", "x", "x"), node("Exp", "x", "y")], "Neg '': 'x' has a value already"),
        ([node("Softmax", "x", "y", axis="last")], "attribute 'axis' is STRING; INT is expected"),
        ([node("Add", "xxx", "y")], "Add"),
        ([node("Neg", "", "y")], "Neg"),
    ],
)  # fmt: skip
def test_nodes_that_make_no_sense_are_one_error(nodes: list[onnx.NodeProto], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        gc.onnx.load(chain(*nodes))


@pytest.mark.parametrize(
    ("op", "arrays"),
    [
        ("ConstantOfShape", [np.array([10**6, 10**6])]),
        ("Range", [np.float32(0), np.float32(1e12), np.float32(1)]),
        ("Expand", [np.float32(0), np.array([2**20, 2**20])]),
        ("Tile", [np.zeros(128, np.float32), np.array([2**40])]),
        ("Add", [np.zeros((2**16, 1), np.float32), np.zeros(2**16, np.float32)]),
        ("OneHot", [np.zeros(2**16, np.int64), np.array(2**16), np.zeros(2, np.float32)]),
        ("Pad", [np.zeros((1, 1), np.float32), np.array([0, 2**20, 2**20, 0])]),
    ],
)
def test_what_is_computed_while_importing_is_limited(op: str, arrays: list[np.ndarray]) -> None:
    inputs = "abc"[: len(arrays)]
    with pytest.raises(UnsupportedError, match=r"of shape .* would be [\d,]+ bytes; at most 268,435,456"):
        fold(node(op, inputs, "y"), [np.asarray(a) for a in arrays], {"": 17})


def test_old_operator_sets() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    with pytest.raises(GraphError, match="operator set 5 gives it another meaning"):
        gc.onnx.load(chain(node("Neg", "x", "y"), version=5))
    model = gc.onnx.load(chain(node("Add", "xx", "y", broadcast=1), version=6))
    np.testing.assert_array_equal(interpret([model.outputs["y"]], {model.inputs["x"]: x})[0], 2 * x)
    with pytest.raises(GraphError, match="attribute 'axis' is one of operator sets before 7"):
        gc.onnx.load(chain(node("Add", "xx", "y", broadcast=1, axis=1), version=6))
    with pytest.raises(GraphError, match="without is_test=1"):
        gc.onnx.load(chain(node("Dropout", "x", "y"), version=6))


def rich() -> bytes:
    """Return a model with a convolution, a constant and shapes that are folded."""
    rng = np.random.default_rng(0)
    arrays = {
        "w": rng.random((2, 1, 3, 3), np.float32),
        "i": np.array([0]),
        "r": np.array([-1]),
    }
    nodes = [
        node("Conv", "xw", "c", kernel_shape=[3, 3]),
        node("Constant", "", "t", value=numpy_helper.from_array(np.ones(2, np.float32))), node("Mul", "ct", "d"),
        node("Shape", "d", "s"), node("Gather", "si", "n"), node("Concat", "nr", "f", axis=0),
        node("Reshape", "df", "e"), node("Softmax", "e", "y"),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )  # fmt: skip
    return bytes(helper.make_model(graph).SerializeToString())


def test_mutations_are_read_or_refused_and_do_nothing_else() -> None:
    """Some remain models, such as those with another weight; any error but graphc's own fails the test."""
    rng, data, refused = random.Random(0), rich(), 0
    gc.onnx.load(data)
    for _ in range(400):
        changed = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            changed[rng.randrange(len(data))] = rng.randrange(256)
        try:
            gc.onnx.load(bytes(changed))
        except GraphcError:
            refused += 1
    assert refused > 100


def three_layers() -> onnx.ModelProto:
    """Return three products with relu between them, on a batch of 64."""
    rng = np.random.default_rng(0)
    model = chain(
        node("MatMul", "xa", "d"), node("Relu", "d", "e"), node("MatMul", "eb", "f"), node("Relu", "f", "g"),
        node("MatMul", "gc", "y"),
    )  # fmt: skip
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 64
    for name, shape in (("a", (3, 40)), ("b", (40, 40)), ("c", (40, 2))):
        model.graph.initializer.append(numpy_helper.from_array(rng.random(shape, np.float32), name))
    return model


def test_frozen_parameters_cost_neither_gradient_nor_memory() -> None:
    def compiled(**chosen: Any) -> gc.Module:
        model = gc.onnx.load(three_layers(), **chosen)
        loss = gc.losses.mse(model.outputs["y"], gc.input("t", (64, 2)))
        return gc.compile(model.outputs, loss, gc.SGD(0.01, momentum=0.9))

    whole, part = compiled(), compiled(freeze="[ab]")
    assert sorted(whole.grads) == sorted(whole.slots["velocity"]) == ["a", "b", "c"]
    assert sorted(part.grads) == sorted(part.slots["velocity"]) == ["c"]
    # Relu's results, 64 * 40 floats each, are kept for the gradients of a, b and c.
    assert part.plan("train").arena_bytes <= whole.plan("train").arena_bytes - 64 * 40 * 4
    before = {name: part.params[name].copy() for name in "abc"}
    part.train_step(x=np.ones((64, 3), np.float32), t=np.zeros((64, 2), np.float32))
    assert [n for n in "abc" if not np.array_equal(part.params[n], before[n])] == ["c"]


@pytest.mark.parametrize("option", ["trainable", "freeze"])
def test_patterns_that_match_nothing_are_refused(option: str) -> None:
    with pytest.raises(
        UnknownNameError, match=rf"{option}='conv\*' matches no parameter; there are 'a', 'b'"
    ):
        gc.onnx.load(three_layers(), **{option: ["a", "conv*"]})  # type: ignore[arg-type]


_MEMORY = """
import re, sys
import graphc as gc

def most():  # not ru_maxrss, which a process inherits from the one that starts it
    with open("/proc/self/status") as status:
        return int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read())[1])

for path in sys.argv[1:]:
    before = most()
    model = gc.onnx.load(path)
    print(most() - before)
    model = None
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_model_takes_at_most_twice_its_size(tmp_path: Path) -> None:
    """Once where its weights lie in a file beside it; twice in the model's own, of which protobuf makes a copy."""
    onnx.save(small(), tmp_path / "small.onnx")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2500]) for name in "xy")
    nodes = [
        node("MatMul", "xa", "e"),
        node("MatMul", "eb", "f"),
        node("MatMul", "fc", "g"),
        node("MatMul", "gd", "y"),
    ]
    weights = [numpy_helper.from_array(np.ones((2500, 2500), np.float32), name) for name in "abcd"]
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], weights))
    onnx.save(model, tmp_path / "inline.onnx")
    onnx.save(
        model, tmp_path / "beside.onnx", save_as_external_data=True, location="weights", size_threshold=0
    )
    paths = [str(tmp_path / f"{name}.onnx") for name in ("small", "beside", "inline")]
    found = subprocess.run(
        [sys.executable, "-c", _MEMORY, *paths], check=True, capture_output=True, text=True
    )
    _, beside, inline = (int(line) * 1024 for line in found.stdout.split())
    size, more = 4 * 4 * 2500**2, 2**23  # what else the allocator takes
    assert size * 0.9 < beside < size + more
    # On top of what was the most before, which was the size.
    assert beside + inline < 2 * size + more
