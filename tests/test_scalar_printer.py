"""The printed C: what it looks like, and that gcc computes from it what the reference says."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import sympy as sp

from graphc.errors import FormulaError
from graphc.scalar import (
    C_TYPE,
    HELPERS,
    argument,
    compare,
    derivative,
    evaluate,
    helpers_used,
    literal,
    logaddexp,
    maximum,
    minimum,
    parse_formula,
    piecewise,
    relu,
    sigmoid,
    stabilise,
    to_c,
)

x, z, n = argument(0), argument(1), argument(2)
NAMES = {x: "x", z: "z", n: "n"}


def show(expr: sp.Basic | str, dtype: str = "float32", **kinds: str) -> str:
    if isinstance(expr, str):
        expr = parse_formula(expr, ["x", "z", "n"])[0]
    dtypes = {
        s: kinds.get(name, "float32" if dtype in ("bool", "uint8") else dtype) for s, name in NAMES.items()
    }
    return to_c(expr, NAMES, dtypes, dtype)


PRINTED = {
    "x + 2": "x + 2.0f",
    "1 - x**2": "1.0f - x*x",
    "x - z": "x - z",
    "-x": "-x",
    "-x - z": "-x - z",
    "-3*x*z": "-3.0f*x*z",
    "x/z": "x/z",
    "x/(z*n)": "x/(z*n)",
    "x/(z + 1)": "x/(z + 1.0f)",
    "2/(3*x)": "0.6666667f/x",
    "-x/z": "-x/z",
    "x/2 - z/3": "0.5f*x - 0.33333334f*z",
    "x**-2": "1.0f/(x*x)",
    "x**3": "x*x*x",
    "x**4": "(x*x)*(x*x)",
    "x**5": "gc_pow5f(x)",
    "(x + z)**2": "gc_pow2f(x + z)",
    "x**17": "powf(x, 17.0f)",
    "x**0.3": "powf(x, 0.3f)",
    "2**x": "exp2f(x)",
    "3**x": "powf(3.0f, x)",
    "sqrt(x)": "sqrtf(x)",
    "rsqrt(x)": "1.0f/sqrtf(x)",
    "z*rsqrt(x)": "z/sqrtf(x)",
    "x**1.5": "x*sqrtf(x)",
    "(x + z)**1.5": "gc_pow3f(sqrtf(x + z))",
    "exp(-x)": "gc_expf(-x)",
    "sin(x) + tanh(z)": "sinf(x) + gc_tanhf(z)",
    "abs(x)": "fabsf(x)",
    "relu(x)": "(x <= 0.0f ? 0.0f : x)",
    "z*relu(x)": "z*(x <= 0.0f ? 0.0f : x)",
    "sigmoid(x)": "gc_sigmoidf(x)",
    "max(x, z)": "gc_maximumf(x, z)",
    "sign(x)": "gc_signf(x)",
    "where(x > 0 and z > 0, x, z)": "(x > 0.0f && z > 0.0f ? x : z)",
    "where(x > 0, x, z*expm1(x))": "gc_selectf(x > 0.0f, x, z*gc_expm1f(x))",
    "where(x > 3, x, where(x > 0, z, 2*z))": "gc_selectf(x > 3.0f, x, gc_selectf(x > 0.0f, z, 2.0f*z))",
    "where((x > 0 and z > 0) or n > 1, x, z)": "((x > 0.0f && z > 0.0f) || n > 1.0f ? x : z)",
    "sqrt(2/pi)*x": "0.7978846f*x",
    "x + pi + 1": "x + 4.1415925f",
    "x < z": "(x < z ? 1.0f : 0.0f)",
    "0 < x": "(x > 0.0f ? 1.0f : 0.0f)",
    "1e-7*x": "1e-7f*x",
    "1e20*x": "1e20f*x",
    "1e39*x": "INFINITY*x",
    "16777217*x": "1.6777216e7f*x",
}


@pytest.mark.parametrize("formula", PRINTED)
def test_reads_as_written_by_hand(formula: str) -> None:
    assert show(formula) == PRINTED[formula]


def test_names_that_are_expressions_keep_together() -> None:
    text = to_c(2 * x - z**2, {x: "a + b", z: "p->q[i + 1]"}, {x: "float32", z: "float32"}, "float32")
    assert text in ("2.0f*(a + b) - gc_pow2f(p->q[i + 1])", "2.0f*(a + b) - p->q[i + 1]*p->q[i + 1]")


def test_double_has_no_suffix() -> None:
    assert show("0.1*tanh(x)**2 + sigmoid(z) + 1", "float64") in (
        "0.1*gc_pow2(tanh(x)) + gc_sigmoid(z) + 1.0",
        "gc_sigmoid(z) + 0.1*gc_pow2(tanh(x)) + 1.0",
    )


def test_integers_stay_integers() -> None:
    assert show("2*n + 1", "int32") == "(int32_t)(2u*(uint32_t)n + 1u)"  # wraps; nothing is undefined
    assert show("2*n + 1", "int32", n="int16") == "2*(int32_t)n + 1"  # fits
    assert show("n**2", "int64") in ("(int64_t)gc_pow2ul((uint64_t)n)", "(int64_t)((uint64_t)n*(uint64_t)n)")
    assert show("n**2", "uint64") == "n*n"
    assert show("n/2", "int32") == "gc_to_int32(0.5*(double)n)"
    assert show("max(n, x)", "int64") == "gc_maximuml(n, x)"
    assert show("abs(n)", "int32") == "gc_absi(n)"
    assert show("n + 1", "uint8", n="uint8") == "(uint8_t)((int32_t)n + 1)"
    assert show("x*n", "float32", n="int32") in ("(float)n*x", "x*(float)n")
    assert show("where(n == 3, x, 0)", "float32", n="int32") == "(n == 3 ? x : 0.0f)"
    assert show("where(n > 3.5, x, 0)", "float32", n="int32") == "((float)n > 3.5f ? x : 0.0f)"
    assert show("where(n, x, 0)", "float32", n="bool") == "((int32_t)n != 0 ? x : 0.0f)"
    assert show("n", "float32", n="float64") == "(float)n"
    assert show("x", "int32", x="float32") == "gc_to_int32f(x)"


def test_truth_values() -> None:
    assert show(compare(sp.Lt, x, z), "bool") == "(x < z)"
    assert show(compare(sp.Lt, x, z), "uint8") == "(x < z)"
    assert show(compare(sp.Lt, x, z), "float32") == "(float)(x < z)"
    assert show("x < z", "bool") == "(x < z)"
    assert show("x < z", "int32", x="float32", z="float32") == "(x < z)"
    assert show("x", "bool", x="bool") == "x"
    assert show("x", "bool") == "(x != 0.0f)"
    assert show("n == x", "bool", n="int64", x="int32") == "(n == (int64_t)x)"
    assert show(sp.Not(compare(sp.Eq, x, z)), "bool") == "(x != z)"
    assert show(sp.ITE(compare(sp.Lt, x, 0), compare(sp.Lt, z, 0), compare(sp.Lt, n, 0)), "bool") == (
        "(x < 0.0f ? (z < 0.0f) : (n < 0.0f))"
    )


def test_literals_round_once_and_read_back() -> None:
    assert literal(sp.Rational(2), "float32") == "2.0f"
    assert literal(sp.Rational(1, 10), "float64") == "0.1"
    assert literal(sp.oo, "float32") == "INFINITY" and literal(-sp.oo, "float64") == "-INFINITY"
    assert literal(sp.nan, "float32") == "NAN" and literal(sp.zoo, "float32") == "NAN"
    assert literal(sp.Integer(-(2**31)), "int32") == "(-2147483647 - 1)"
    assert literal(sp.Float(0.1), "float64") == "0.1"
    # just above the middle of two floats: through float64 it would round to the even one below
    awkward = 1 + sp.Rational(1, 2**24) + sp.Rational(1, 2**70)
    assert np.float32(literal(awkward, "float32")[:-1]) == np.nextafter(np.float32(1), np.float32(2))
    rng = np.random.default_rng(0)
    for bits in rng.integers(0, 2**32, 300, dtype=np.uint32):
        value = bits.view(np.float32)
        if np.isfinite(value):
            text = literal(sp.Rational(float(value)), "float32")
            assert np.float32(text[:-1]) == value and ("." in text or "e" in text)
    for wide in rng.integers(0, 2**64, 300, dtype=np.uint64):
        value64 = wide.view(np.float64)
        if np.isfinite(value64):
            assert float(literal(sp.Rational(float(value64)), "float64")) == value64
    with pytest.raises(FormulaError, match="whole"):
        literal(sp.Rational(1, 2), "int32")
    with pytest.raises(FormulaError, match="fit"):
        literal(sp.Integer(2**31), "int32")


def test_refusals_name_the_trouble() -> None:
    with pytest.raises(FormulaError, match="zeta"):
        show(sp.zeta(x))
    with pytest.raises(FormulaError, match="no C name"):
        to_c(sp.Symbol("q") + x, NAMES, {}, "float32")
    with pytest.raises(FormulaError, match="float16"):
        to_c(x, NAMES, {}, "float16")
    with pytest.raises(FormulaError, match="not a real number"):
        show(x + sp.I)


def test_helpers_are_found_once_and_complete() -> None:
    assert helpers_used("gc_sigmoid(x) + gc_pow3(gc_sigmoid(y)) + exp(gc_unknown(x))") == [
        "gc_pow3",
        "GC_INLINE",
        "gc_sigmoid",
    ]
    ordered = list(HELPERS)
    for name, text in HELPERS.items():
        assert re.search(rf"^(static|#define) .*\b{name}\b", text, re.MULTILINE)
        assert text.endswith("\n") and "#" not in re.sub(r"(?m)^#", "", text) and "$" not in text
        below = helpers_used(text.replace(name, ""))
        assert all(ordered.index(other) < ordered.index(name) for other in below), name


COMPILED = [
    *[f for f in PRINTED if f != "1e39*x" and "n" not in f.replace("sin", "").replace("sign", "")],
    "x*tanh(log(1 + exp(x)))",
    "0.5*x*(1 + erf(x/sqrt(2)))",
    "0.5*x*(1 + tanh(sqrt(2/pi)*(x + 0.044715*x**3)))",
    "where(x <= 0, 1.67*expm1(x), x)",
    "where(x <= -3, 0, where(x < 3, x*(x + 3)/6, x))",
    "log(exp(x) + exp(z))",
    "log(cosh(x))",
    "log(sigmoid(x))",
    "min(max(x, 0), 6)",
    "min(x, z)",
    "max(x, z) - sign(z)",
    "x**6 + x**7 + z**8",
    "tanh(x)**11",
    "1/(1 + x**2)**3",
    "x**-3 + z**-1.5",
    "atan(x) + atan2(x, z)",
    "sinh(x/9) + cosh(z/9)",
    "floor(x) + ceil(z)",
    "sin(x)*cos(z) + tan(x/9)",
    "log1p(x**2) - log(1 + z**2)",
    "where(not (x > z), x, z) + where(x == z, 1, 2)",
    "(x > z)*x",
    "x - tanh(x)",
    "2**-x",
    "1/(1 + exp(-x*z))",
]


def edge_values() -> tuple[np.ndarray, np.ndarray]:
    some = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        3.0,
        -3.0,
        6.0,
        17.0,
        -40.0,
        1e-3,
        -1e-6,
        88.0,
        -104.0,
        300.0,
        -1e4,
        1e4,
    ]
    some += [np.inf, -np.inf, np.nan, 1e-30, 1e30]
    rng = np.random.default_rng(1)
    grid = np.array(some)
    a = np.concatenate([np.repeat(grid, len(grid)), rng.normal(size=400) * 3])
    b = np.concatenate([np.tile(grid, len(grid)), rng.normal(size=400) * 3])
    return a.astype(np.float32), b.astype(np.float32)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[ctypes.CDLL, list[tuple[str, sp.Expr, str]]]:
    """Compile every expression and its derivatives, in both precisions, in one go."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("no gcc")
    cases: list[tuple[str, sp.Expr, str]] = []
    functions: list[str] = []
    for formula in COMPILED:
        expr = stabilise(parse_formula(formula, ["x", "z"])[0])
        for label, e in (("", expr), (" d/dx", derivative(expr, x)), (" d/dz", derivative(expr, z))):
            for dtype in ("float32", "float64"):
                t = C_TYPE[dtype]
                body = to_c(e, {x: "x[i]", z: "z[i]"}, {x: dtype, z: dtype}, dtype)
                functions.append(
                    f"void f{len(cases)}(int n, const {t} *x, const {t} *z, {t} *out) {{\n"
                    f"    for (int i = 0; i < n; i++) {{ (void)x; (void)z; out[i] = {body}; }}\n}}\n"
                )
                cases.append((formula + label, e, dtype))
    code = "".join(functions)
    used = helpers_used(code)
    text = "#include <math.h>\n#include <stdint.h>\n" + "\n".join([*(HELPERS[h] for h in used), code])
    folder = tmp_path_factory.mktemp("scalar")
    return build(gcc, folder, "cases", text), cases


def build(gcc: str, folder: Path, name: str, text: str) -> ctypes.CDLL:
    source, library = folder / f"{name}.c", folder / f"{name}.so"
    source.write_text(text)
    flags = [
        "-std=c11",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wmissing-declarations",
        "-Wno-missing-declarations",
    ]
    command = [gcc, *flags, "-fPIC", "-shared", str(source), "-o", str(library), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:4000]
    return ctypes.CDLL(str(library))


def test_c_computes_what_the_reference_says(
    compiled: tuple[ctypes.CDLL, list[tuple[str, sp.Expr, str]]],
) -> None:
    library, cases = compiled
    a, b = edge_values()
    for k, (label, expr, dtype) in enumerate(cases):
        first, second = a.astype(dtype), b.astype(dtype)
        got = np.empty_like(first)
        pointers = [v.ctypes.data_as(ctypes.c_void_p) for v in (first, second, got)]
        getattr(library, f"f{k}")(ctypes.c_int(len(got)), *pointers)
        wanted = evaluate(expr, [first, second])
        assert_close(got, wanted, dtype, label, (first, second))


def assert_close(
    got: np.ndarray, wanted: np.ndarray, dtype: str, label: str, operands: tuple[np.ndarray, np.ndarray]
) -> None:
    """Compare where float32 can: finite in between, and NaN and Inf in the same places in float64."""
    single = dtype == "float32"
    relative, absolute = (3e-5, 3e-6) if single else (1e-11, 1e-13)
    with np.errstate(all="ignore"):
        wide = got.astype(np.float64)
        ordinary = np.isfinite(wanted) & (np.abs(wanted) < (1e30 if single else 1e300))
        if single:
            # Intermediate results of large operands overflow in float32 alone.
            ordinary &= (np.abs(operands[0]) < 80) & (np.abs(operands[1]) < 80)
            ordinary &= (np.abs(operands[0]) > 1e-8) & (np.abs(operands[1]) > 1e-8)
        bad = ordinary & ~(np.abs(wide - wanted) <= relative * np.abs(wanted) + absolute)
        small = [np.isnan(v) | (np.abs(v) < 80) for v in operands]
        compared = (np.isnan(operands[0]) | np.isnan(operands[1])) & small[0] & small[1] if single else True
        bad |= compared & (np.isnan(wide) != np.isnan(wanted))
    where = np.flatnonzero(bad)[:4]
    assert not where.size, (
        label,
        dtype,
        *[(operands[0][i], operands[1][i], got[i], wanted[i]) for i in where],
    )


def test_every_helper_compiles_and_integers_compute(tmp_path: Path) -> None:
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("no gcc")
    expressions = {
        "int32": ["2*n + x - 7", "n**3", "max(n, x)", "min(n, x)", "abs(n)*sign(x)", "n/2", "n == x"],
        "int64": ["n*n*n + x", "max(n, 3)", "where(n == 3, 1, 0)", "abs(x) - n**5", "where(n > x, n, -x)"],
        "uint8": ["n >= 0", "where(n > x, 1, 0)"],
        "bool": ["n > 0", "n - x"],
    }  # fmt: skip
    functions: list[str] = []
    cases: list[tuple[str, sp.Expr, str, str]] = []
    for dtype, formulas in expressions.items():
        for formula in formulas:
            expr = parse_formula(formula, ["x", "z", "n"])[0]
            operand = dtype if dtype.startswith("int") else "uint8"
            body = to_c(expr, NAMES, {x: operand, n: operand}, dtype)
            t = C_TYPE[operand]
            functions.append(f"int64_t g{len(cases)}({t} x, {t} n) {{ (void)x; (void)n; return {body}; }}\n")
            cases.append((formula, expr, operand, dtype))
    text = "#include <math.h>\n#include <stdint.h>\n" + "\n".join([*HELPERS.values(), *functions])
    library = build(gcc, tmp_path, "integers", text)
    for k, (formula, expr, operand, dtype) in enumerate(cases):
        function = getattr(library, f"g{k}")
        function.restype = ctypes.c_int64
        function.argtypes = [getattr(ctypes, f"c_{operand}")] * 2
        for a, b in [(3, 5), (5, 3), (3, 3), (0, 200)] + ([(-4, 9)] if operand != "uint8" else []):
            wanted = int(evaluate(expr, [a, 0, b]))
            wanted = int(wanted != 0) if dtype == "bool" else wanted
            assert function(a, b) == wanted, (formula, dtype, a, b)


def test_printing_is_repeatable() -> None:
    slope = derivative(stabilise(parse_formula("x*tanh(log(1 + exp(x)))")[0]), x)
    dtypes = {x: "float32"}
    texts = set()
    for k in range(100):
        texts.add(to_c(slope, {x: f"v{k}"}, dtypes, "float32").replace(f"v{k}", "v"))
    assert len(texts) == 1


def test_odd_conditions_still_print() -> None:
    nested = compare(sp.Gt, relu(x), 1)
    assert show(piecewise((z, nested), (x, sp.true))) == "((x <= 0.0f ? 0.0f : x) > 1.0f ? z : x)"
    unevaluated = piecewise((x, compare(sp.Gt, x, 0)))
    assert show(unevaluated) == "(x > 0.0f ? x : NAN)"
    assert show(sigmoid(x) + maximum(x, z) - minimum(x, 1) + logaddexp(x, z)).count("gc_") == 4
