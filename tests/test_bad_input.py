"""What is wrong is refused with an error that names op, values and the user's line; nothing crashes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphc as gc
from graphc.errors import (
    CheckpointError,
    DTypeError,
    FormulaError,
    GraphError,
    RangeError,
    ShapeError,
    UnknownNameError,
)
from graphc.ops.leaves import full
from graphc.ops.reduce import iota
from graphc.types import N

_QUICK = gc.BuildOptions(optimisation=("-O1",))
_X = gc.input("x", ("N", 4))
_Y = gc.input("y", ("N",), dtype="int32")
_IMAGE = gc.input("image", ("N", 3, 8, 8))


def compile_(outputs: Any, loss: Any = None, optimizer: Any = None, **options: Any) -> gc.Module:
    return gc.compile(outputs, loss, optimizer, **{"batch": 3, "build": _QUICK, **options})


# ---- while the graph is written ------------------------------------------------------------------------

WRITING: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "linear": (
        lambda: gc.nn.linear(
            gc.input("h", ("N", 256)), 120, weight=gc.parameter("w", (120, 400)), name="fc1"
        ),
        ShapeError,
        r"linear 'fc1': expected \(N, 400\), got \(N, 256\)",
    ),
    "add": (
        lambda: _X + gc.input("z", ("N", 5)),
        ShapeError,
        r"add: cannot broadcast \(N, 4\) with \(N, 5\)",
    ),
    "matmul": (lambda: gc.matmul(_X, gc.input("z", ("N", 5))), ShapeError, "matmul: inner extents differ"),
    "matmul scalar": (lambda: gc.matmul(gc.sum(_X), _X), ShapeError, "matmul: operands must not be scalars"),
    "matmul of ints": (
        lambda: gc.matmul(_X, gc.cast(_X, "int32")),
        DTypeError,
        "matmul: needs floating-point",
    ),
    "conv2d rank": (lambda: gc.nn.conv2d(_X, 3, 3, name="c1"), ShapeError, r"conv2d 'c1'.*got \(N, 4\)"),
    "conv2d groups": (
        lambda: gc.nn.conv2d(_IMAGE, 4, 3, groups=2, name="c1"),
        ShapeError,
        "conv2d 'c1'.*groups",
    ),
    "conv2d kernel": (lambda: gc.nn.conv2d(_IMAGE, 4, 30, name="c1"), ShapeError, r"conv2d 'c1'.*\(30, 30\)"),
    "conv2d zero kernel": (
        lambda: gc.nn.conv2d(_IMAGE, 4, 0, name="c1"),
        RangeError,
        "conv2d 'c1': kernel must be.*got 0",
    ),
    "batch_norm": (
        lambda: gc.nn.batch_norm(gc.input("v", ("N",)), name="b"),
        ShapeError,
        r"batch_norm.*got \(N,\)",
    ),
    "layer_norm": (lambda: gc.nn.layer_norm(_X, 2), ShapeError, r"layer_norm: .*\(N, 4\)"),
    "dropout": (lambda: gc.nn.dropout(_X, 1.5), RangeError, "dropout: .*1.5"),
    "embedding": (lambda: gc.nn.embedding(_X, 3, 3), DTypeError, "needs integer"),
    "cross_entropy shape": (
        lambda: gc.losses.cross_entropy(_X, gc.input("k", ("N", 2), dtype="int32")),
        ShapeError,
        r"\(N, 2\)",
    ),
    "reduction": (lambda: gc.losses.cross_entropy(_X, _Y, reduction="avg"), RangeError, "'avg'"),
    "reshape": (lambda: gc.reshape(_X, (5,)), ShapeError, r"reshape: cannot reshape \(N, 4\) to \(5,\)"),
    "reshape to 0": (lambda: gc.reshape(_X, (0, -1)), ShapeError, r"reshape: .*\(0, -1\)"),
    "reshape twice -1": (lambda: gc.reshape(_X, (-1, -1)), ShapeError, r"reshape: .*\(-1, -1\)"),
    "reshape float": (lambda: gc.reshape(_X, (N, 2.0, 2)), ShapeError, "reshape: extents must be"),  # type: ignore[arg-type]
    "sum axis": (lambda: gc.sum(_X, 5), ShapeError, "axis 5 is out of range for rank 2"),
    "sum axis text": (lambda: gc.sum(_X, "rows"), ShapeError, "axis 'r' is out of range"),  # type: ignore[arg-type]
    "sum axis twice": (lambda: gc.sum(_X, (1, -1)), ShapeError, "name an axis twice"),
    "sum of bool": (lambda: gc.sum(_X > 0), DTypeError, "sum: sum of a bool tensor"),
    "mean of ints": (lambda: gc.mean(_Y), DTypeError, "mean: needs a floating-point tensor"),
    "argmax": (lambda: gc.argmax(_X, 7), RangeError, "argmax: axis 7"),
    "softmax": (lambda: gc.softmax(_X, 4), ShapeError, "axis 4 is out of range for rank 2"),
    "transpose": (lambda: gc.transpose(_X, (0, 0)), ShapeError, r"transpose: \(0, 0\) is no permutation"),
    "transpose axis": (
        lambda: gc.transpose(_X, (0, 3)),
        ShapeError,
        r"transpose: \(0, 3\) is no permutation",
    ),
    "concat": (lambda: gc.concat([]), ShapeError, "concat: needs at least one tensor"),
    "concat axis": (lambda: gc.concat([_X, _X], 5), ShapeError, "concat: axis 5 is out of range for rank 2"),
    "concat dtypes": (
        lambda: gc.concat([_X, gc.cast(_X, "int32")], 1),
        ShapeError,
        "concat: axis 1: .* do not match",
    ),
    "split": (lambda: gc.split(_X, 3, 1), ShapeError, "split: extent 4 is not divisible into 3"),
    "split axis": (lambda: gc.split(_X, 2, 9), ShapeError, "split: axis 9 is out of range"),
    "split batch": (lambda: gc.split(_X, 2, 0), ShapeError, "split: the run-time batch"),
    "split nothing": (lambda: gc.split(_X, [], 1), ShapeError, r"split: parts \(\) do not add up"),
    "index batch": (lambda: _X[0], ShapeError, "index 0: the run-time batch"),
    "index range": (lambda: _X[:, 7], ShapeError, r"does not fit \(N, 4\)"),
    "index tensor": (lambda: _X[:, _Y], ShapeError, r"does not fit \(N, 4\)"),
    "empty slice": (lambda: _X[:, 2:2], ShapeError, "takes no element"),
    "pad": (lambda: gc.pad(_X, [(1, 0)]), ShapeError, "pad: needs 2 pairs"),
    "pad batch": (lambda: gc.pad(_X, [(1, 0), (0, 0)]), ShapeError, "pad: the run-time batch"),
    "expand": (lambda: gc.expand(_X, (3,)), ShapeError, "expand: cannot broadcast"),
    "one_hot axis": (lambda: gc.one_hot(_Y, 3, axis=5), ShapeError, "one_hot: axis 5 is out of range"),
    "operand list": (lambda: _X - [1, 2], DTypeError, "sub: expected a tensor or a number, got list"),
    "operand None": (lambda: gc.relu(None), DTypeError, "relu: expected a tensor or a number, got NoneType"),
    "numbers only": (lambda: gc.relu(3.0), DTypeError, "relu: expected at least one tensor"),
    "relu of ints": (lambda: gc.exp(_Y), DTypeError, "exp: needs floating-point"),
    "gelu": (lambda: gc.gelu(_X, "fast"), RangeError, "gelu: .*'fast'"),
    "cast": (lambda: gc.cast(_X, "bfloat16"), DTypeError, "dtype 'bfloat16' is unknown"),
    "take": (lambda: gc.take(_X, _X), DTypeError, "take: needs integer indices"),
    "formula": (lambda: gc.elementwise("f", "x + y + q", _X), FormulaError, "'f'.*x, y, q.*got 1"),
    "formula call": (lambda: gc.elementwise("f", "__import__('os')", _X), FormulaError, "unknown function"),
    "grad of a vector": (
        lambda: gc.grad(_X, [_X]),
        GraphError,
        "grad: the loss must be a floating-point scalar",
    ),
    "grad for ints": (lambda: gc.grad(gc.sum(_X), [_Y]), GraphError, "grad: .*'y'.* is not floating-point"),
    "input extent": (lambda: gc.input("a", (0,)), ShapeError, r"input 'a': .*\(0,\)"),
    "input batch": (
        lambda: gc.input("a", (2, "N")),
        ShapeError,
        "input 'a': only the first extent may be 'N'",
    ),
    "input shape": (lambda: gc.input("a", 4), ShapeError, "input 'a': a shape is a tuple"),  # type: ignore[arg-type]
    "input dtype": (lambda: gc.input("a", (2,), dtype="float16"), DTypeError, "dtype 'float16' is unknown"),
    "input name": (lambda: gc.input("", (2,)), RangeError, "input: a name must be a non-empty string"),
    "parameter": (lambda: gc.parameter("p", (0,)), ShapeError, "parameter 'p': extents must be positive"),
    "constant": (lambda: gc.constant([[1, 2], [3]]), ShapeError, "constant: rows of different lengths"),  # type: ignore[list-item]
    "constant dtype": (
        lambda: gc.constant(np.zeros(3, complex)),
        DTypeError,
        "dtype 'complex128' is unknown",
    ),
    "constant empty": (lambda: gc.constant(np.zeros((0, 3))), ShapeError, r"constant: .*\(0, 3\)"),
}


@pytest.mark.parametrize("case", WRITING)
def test_what_cannot_be_written(case: str) -> None:
    """The error is of its kind, says what is wrong, and names the line that asked for it."""
    write, kind, pattern = WRITING[case]
    with pytest.raises(kind, match=pattern) as caught:
        write()
    lines = [e.lineno + 1 for e in caught.traceback if Path(str(e.path)).name == "test_bad_input.py"]
    first = write.__code__.co_firstlineno
    named = [n for n in range(first, max(lines) + 1) if f"at test_bad_input.py:{n}" in str(caught.value)]
    assert named, f"{caught.value} does not name line {lines[-1]}"


def test_a_tensor_is_no_truth_value_and_no_sequence() -> None:
    with pytest.raises(gc.GraphcError, match=r"has no truth value; use gc\.where.*"):
        bool(_X > 0)
    with pytest.raises(gc.GraphcError, match=r"cannot be iterated over; use gc\.split"):
        list(_X)  # type: ignore[call-overload]
    with pytest.raises(AttributeError, match="immutable"):
        _X.name = "other"


# ---- when compiling ------------------------------------------------------------------------------------


def trainable() -> tuple[gc.Tensor, gc.Tensor]:
    logits = gc.nn.linear(_X, 3, name="fc")
    return logits, gc.losses.cross_entropy(logits, _Y)


def test_a_cyclic_graph() -> None:
    first = gc.tanh(_X * 1.25)
    second = gc.cos(first)
    whole = first.inputs
    object.__setattr__(first, "inputs", (second,))
    try:
        with pytest.raises(GraphError, match=r"cycle through <.* at test_bad_input\.py:\d+>"):
            compile_(second)
    finally:
        object.__setattr__(first, "inputs", whole)  # nodes are shared: leave none broken


def test_losses_that_cannot_be_minimised() -> None:
    logits, _ = trainable()
    with pytest.raises(GraphError, match=r"must be a floating-point scalar.*at test_bad_input\.py"):
        compile_(logits, logits)
    with pytest.raises(GraphError, match="must be a floating-point scalar"):
        compile_(logits, gc.sum(_Y))
    with pytest.raises(GraphError, match="'loss' must be a tensor, got float"):
        compile_(logits, 3.0)
    with pytest.raises(GraphError, match="depends on no trainable parameter"):
        compile_(logits, gc.mean(_X))
    frozen = gc.nn.linear(_X, 3, name="f", trainable=False)
    with pytest.raises(GraphError, match="depends on no trainable parameter"):
        compile_(logits, gc.losses.cross_entropy(frozen, _Y))


def test_outputs_that_are_no_tensors() -> None:
    for outputs, message in (
        (None, "dict of tensors, got NoneType"),
        ({}, "at least one output"),
        ({"a": np.zeros(3)}, "'a' must be a tensor, got ndarray"),
        ([_X], "dict of tensors, got list"),
    ):
        with pytest.raises(GraphError, match=message):
            compile_(outputs)


def test_the_batch_must_come_from_an_input() -> None:
    with pytest.raises(GraphError, match="no input of its has the batch"):
        compile_(gc.cast(iota((N, 3), 0), "float32") * 2.0)


def test_outputs_without_inputs_are_fine() -> None:
    module = compile_({"three": full((2,), 3.0), "w": gc.parameter("w", (2,), 0.5) + 1.0})
    result = module.predict()
    np.testing.assert_array_equal(result["three"], np.array([3, 3], "f"))
    np.testing.assert_array_equal(result["w"], np.array([1.5, 1.5], "f"))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"batch": 0}, RangeError, "batch must be an int"),
        ({"batch": -1}, RangeError, "batch must be an int"),
        ({"batch": 2**40}, RangeError, "batch must be an int"),
        ({"batch": "64"}, RangeError, "batch must be an int"),
        ({"batch": True}, RangeError, "batch must be an int"),
        ({"dtype": "float16"}, RangeError, "dtype must be"),
        ({"target": "rust"}, RangeError, "target 'rust' is unknown"),
        ({"seed": "a"}, RangeError, "seed must be an int"),
        ({"name": 'x"; system("id")'}, UnknownNameError, "must be a short lower-case identifier"),
        ({"name": "net\n"}, UnknownNameError, "must be a short lower-case identifier"),
        ({"name": "f"}, UnknownNameError, "would give the macro F_OK"),
        ({"optimizer": gc.SGD(lr=1)}, GraphError, "an optimizer needs a loss"),
        ({"optimizer": "sgd"}, GraphError, "optimizer must be one such as"),
        ({"metrics": {"m": _X}}, GraphError, "metric 'm' must be a scalar"),
        ({"metrics": {"m;": gc.sum(_X)}}, UnknownNameError, "metric 'm;'"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        compile_(_X * 2.0, **options)


BAD_NAMES = [
    'x; system("id")', "*/", "/* ", "a\nb", "é", "ｘ", "", "a b", "1a", ".a", "-", "x" * 10**5, "a\0b",
    "\ud800", "%s",
    '"', "\\", "a'b", "??/", "#define", "x\t",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES, ids=range(len(BAD_NAMES)))
def test_names_that_are_no_names(name: str) -> None:
    """Refused wherever a name can stand; the message is short even where the name is not."""
    tries: list[Callable[[], object]] = [
        lambda: compile_({"o": gc.input(name, ("N", 4)) * 2.0}),
        lambda: compile_({"o": _X + gc.parameter(name, (4,))}),
        lambda: compile_({"o": gc.nn.linear(_X, 2, name=name)}),
        lambda: compile_({name: _X * 2.0}),
        lambda: compile_({"o": gc.elementwise(name, "x + 1.5", _X)}),
        lambda: compile_({"o": gc.relu(_X * 1.75, name=name)}),
        lambda: compile_({"o": _X * 2.0}, name=name),
    ]
    for number, attempt in enumerate(tries):
        if name == "" and number in (1, 2, 5):
            continue  # an empty name is no name
        with pytest.raises((UnknownNameError, RangeError)) as caught:
            attempt()
        assert len(str(caught.value)) < 400, number


def test_names_that_are_c_words_are_fine() -> None:
    words = [
        "int",
        "for",
        "N",
        "batch",
        "context",
        "threads",
        "NULL",
        "main",
        "exp",
        "inline",
        "a.b",
        "_",
        "error",
    ]
    inputs = {w: gc.input(w, ("N", 2)) for w in words}
    total = sum(
        (x * (k + 1.0) for k, x in enumerate(inputs.values())), gc.parameter("while", (2,), 0.5) * 1.0
    )
    module = compile_(
        {"return": gc.relu(total, name="switch"), "struct": gc.nn.linear(total, 2, name="double")}
    )
    given = {w: np.full((2, 2), k, "f") for k, w in enumerate(words)}
    want = sum(k * (k + 1.0) for k in range(len(words))) + 0.5
    np.testing.assert_array_equal(module.predict(**given)["return"], np.full((2, 2), want, "f"))


def test_names_used_twice() -> None:
    for outputs, message in (
        ({"o": gc.input("x", ("N", 4)) + _X}, "two inputs are called 'x': at test_bad_input"),
        ({"o": _X * gc.parameter("w", (4,)) + gc.parameter("w", (4,))}, "the name 'w' is used twice"),
        ({"o": gc.nn.linear(gc.nn.linear(_X, 4, name="a"), 4, name="a")}, "'a.weight' is used twice"),
        ({"x": _X * 2.0}, "output 'x' has the name of an input"),
        ({"state.x": _X * 2.0}, "the compiler's own"),
        ({"o": gc.input("lr", ("N", 4)) * 2.0}, "taken by an argument"),
        ({"o": gc.input("out", ("N", 4)) * 2.0}, "taken by an argument"),
    ):
        with pytest.raises(UnknownNameError, match=message):
            compile_(outputs)
    logits, loss = trainable()
    with pytest.raises(UnknownNameError, match="output 'loss' has the name of the loss"):
        compile_({"loss": logits}, loss)
    with pytest.raises(UnknownNameError, match="metric 'loss' has the name of the loss"):
        compile_({"logits": logits}, loss, metrics={"loss": gc.sum(logits)})


# ---- when running --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def module() -> gc.Module:
    logits, loss = trainable()
    return compile_({"logits": logits}, loss, gc.SGD(lr=0.1, momentum=0.9))


_IMAGES = np.random.default_rng(0).standard_normal((2, 4)).astype("f")
_LABELS = np.array([0, 2], "i4")


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({}, UnknownNameError, "expected the inputs x; missing x"),
        ({"x": _IMAGES, "z": _IMAGES}, UnknownNameError, "unknown z"),
        ({"x": np.zeros((2, 5), "f")}, ShapeError, r"'x' expected shape \(N, 4\) with N = 2, got \(2, 5\)"),
        ({"x": np.zeros((4, 4), "f")}, ShapeError, "has batch 4 .*compiled for 1 to 3"),
        ({"x": np.zeros((0, 4), "f")}, ShapeError, "has batch 0"),
        ({"x": np.zeros((2, 0), "f")}, ShapeError, r"got \(2, 0\)"),
        ({"x": _IMAGES[None]}, ShapeError, r"got \(1, 2, 4\)"),
        ({"x": 3.0}, ShapeError, r"\(shape \(\)\)"),
        ({"x": None}, ShapeError, "has batch 0"),
        ({"x": [[1.0, 2.0], [3.0]]}, ShapeError, "'x' is no array"),
        ({"x": _IMAGES.astype("d")}, DTypeError, r"'x' expected float32, got float64; .*astype"),
        ({"x": _IMAGES.astype(">f4")}, DTypeError, "expected float32, got >f4"),
        ({"x": _IMAGES.astype("i4")}, DTypeError, "expected float32, got int32"),
        ({"x": _IMAGES.astype(complex)}, DTypeError, "expected float32, got complex128"),
        ({"x": _IMAGES.astype(object)}, DTypeError, "expected float32, got object"),
    ],
)
def test_inputs_that_do_not_fit(
    module: gc.Module, given: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        module.predict(**given)


def test_arrays_of_every_layout_are_read_right(module: gc.Module) -> None:
    want = module.predict(x=_IMAGES)["logits"]
    wide = np.zeros((2, 8), "f")
    wide[:, ::2] = _IMAGES
    frozen = _IMAGES.copy()
    frozen.flags.writeable = False
    for array in (np.asfortranarray(_IMAGES), wide[:, ::2], _IMAGES[::-1][::-1], frozen, _IMAGES.copy()):
        np.testing.assert_array_equal(module.predict(x=array)["logits"], want)


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0], [2**31 - 1, 0], [-(2**31), 0]])
def test_labels_out_of_range_change_nothing(module: gc.Module, labels: list[int]) -> None:
    before, step = module.state_dict(), module.step
    with pytest.raises(RangeError, match=r"y\[\d\] is -?\d+, which is not in 0\.\.2"):
        module.train_step(x=_IMAGES, y=np.array(labels, "i4"))
    assert module.step == step
    for name, value in module.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize("lr", [float("nan"), float("inf"), -0.1, "0.1"])
def test_learning_rates_that_are_none(module: gc.Module, lr: Any) -> None:
    before = module.state_dict()
    with pytest.raises(RangeError, match="lr must be a finite number"):
        module.train_step(x=_IMAGES, y=_LABELS, lr=lr)
    for name, value in module.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_parameters_are_checked_when_assigned(module: gc.Module) -> None:
    for name, value, kind, message in (
        (
            "nope",
            np.zeros(3, "f"),
            UnknownNameError,
            "no parameter is called 'nope'; there are fc.weight, fc.bias",
        ),
        (
            "fc.weight",
            np.zeros((4, 3), "f"),
            ShapeError,
            r"'fc.weight': expected shape \(3, 4\), got \(4, 3\)",
        ),
        ("fc.weight", np.zeros((3, 4)), DTypeError, "'fc.weight': expected float32, got float64"),
        ("fc.weight", np.zeros((3, 4), complex), DTypeError, "got complex128"),
        ("fc.weight", np.full((3, 4), None), DTypeError, "got object"),
    ):
        with pytest.raises(kind, match=message):
            module.params[name] = value
    with pytest.raises(UnknownNameError, match="no parameter is called 'nope'"):
        module.params["nope"]
    with pytest.raises(gc.GraphcError, match="cannot be deleted"):
        del module.params["fc.weight"]
    with pytest.raises(ValueError, match="read-only"):
        module.params["fc.weight"][0, 0] = 1
    module.params["fc.bias"] = np.arange(3, dtype=">f4")
    np.testing.assert_array_equal(module.params["fc.bias"], np.arange(3, dtype="f"))


def test_arrays_for_results_are_checked(module: gc.Module) -> None:
    frozen = np.zeros((2, 3), "f")
    frozen.flags.writeable = False
    for out, kind, message in (
        ({"logits": np.zeros((2, 4), "f")}, ShapeError, r"shape \(2, 3\), got float32 \(2, 4\)"),
        ({"logits": np.zeros((2, 3))}, ShapeError, "got float64"),
        ({"logits": np.zeros((3, 2), "f").T}, ShapeError, "contiguous"),
        ({"logits": [1]}, DTypeError, "must be an array, got list"),
        ({"nope": np.zeros((2, 3), "f")}, UnknownNameError, "no output is called nope"),
        ({"logits": frozen}, RangeError, "read-only"),
    ):
        with pytest.raises(kind, match=message):
            module.predict(x=_IMAGES, out=out)
    memory = np.zeros(8, "f")
    with pytest.raises(RangeError, match=r"out\['logits'\] shares memory with another array"):
        module.predict(x=memory.reshape(2, 4), out={"logits": memory[:6].reshape(2, 3)})
    logits, _ = trainable()
    twice = compile_({"logits": logits, "double": 2 * logits})
    same = np.zeros((2, 3), "f")
    with pytest.raises(RangeError, match=r"out\['double'\] shares memory with another array"):
        twice.predict(x=_IMAGES, out={"logits": same, "double": same})


def test_arrays_in_any_order_in_memory_are_read(module: gc.Module) -> None:
    expected = module.predict(x=_IMAGES)["logits"]
    odd = np.empty(_IMAGES.nbytes + 1, "u1")[1:].view("f").reshape(_IMAGES.shape)
    odd[...] = _IMAGES
    assert not odd.flags.aligned
    for given in (np.asfortranarray(_IMAGES), odd, np.repeat(_IMAGES, 2, axis=1)[:, ::2]):
        np.testing.assert_array_equal(module.predict(x=given)["logits"], expected)
    frozen = _IMAGES.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(module.predict(x=frozen)["logits"], expected)


def test_modules_refuse_what_they_were_not_compiled_for(module: gc.Module) -> None:
    logits, loss = trainable()
    plain = compile_({"logits": logits})
    with pytest.raises(gc.GraphcError, match="has no train_step: it was compiled without a loss"):
        plain.train_step(x=_IMAGES, y=_LABELS)
    with pytest.raises(gc.GraphcError, match="compiled without an optimizer"):
        compile_({"logits": logits}, loss).train_step(x=_IMAGES, y=_LABELS)
    for threads in (0, -1, "2", 10**6):
        with pytest.raises(RangeError, match="threads must be an int"):
            module.threads = threads  # type: ignore[assignment]
    with pytest.raises(RangeError, match="no plan for 'nope'"):
        module.plan("nope")


def test_checkpoints_that_do_not_fit(module: gc.Module, tmp_path: Path) -> None:
    before = module.state_dict()
    path = tmp_path / "good.safetensors"
    module.save(path)
    other = compile_({"o": gc.nn.linear(_X, 5, name="fc")})
    foreign = compile_({"o": gc.nn.linear(_X, 3, name="elsewhere")})
    other.save(tmp_path / "other.safetensors")
    foreign.save(tmp_path / "foreign.safetensors")
    data = path.read_bytes()
    for name, content in (
        ("cut", data[:-5]), ("header", data[:40]), ("seven", data[:7]), ("empty", b""),
        ("text", b"not this" * 40),
        ("long", data + b"x"), ("lies", (2**60).to_bytes(8, "little") + data[8:]),
    ):  # fmt: skip
        (tmp_path / f"{name}.safetensors").write_bytes(content)
    for name, message in (
        ("other", r"fc\.weight: expected shape \(3, 4\), got \(5, 4\)"), ("foreign", r"missing fc\.weight"),
        ("cut", "truncated"), ("header", "truncated"), ("seven", "truncated"), ("empty", "truncated"),
        ("text", "not a safetensors file"), ("long", "trailing"), ("lies", "safetensors"),
        ("absent", "cannot read"),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=message):
            module.load(tmp_path / f"{name}.safetensors")
        for key, value in module.state_dict().items():
            np.testing.assert_array_equal(value, before[key])
    module.load(path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("fc.bias", np.array(["a", "b", "c"]), "expected an array of numbers"),
        ("fc.bias", np.full(3, None), "expected an array of numbers"),
        ("fc.bias", [0.0, 0.0, 0.0], "expected an array of numbers, got list"),
        ("graphc.step", np.array([-1]), "expected one non-negative integer"),
        ("graphc.step", np.zeros(0, "u8"), "expected one non-negative integer"),
        ("graphc.seed", np.array([1.5]), "expected one non-negative integer"),
        ("extra", np.zeros(3), "unexpected extra"),
    ],
)
def test_states_that_do_not_fit_change_nothing(
    module: gc.Module, name: str, value: Any, message: str
) -> None:
    before = module.state_dict()
    with pytest.raises(CheckpointError, match=message):
        module.load_state_dict({**before, "fc.weight": before["fc.weight"] + 1, name: value})
    for key, kept in module.state_dict().items():
        np.testing.assert_array_equal(kept, before[key])


def test_a_checkpoint_of_another_precision_loads(module: gc.Module, tmp_path: Path) -> None:
    """float32 weights are numbers of a float64 module too; exactly the same ones."""
    logits, loss = trainable()
    double = compile_({"logits": logits}, loss, gc.SGD(lr=0.1, momentum=0.9), dtype="float64")
    module.save(tmp_path / "single.safetensors")
    double.load(tmp_path / "single.safetensors")
    np.testing.assert_array_equal(double.params["fc.weight"], module.params["fc.weight"].astype("d"))
    with pytest.raises(DTypeError, match="expected float64, got float32"):
        double.predict(x=_IMAGES)


# ---- NaN -----------------------------------------------------------------------------------------------


def test_nan_flows_through() -> None:
    """Every row that holds a NaN gives NaN and no other does; maxima and comparisons treat it as PyTorch."""
    x = gc.input("x", ("N", 40))
    image = gc.reshape(x, (-1, 1, 5, 8))
    outputs = {
        "relu": gc.relu(x),
        "max": gc.max(x, 1),
        "min": gc.min(x, 1),
        "sum": gc.sum(x, 1),
        "softmax": gc.softmax(x),
        "logsumexp": gc.logsumexp(x, 1),
        "maximum": gc.maximum(x, 0.0),
        "minimum": gc.minimum(0.0, x),
        "clip": gc.clip(x, -1.0, 1.0),
        "abs": gc.abs(x),
        "pool": gc.nn.max_pool2d(image, 2, padding=1),
        "average": gc.nn.avg_pool2d(image, 2),
        "tanh": gc.tanh(x),
        "less": gc.less(x, 0.0),
        "conv": gc.nn.max_pool2d(gc.relu(gc.nn.conv2d(image, 2, 2, weight=1.0, name="c")), 2),
        "argmax": gc.argmax(x, 1),
        "elu": gc.elu(x),
        "sign": gc.sign(x),
        "unequal": gc.not_equal(x, x),
        "hard_swish": gc.hard_swish(x),
    }
    module = compile_(outputs)
    value = np.random.default_rng(0).standard_normal((3, 40)).astype("f")
    value[1, 17] = np.nan  # row 2, column 1 of the image
    got = module.predict(x=value)
    for name in ("relu", "maximum", "minimum", "clip", "abs", "tanh", "elu", "hard_swish"):
        np.testing.assert_array_equal(np.isnan(got[name]), np.isnan(value), err_msg=name)
    for name in ("max", "min", "sum", "logsumexp"):
        np.testing.assert_array_equal(np.isnan(got[name]), [False, True, False], err_msg=name)
    np.testing.assert_array_equal(np.isnan(got["softmax"]).all(1), [False, True, False])
    for name in ("pool", "average", "conv"):
        found = np.isnan(got[name])
        assert found[1].any(), name
        assert not found[1].all(), name
        assert not found[[0, 2]].any(), name
    assert got["argmax"][1] == 17
    assert not got["less"][1, 17]
    assert got["unequal"].sum() == 1


def test_a_step_on_nan_does_not_crash(module: gc.Module) -> None:
    before = module.state_dict()
    loss = module.backward(x=np.full((2, 4), np.nan, "f"), y=_LABELS)
    assert np.isnan(float(loss))
    assert np.isnan(module.grads["fc.weight"]).all()
    np.testing.assert_array_equal(module.params["fc.weight"], before["fc.weight"])
