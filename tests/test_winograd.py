"""Winograd's convolutions: exact in theory, close in single precision, the same bits however they are called."""

from __future__ import annotations

import numpy as np
import pytest

import graphc as gc
from graphc.graph.node import topological
from graphc.isa import AVX512
from graphc.ops.conv2d import Conv2d
from graphc.ops.winograd import WinogradConv2d, WinogradWeight
from graphc.passes.pack import Layouts, pack


def convolution(c: int, o: int, size: tuple[int, int], padding: int) -> tuple[gc.Tensor, gc.Tensor]:
    x = gc.input("x", ("N", c, *size))
    return x, gc.nn.conv2d(x, o, 3, padding=padding, bias=False, name="conv")


# Odd extents, channels that fill no vector, tiles that leave the image, groups of rows of one and two tiles.
SHAPES = [
    (32, 32, (12, 12), 1), (33, 41, (9, 14), 1), (35, 64, (17, 15), 0), (48, 32, (7, 7), 1), (40, 32, (29, 10), 2),
]  # fmt: skip


@pytest.mark.parametrize(("c", "o", "size", "padding"), SHAPES)
def test_the_transforms_are_exact(c: int, o: int, size: tuple[int, int], padding: int) -> None:
    """In double precision the three transforms give the direct sum but for rounding."""
    _, node = convolution(c, o, size, padding)
    (packed,) = pack({"z": node}, Layouts(AVX512, 8)).values()
    assert any(isinstance(n.op, WinogradConv2d) for n in topological([packed]))
    conv = next(n for n in topological([node]) if isinstance(n.op, Conv2d))
    weight = conv.inputs[1]
    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, c, *size))
    values = rng.standard_normal(tuple(d for d in weight.shape if isinstance(d, int)))
    want = conv.op.reference(images, values)
    transform = next(n for n in topological([packed]) if isinstance(n.op, WinogradWeight))
    product = next(n for n in topological([packed]) if isinstance(n.op, WinogradConv2d))
    got = product.op.reference(images, transform.op.reference(values))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * np.abs(want).max())


@pytest.mark.parametrize(
    ("c", "o", "size", "padding"), [*SHAPES, (256, 256, (14, 14), 1), (512, 512, (7, 7), 1)]
)
def test_single_precision_stays_close(c: int, o: int, size: tuple[int, int], padding: int) -> None:
    """The largest error is below 5e-5 of the largest result: about ten times that of the direct sum."""
    _, node = convolution(c, o, size, padding)
    module = gc.compile({"z": node}, batch=5, name="tiles")
    assert "Winograd" in module.source["tiles.c"]
    rng = np.random.default_rng(1)
    images = rng.standard_normal((5, c, *size)).astype(np.float32)
    conv = next(n for n in topological([node]) if isinstance(n.op, Conv2d))
    want = conv.op.reference(images.astype(np.float64), np.array(module.params["conv.weight"], np.float64))
    module.threads = 2
    got = module.predict(x=images)["z"]
    assert np.abs(got - want).max() < 5e-5 * np.abs(want).max()
    module.threads = 1
    np.testing.assert_array_equal(module.predict(x=images)["z"], got, "one thread")
    np.testing.assert_array_equal(module.predict(x=images[3:])["z"], got[3:], "a smaller batch")


def test_gradients_follow_the_direct_sum() -> None:
    """Both ways of convolving, forward and for the image's gradient, agree to their rounding."""
    rng = np.random.default_rng(2)
    images = rng.standard_normal((4, 3, 16, 16)).astype(np.float32)

    def gradients(winograd: bool) -> dict[str, np.ndarray]:
        x = gc.input("x", ("N", 3, 16, 16))
        h = gc.relu(gc.nn.conv2d(x, 32, 3, padding=1, name="first"))
        h = gc.relu(gc.nn.conv2d(h, 48, 3, padding=1, name="second"))
        h = gc.nn.conv2d(h, 32, 3, padding=1, name="third")
        module = gc.compile({"h": h}, loss=gc.mean(h * h), batch=4, name="tiles", winograd=winograd)
        assert ("Winograd" in module.source["tiles.c"]) == winograd
        module.backward(x=images)
        return {name: np.array(g) for name, g in module.grads.items()}

    exact, close = gradients(False), gradients(True)
    for name, want in exact.items():
        np.testing.assert_allclose(close[name], want, rtol=0, atol=5e-5 * np.abs(want).max(), err_msg=name)


def test_double_precision_and_few_tiles_are_convolved_directly() -> None:
    _, node = convolution(64, 64, (8, 8), 1)
    assert (
        "Winograd"
        not in gc.compile({"z": node}, batch=16, dtype="float64", name="double_").source["double_.c"]
    )
    assert "Winograd" not in gc.compile({"z": node}, batch=1, name="few").source["few.c"]
