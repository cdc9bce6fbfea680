"""Integers of every width: exact where they fit, wrapping where they do not; no cast is undefined."""

from __future__ import annotations

import numpy as np
import pytest

import graphc as gc
from graphc.build import BuildOptions
from graphc.errors import DTypeError

WHOLE = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
RNG = np.random.default_rng(3)
# Whatever C leaves undefined ends the process instead.
TRAPS = BuildOptions(
    optimisation=("-O1",),
    extra_flags=("-Wall", "-Wextra", "-Werror", "-fsanitize=undefined,float-cast-overflow",
                 "-fsanitize-undefined-trap-on-error"),
)  # fmt: skip


def any_values(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return values of the whole range, with both bounds among them."""
    limits = np.iinfo(dtype)
    values = RNG.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    values.flat[0], values.flat[1] = limits.min, limits.max
    return values


@pytest.mark.parametrize("target", ["c", "cuda-emulated"])
def test_arithmetic_comparisons_and_reductions_are_those_of_numpy(target: str) -> None:
    """Exactly, at the bounds of every type; sums wrap in their own type."""
    outputs, wanted, given = {}, {}, {}
    for dtype in WHOLE if target == "c" else ("int8", "int32", "uint16", "uint64"):  # C++ compiles slowly
        x, y = (gc.input(f"{n}_{dtype}", (3, 40), dtype=dtype) for n in "xy")
        a, b = any_values(dtype, (3, 40)), any_values(dtype, (3, 40))
        b[1] = a[1]
        given |= {f"x_{dtype}": a, f"y_{dtype}": b}
        fixed = any_values(dtype, (40,))
        with np.errstate(over="ignore"):
            cases = {
                "add": (x + y, a + b), "sub": (x - y, a - b), "mul": (x * y, a * b), "neg": (-x, -a),
                "abs": (gc.abs(x), np.abs(a)), "sign": (gc.sign(x), np.sign(a)), "cube": (x * x * x, a * a * a),
                "less": (gc.less(x, y), a < b), "equal": (gc.equal(x, y), a == b),
                "max": (gc.maximum(x, y), np.maximum(a, b)), "min": (gc.minimum(x, y), np.minimum(a, b)),
                "constant": (x + gc.constant(fixed), a + fixed),
                "sum": (gc.sum(x, 1), a.sum(1, dtype=dtype)), "column": (gc.sum(x, 0), a.sum(0, dtype=dtype)),
                "highest": (gc.max(x, 1), a.max(1)), "lowest": (gc.min(x, 0), a.min(0)),
                "argmax": (gc.argmax(x, 1), a.argmax(1)), "argmin": (gc.argmin(x, 0), a.argmin(0)),
                "moved": (gc.transpose(x, (1, 0)), a.T), "joined": (gc.concat([x, y], 1), np.concatenate([a, b], 1)),
                "small": (gc.clip(x, 3, 5), np.clip(a, 3, 5)),
            }  # fmt: skip
            for narrow in WHOLE if target == "c" else ():
                cases[f"to_{narrow}"] = (gc.cast(x, narrow), a.astype(narrow))
        outputs |= {f"{k}_{dtype}": node for k, (node, _) in cases.items()}
        wanted |= {f"{k}_{dtype}": value for k, (_, value) in cases.items()}
    module = gc.compile(
        outputs, target=target, build=TRAPS if target == "c" else BuildOptions(optimisation=("-O1",))
    )
    got = module.predict(**given)
    for name, value in wanted.items():
        assert got[name].dtype == value.dtype, name
        np.testing.assert_array_equal(got[name], value, err_msg=name)


@pytest.mark.parametrize("real", ["float32", "float64"])
def test_casts_of_floats_truncate_and_end_at_the_bounds(real: str) -> None:
    """NaN gives 0; with sanitizers no cast is undefined."""
    x = gc.input("x", ("N",), dtype=real)
    values = np.array(
        [0.0, -0.9, 2.7, -2.7, 126.99, 127.5, 128.0, -128.9, -129.0, 255.9, 256.0, 65535.5, 3e9, -3e9, 1e19, -1e19,
         1e30, np.inf, -np.inf, np.nan], real,
    )  # fmt: skip
    module = gc.compile({d: gc.cast(x, d) for d in WHOLE}, batch=len(values), dtype=real, build=TRAPS)
    got = module.predict(x=values)
    for dtype in WHOLE:
        limits = np.iinfo(dtype)
        wanted = [
            0 if np.isnan(v) else limits.max if v >= limits.max else limits.min if v <= limits.min else int(v)
            for v in values.tolist()
        ]
        np.testing.assert_array_equal(got[dtype], np.array(wanted, dtype), err_msg=dtype)


def test_what_no_integer_holds_is_refused() -> None:
    x, y = gc.input("x", (2,), dtype="uint64"), gc.input("y", (2,), dtype="int8")
    with pytest.raises(DTypeError, match="no integer holds both uint64 and int8"):
        x + y
    assert (gc.input("z", (2,), dtype="uint32") + y).dtype == "int64"
    assert (gc.input("z", (2,), dtype="uint8") + y).dtype == "int16"


def test_one_large_constant_is_exact() -> None:
    """A float64 would round it."""
    x = gc.input("x", (2,), dtype="uint64")
    got = gc.compile(x + gc.constant(np.array(2**64 - 2, np.uint64))).predict(x=np.array([1, 5], np.uint64))
    assert got["out"].tolist() == [2**64 - 1, 3]
