"""graphc's own float32 exp, log, tanh, erf and relatives: how exact they are, and that loops with them vectorise.

Errors are counted in units in the last place of the exact value, 2^-149 at the least, against libm's double
functions (erf's too, which NumPy has not). Over all 2^32 floats (``STEP = 1``, some minutes for each compiler)
the largest are, with a fused multiply-add and without:

    exp      1.04, 1.01      erf    3.14, 3.27      sigmoid   2.41, 2.41
    log      0.88, 0.93      expm1  1.53, 1.66      softplus  2.12, 2.12
    tanh     2.57, 2.61      log1p  1.44, 1.44      logcosh   3.58, 3.58

The tests look at every 1021st float, a prime, so that all low bits come up.
"""

from __future__ import annotations

import ctypes
import math
import platform
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from emitted import COMPILERS, emission

import graphc as gc
from graphc.scalar import HELPERS, helpers_used

STEP = 1021
LARGEST_ERROR = {
    "exp": 1.05,
    "log": 0.95,
    "tanh": 2.65,
    "erf": 3.3,
    "expm1": 1.7,
    "log1p": 1.45,
    "sigmoid": 2.45,
    "softplus": 2.15,
    "logcosh": 3.6,
}
"""A little above what was measured, for another libm."""

SCAN = """\
double error_@(uint32_t step, int *misfits)
{
    enum { BLOCK = 1024 };
    float x[BLOCK], y[BLOCK];
    double worst = 0.0;
    for (uint64_t first = 0; first <= UINT32_MAX; first += (uint64_t)BLOCK * step) {
        for (uint64_t k = 0; k < BLOCK; k++) x[k] = gc_frombitsf((uint32_t)(first + k * step));
        for (int k = 0; k < BLOCK; k++) y[k] = gc_@f(x[k]);
        for (int k = 0; k < BLOCK; k++) {
            double exact = DOUBLE(x[k]), got = y[k];
            if (isnan(exact) || isnan(got)) {
                *misfits += isnan(exact) != isnan(got);
                continue;
            }
            *misfits += (signbit(exact) != signbit(got)) || (isinf(exact) && exact != got);
            /* What overflows counts as the power of two after the largest float. */
            if (fabs(exact) > 0x1p128) exact = copysign(0x1p128, exact);
            if (isinf(got)) got = copysign(0x1p128, got);
            const int exponent = exact == 0.0 ? -126 : ilogb(exact);
            const int lowest = (exponent < -126 ? -126 : exponent > 127 ? 127 : exponent) - 23;
            const double error = ldexp(fabs(got - exact), -lowest);
            if (error > worst) worst = error;
        }
    }
    return worst;
}
float value_@(float x) { return gc_@f(x); }
"""
FLAGS = {"native": ["-march=native"], "baseline": []}


@pytest.fixture(
    scope="module",
    params=[(c.values[0], m) for c in COMPILERS for m in FLAGS],
    ids=lambda p: f"{p[0]}-{p[1]}",
)
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The functions and their scans, with the processor's own instructions and with those that all have."""
    compiler, machine = request.param
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    code = "".join(
        SCAN.replace("DOUBLE", f"gc_{name}" if f"gc_{name}" in HELPERS else name).replace("@", name)
        for name in LARGEST_ERROR
    )
    code += "float value_logaddexp(float a, float b) { return gc_logaddexpf(a, b); }\n"
    text = "\n".join(
        ["#include <math.h>", "#include <stdint.h>", *(HELPERS[h] for h in helpers_used(code)), code]
    )
    folder = tmp_path_factory.mktemp("vectorised")
    (folder / "scan.c").write_text(text)
    flags = ["-std=gnu11", "-O3", "-ffp-contract=off", *FLAGS[machine], "-fPIC", "-shared"]
    command = [compiler, *flags, str(folder / "scan.c"), "-o", str(folder / "scan.so"), "-lm"]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(folder / "scan.so"))


@pytest.mark.parametrize("name", LARGEST_ERROR)
def test_error_over_all_floats(library: ctypes.CDLL, name: str) -> None:
    """Within the measured error everywhere; NaN, infinities and the signs of zeros exactly where libm has them."""
    scan = getattr(library, f"error_{name}")
    scan.restype, scan.argtypes = ctypes.c_double, [ctypes.c_uint32, ctypes.POINTER(ctypes.c_int)]
    misfits = ctypes.c_int(0)
    assert scan(STEP, ctypes.byref(misfits)) <= LARGEST_ERROR[name] <= 4.0
    assert misfits.value == 0


INF, NAN, ONE, TINY = math.inf, math.nan, 1.0, 2.0**-149
SPECIAL = {
    "exp": [(0.0, 1.0), (-0.0, 1.0), (INF, INF), (-INF, 0.0), (89.0, INF), (-104.0, 0.0), (1e30, INF), (-1e30, 0.0)],
    "log": [(1.0, 0.0), (0.0, -INF), (-0.0, -INF), (INF, INF), (-INF, NAN), (-1.0, NAN), (-TINY, NAN)],
    "tanh": [(0.0, 0.0), (-0.0, -0.0), (INF, 1.0), (-INF, -1.0), (9.1, 1.0), (-9.1, -1.0), (3e38, 1.0), (TINY, TINY)],
    "erf": [(0.0, 0.0), (-0.0, -0.0), (INF, 1.0), (-INF, -1.0), (4.0, 1.0), (-4.0, -1.0), (3e38, 1.0)],
    "expm1": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -1.0), (89.0, INF), (-30.0, -1.0)],
    "log1p": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-1.0, -INF), (-1.5, NAN), (-INF, NAN), (TINY, TINY)],
    "sigmoid": [(0.0, 0.5), (INF, 1.0), (-INF, 0.0), (200.0, 1.0), (-200.0, 0.0)],
    "softplus": [(INF, INF), (-INF, 0.0), (200.0, 200.0), (-200.0, 0.0)],
    "logcosh": [(0.0, 0.0), (INF, INF), (-INF, INF), (3e38, float(np.float32(3e38))), (1e-30, 0.0)],
}  # fmt: skip


@pytest.mark.parametrize("name", SPECIAL)
def test_special_values(library: ctypes.CDLL, name: str) -> None:
    """Bit for bit, apart from which NaN it is."""
    function = getattr(library, f"value_{name}")
    function.restype, function.argtypes = ctypes.c_float, [ctypes.c_float]
    for x, wanted in [*SPECIAL[name], (NAN, NAN)]:
        got = function(x)
        assert (math.isnan(got) and math.isnan(wanted)) or (
            got == wanted and math.copysign(ONE, got) == math.copysign(ONE, wanted)
        ), (x, got, wanted)


def test_results_fade_out_gradually(library: ctypes.CDLL) -> None:
    """Results between 0 and the smallest normal number are right to 2^-149, and so are logarithms of such."""
    exp, log = library.value_exp, library.value_log
    for function in (exp, log):
        function.restype, function.argtypes = ctypes.c_float, [ctypes.c_float]
    for x in np.linspace(-103.9, -87.4, 100, dtype=np.float32):
        assert abs(exp(float(x)) - math.exp(float(x))) <= TINY
    for k in range(1, 24):
        x = (2**k - 1) * TINY
        assert log(x) == pytest.approx(math.log(x), rel=1e-7)


def test_logaddexp_of_infinities(library: ctypes.CDLL) -> None:
    """Equal infinities are no NaN; a NaN is one on either side."""
    function = library.value_logaddexp
    function.restype, function.argtypes = ctypes.c_float, [ctypes.c_float, ctypes.c_float]
    for a in (INF, -INF, 0.0, 5.0):
        for b in (INF, -INF, 0.0, 5.0):
            assert function(a, b) == pytest.approx(float(np.logaddexp(a, b)), rel=3e-7), (a, b)
    assert math.isnan(function(NAN, -INF)) and math.isnan(function(INF, NAN))


LOOPS = [
    *("exp(a)", "log(a)", "tanh(a)", "erf(a)", "expm1(a)", "log1p(a)", "sigmoid(a)", "softplus(a)"),
    *("log(cosh(a))", "a*tanh(softplus(a))", "0.5*a*(1 + erf(a/sqrt(2)))", "where(a <= 0, 1.67*expm1(a), a)"),
]


def x86_gcc() -> bool:
    """Whether there is a gcc (no other compiler under its name) that compiles for x86-64."""
    if platform.machine() not in ("x86_64", "AMD64") or shutil.which("gcc") is None:
        return False
    words = subprocess.run(["gcc", "--version"], capture_output=True, text=True, check=True).stdout
    return "Free Software Foundation" in words


@pytest.mark.skipif(not x86_gcc(), reason="looks at what gcc makes for x86-64")
@pytest.mark.parametrize("formula", [*LOOPS, "softmax", "many"])
def test_loops_vectorise(formula: str, tmp_path: Path) -> None:
    """The kernel calls nothing and multiplies in registers of eight floats, however much there is to inline."""
    a = gc.input("a", ("N", 64))
    outputs = {"out": gc.softmax(a) if formula == "softmax" else a}
    if formula in LOOPS:
        outputs = {"out": gc.elementwise("f", formula, a)}
    elif formula == "many":
        outputs = {f"out{k}": gc.elementwise("f", f"a*tanh(softplus({k}*a))", a) for k in range(1, 13)}
    (source,) = emission("loop", outputs).write(tmp_path)
    flags = ["-std=gnu11", "-O3", "-mavx2", "-mfma", "-ffp-contract=off"]
    subprocess.run(["gcc", *flags, "-S", str(source), "-o", str(tmp_path / "loop.s")], check=True)
    assembly = (tmp_path / "loop.s").read_text()
    kernels = set(
        re.findall(r"^(?!gc_)(\w+)[\w.]*:", assembly, re.MULTILINE)
    )  # gcc appends .isra.0 and the like
    called = set(re.findall(r"\b(?:call|jmp)\s+([a-z]\w*)", assembly))
    assert called - kernels <= {"snprintf", "memset"}
    assert re.search(r"\bvfm\w+ps\b.*%ymm", assembly)
