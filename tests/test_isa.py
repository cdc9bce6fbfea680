"""Code laid out for any instruction set is right with any compiler flags, and each set is told from macros."""

from __future__ import annotations

import numpy as np
import pytest

import graphc as gc
from graphc.errors import RangeError
from graphc.isa import ISAS, isa_named, isa_of


def logits() -> gc.Tensor:
    """A net with every packed kernel: padded, strided, pooled, single-pixel convolutions; products; odd channels."""
    x = gc.input("x", ("N", 3, 13, 11))
    h = gc.nn.max_pool2d(gc.relu(gc.nn.conv2d(x, 20, 3, padding=1, name="a")), 3, 2, 1)
    h = gc.nn.max_pool2d(gc.relu(gc.nn.conv2d(h, 36, 1, name="b")), 2)
    h = gc.nn.conv2d(h, 17, 3, stride=2, padding=1, name="c")
    return gc.nn.linear(gc.flatten(h), 19, name="d")


def net(isa: str, flags: tuple[str, ...], dtype: str) -> gc.Module:
    out = logits()
    return gc.compile(
        {"logits": out}, loss=gc.mean(out * out), batch=5, isa=isa, name="laid_out", dtype=dtype,
        build=gc.BuildOptions(optimisation=flags),
    )  # fmt: skip


FLAGS = [("-O1",), ("-O2", "-march=native")]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
@pytest.mark.parametrize("isa", [*sorted(ISAS), "m4"])
def test_every_layout_gives_the_same_values(isa: str, flags: tuple[str, ...], dtype: str) -> None:
    """Sums are taken in other orders and with or without fused rounding: a few units in the last place."""
    images = np.random.default_rng(3).standard_normal((5, 3, 13, 11)).astype(dtype)
    got, want = net(isa, flags, dtype), net("avx512", ("-O2", "-march=native"), dtype)
    tolerance = 64 * float(np.finfo(dtype).eps)
    pairs = {"logits": (got.predict(x=images)["logits"], want.predict(x=images)["logits"])}
    assert got.backward(x=images) == pytest.approx(float(want.backward(x=images)), rel=tolerance)
    pairs |= {name: (got.grads[name], want.grads[name]) for name in want.grads}
    for name, (value, expected) in pairs.items():
        np.testing.assert_allclose(
            value, expected, rtol=0, atol=tolerance * np.abs(expected).max(), err_msg=name
        )


def test_macros_tell_the_set() -> None:
    assert isa_of("#define __SSE2__ 1\n#define __FMA__ 1\n#define __AVX512VL__ 1") == "avx512"
    assert isa_of("#define __SSE2__ 1\n#define __FMA__ 1") == "avx2"
    assert isa_of("#define __ARM_NEON 1\n#define __ARM_FEATURE_FMA 1") == "neon"
    assert isa_of("#define __SSE2__ 1\n#define __FMA__X 1\n#undef") == "sse2"


def test_sums_fit_into_registers() -> None:
    """A tile of sums, a packed vector of weights and a factor: what needs more registers spills."""
    for isa in ISAS.values():
        for lanes in (4, 8, 16):
            parts = max(1, lanes * 4 // isa.register_bytes)
            used = (isa.sums(lanes, "float32") + 1) * parts + (0 if isa.repeats else 1)
            assert used <= isa.registers


def test_unknown_names_are_refused() -> None:
    with pytest.raises(RangeError, match=r"isa 'mmx' is unknown; there are avx512, avx2, neon, sse2"):
        isa_named("mmx")
