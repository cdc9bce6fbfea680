"""A few small kernels, compared with files that a person has read; ``--update-golden`` rewrites them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from emitted import COMPILERS, STRICT, Emission, compile_objects, emission

import graphc as gc

FOLDER = Path(__file__).resolve().parent / "golden"


def fused_map() -> Emission:
    """Several elementwise operations become one loop."""
    a, b = gc.input("a", ("N", 5)), gc.input("b", ("N", 5))
    return emission("fused_map", {"out": gc.sigmoid(a * 2.0 + b) * gc.tanh(b)}, batch=8)


def softmax_cross_entropy() -> Emission:
    """Softmax and cross-entropy of a row become one stable kernel."""
    logits, labels = gc.input("logits", ("N", 10)), gc.input("labels", ("N",), dtype="int32")
    losses = gc.losses.cross_entropy(logits, labels, reduction="none")
    return emission("softmax_cross_entropy", {"losses": losses, "probabilities": gc.softmax(logits)}, batch=8)


def column_sum() -> Emission:
    """A reduction over rows keeps neighbouring columns side by side."""
    x = gc.input("x", ("N", 20))
    return emission("column_sum", {"total": gc.sum(x, 0), "largest": gc.max(x, 0)}, batch=8)


def conv_bias_relu_pool() -> Emission:
    """Bias, ReLU and max pooling become the epilogue of the convolution."""
    x = gc.input("x", ("N", 1, 8, 8))
    h = gc.nn.max_pool2d(gc.relu(gc.nn.conv2d(x, 4, kernel=3, name="conv")), 2)
    return emission("conv_bias_relu_pool", {"out": h}, batch=8)


def matmul() -> Emission:
    """A matrix product of two inputs."""
    a, b = gc.input("a", ("N", 12)), gc.input("b", (12, 7))
    return emission("matmul", {"out": gc.matmul(a, b)}, batch=8)


def padded_max_pool() -> Emission:
    """Windows that leave the image have bounds rather than conditions."""
    x = gc.input("x", ("N", 3, 9, 9))
    return emission("padded_max_pool", {"out": gc.nn.max_pool2d(x, 3, stride=2, padding=1)}, batch=8)


def sgd_update() -> Emission:
    """A training step of a linear model, with momentum and weight decay."""
    x, y = gc.input("x", ("N", 3)), gc.input("y", ("N", 1))
    error = gc.nn.linear(x, 1, name="line") - y
    loss = gc.mean(gc.square(error))
    return emission(
        "sgd_update", {}, loss, gc.SGD(lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True), batch=8
    )


CASES = [
    fused_map,
    softmax_cross_entropy,
    column_sum,
    conv_bias_relu_pool,
    matmul,
    padded_max_pool,
    sgd_update,
]


def without_line_numbers(text: str) -> str:
    """Return the text without the line numbers of this file, which change with every edit."""
    return re.sub(r"test_emitted_golden\.py:\d+", "test_emitted_golden.py", text)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
def test_golden(case: Callable[[], Emission], request: pytest.FixtureRequest) -> None:
    """The source is, byte for byte, what the file holds."""
    module = case()
    path = FOLDER / f"{module.name}.c"
    text = without_line_numbers(module.source)
    if request.config.getoption("--update-golden"):
        FOLDER.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.exists(), "run pytest --update-golden"
    assert text == path.read_text(), (
        "the emitted C changed: read the difference, then run pytest --update-golden"
    )


@pytest.mark.parametrize("compiler", COMPILERS)
def test_golden_files_compile(compiler: str, tmp_path: Path) -> None:
    """The files themselves compile without a warning, with the headers of today."""
    sources = []
    for case in CASES:
        module = case()
        module.write(tmp_path)
        source = tmp_path / f"{module.name}.c"
        source.write_text((FOLDER / source.name).read_text())
        sources.append(source)
    assert not compile_objects(compiler, sources, (*STRICT, "-O2"))


def test_no_stale_golden_file() -> None:
    """Every file belongs to a case."""
    assert {p.stem for p in FOLDER.glob("*.c")} == {c.__name__ for c in CASES}
