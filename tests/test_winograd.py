"""Winograd's convolutions: exact in theory, close in single precision, the same bits however they are called."""

from __future__ import annotations

import numpy as np
import pytest

import graphc as gc
from graphc.graph.node import topological
from graphc.isa import AVX512, ISAS
from graphc.ops.conv2d import Conv2d, Conv2dBackwardWeight
from graphc.ops.winograd import WinogradConv2d, WinogradConv2dBackwardWeight, WinogradWeight
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


def weight_gradient(c: int, o: int, size: tuple[int, int], padding: int) -> tuple[gc.Tensor, gc.Tensor]:
    """A loss whose gradient for the weights is the sum over tiles that the kernel computes, and no other."""
    _, z = convolution(c, o, size, padding)
    return z, gc.sum(z * gc.input("grad", ("N", *z.shape[1:])))


@pytest.mark.parametrize(("c", "o", "size", "padding"), SHAPES)
def test_the_transforms_of_the_weights_gradient_are_exact(
    c: int, o: int, size: tuple[int, int], padding: int
) -> None:
    _, z = convolution(c, o, size, padding)
    conv = next(n for n in topological([z]) if isinstance(n.op, Conv2d))
    x, weight = conv.inputs
    grad = gc.input("grad", ("N", *conv.shape[1:]))
    direct = Conv2dBackwardWeight(conv.op.geometry, weight.shape)(x, grad)
    (packed,) = pack({"g": direct}, Layouts(AVX512, 8)).values()
    assert isinstance(packed.op, WinogradConv2dBackwardWeight)
    rng = np.random.default_rng(3)
    images = rng.standard_normal((2, c, *size))
    cotangents = rng.standard_normal((2, *(d for d in conv.shape[1:] if isinstance(d, int))))
    want = direct.op.reference(images, cotangents)
    got = packed.op.reference(images, cotangents)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * np.abs(want).max())


@pytest.mark.parametrize(
    ("c", "o", "size", "padding", "isa"),
    [
        *((*shape, "avx512") for shape in (*SHAPES, (256, 128, (14, 14), 1))),
        *((*SHAPES[1], isa) for isa in ISAS if isa != "avx512"),
    ],
)
def test_the_weights_gradient_stays_close(
    c: int, o: int, size: tuple[int, int], padding: int, isa: str
) -> None:
    """The largest error is below 5e-5 of the largest sum, for one and for several chunks of tiles."""
    z, loss = weight_gradient(c, o, size, padding)
    batch = 40
    module = gc.compile({"z": z}, loss=loss, batch=batch, name="tiles", isa=isa)
    assert "adjoint of Winograd" in module.source["tiles.c"]
    assert ("more tiles to come" in module.source["tiles.c"]) == ((c, o) not in ((32, 32), (48, 32)))
    rng = np.random.default_rng(4)
    images = rng.standard_normal((batch, c, *size)).astype(np.float32)
    cotangents = rng.standard_normal((batch, *z.shape[1:])).astype(np.float32)
    conv = next(n for n in topological([z]) if isinstance(n.op, Conv2d))
    direct = Conv2dBackwardWeight(conv.op.geometry, conv.inputs[1].shape)
    for count in (batch, 3):
        module.threads = 2
        module.backward(x=images[:count], grad=cotangents[:count])
        got = np.array(module.grads["conv.weight"])
        want = direct.reference(images[:count].astype(np.float64), cotangents[:count].astype(np.float64))
        assert np.abs(got - want).max() < 5e-5 * np.abs(want).max()
        module.threads = 1
        module.backward(x=images[:count], grad=cotangents[:count])
        np.testing.assert_array_equal(module.grads["conv.weight"], got, "one thread")


def test_the_weights_gradient_takes_an_epilogue() -> None:
    """A penalty on the weights is added where the kernel stores its sums."""
    z, loss = weight_gradient(48, 40, (12, 12), 1)
    weight = next(n for n in topological([z]) if isinstance(n.op, Conv2d)).inputs[1]
    rng = np.random.default_rng(5)
    data = {"x": rng.standard_normal((40, 48, 12, 12)).astype(np.float32)}
    data["grad"] = rng.standard_normal((40, 40, 12, 12)).astype(np.float32)
    plain = gc.compile({"z": z}, loss=loss, batch=40, name="plain")
    decayed = gc.compile({"z": z}, loss=loss + gc.sum(weight * weight), batch=40, name="decayed")
    decayed.params["conv.weight"] = plain.params["conv.weight"]
    plain.backward(**data)
    decayed.backward(**data)
    want = plain.grads["conv.weight"] + 2 * plain.params["conv.weight"]
    np.testing.assert_allclose(decayed.grads["conv.weight"], want, rtol=1e-6, atol=1e-6 * np.abs(want).max())


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
