"""What formulas may say, and what hostile ones get."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sympy as sp

from graphc.errors import FormulaError
from graphc.scalar import FUNCTIONS, argument, derivative, evaluate, parse_formula, stabilise, to_c

x, z = argument(0), argument(1)

ACCEPTED: dict[str, Callable[[Any, Any], Any]] = {
    "x": lambda a, b: a,
    "2*x + 3*z - 1": lambda a, b: 2 * a + 3 * b - 1,
    "-x**2": lambda a, b: -(a**2),
    "2**-x": lambda a, b: 2.0**-a,
    "x/z/2": lambda a, b: a / b / 2,
    "+x - -z": lambda a, b: a + b,
    "1_000*x + 0x10 + 1e-3": lambda a, b: 1000 * a + 16.001,
    "where(x > z, x, z)": lambda a, b: np.where(a > b, a, b),
    "x if x > z else z": lambda a, b: np.where(a > b, a, b),
    "where(0 < x < 1, 5, 7)": lambda a, b: np.where((a > 0) & (a < 1), 5.0, 7.0),
    "where(x > 1 or not z > 0, 1, 2)": lambda a, b: np.where((a > 1) | (b <= 0), 1.0, 2.0),
    "where(x > 0 and z > 0, 1, 2)": lambda a, b: np.where((a > 0) & (b > 0), 1.0, 2.0),
    "(x > z)*3 + (x == z)": lambda a, b: (a > b) * 3.0 + (a == b),
    "where(x, 1, 2)": lambda a, b: np.where(a != 0, 1.0, 2.0),
    "x != z": lambda a, b: (a != b) * 1.0,
    "min(x, z, 0.5)": lambda a, b: np.minimum(np.minimum(a, b), 0.5),
    "max(x, z, -0.5)": lambda a, b: np.maximum(np.maximum(a, b), -0.5),
    "max(0.1, x) + min(2, z)": lambda a, b: np.maximum(a, 0.1) + np.minimum(b, 2),
    "sqrt(abs(x)) + rsqrt(z**2 + 1)": lambda a, b: np.sqrt(np.abs(a)) + 1 / np.sqrt(b * b + 1),
    "sign(x)*floor(z) + ceil(x)": lambda a, b: np.sign(a) * np.floor(b) + np.ceil(a),
    "cosh(x)*sinh(z)*atan(x)*tan(z)": lambda a, b: np.cosh(a) * np.sinh(b) * np.arctan(a) * np.tan(b),
    "cos(pi*x) + sin(z)/e": lambda a, b: np.cos(np.pi * a) + np.sin(b) / np.e,
    "log1p(x**2) + expm1(z)": lambda a, b: np.log1p(a * a) + np.expm1(b),
    "sigmoid(x) + softplus(z) + relu(x)": (
        lambda a, b: 1 / (1 + np.exp(-a)) + np.log1p(np.exp(b)) + np.maximum(a, 0)
    ),
    "atan2(x, z)": np.arctan2,
    "tan(x + pi/2)": lambda a, b: -1 / np.tan(a),
    "abs(2**sqrt(z + 4))": lambda a, b: 2 ** np.sqrt(b + 4),
    "where(1 < 2, x, z)": lambda a, b: a,
    "where(sqrt(2) + sqrt(3) == sqrt(5 + 2*sqrt(6)), x, z)": lambda a, b: a,
    "where(exp(1) > pi, x, z)": lambda a, b: b,
    "\n  x +\n  z\n": lambda a, b: a + b,
    "x # the input": lambda a, b: a,
}


@pytest.mark.parametrize("text", ACCEPTED)
def test_accepts(text: str) -> None:
    expr, names = parse_formula(text, ("x", "z"))
    assert names == ("x", "z")
    a, b = np.array([-1.5, -0.2, 0.4, 0.5, 2.25]), np.array([0.7, -0.2, 0.4, -3.1, 0.01])
    wanted = np.broadcast_to(ACCEPTED[text](a, b), a.shape)
    np.testing.assert_allclose(evaluate(expr, [a, b]), wanted, rtol=1e-14)


def test_order_of_variables() -> None:
    assert parse_formula("b*a + b") == (x * z + x, ("b", "a"))
    assert parse_formula("b*a + b", ["a", "b"])[0] == x * z + z
    assert parse_formula("b", ["a", "b", "c"]) == (z, ("a", "b", "c"))
    assert parse_formula("e*2", ["e"]) == (2 * x, ("e",))
    assert parse_formula("3.5 - 1") == (sp.Rational(5, 2), ())


def test_decimals_are_exact() -> None:
    assert parse_formula("0.1*x + 0.044715")[0] == x / 10 + sp.Rational("0.044715")


REFUSED = {
    "": "formula",
    "x +": "formula",
    "x)": "formula",
    "x ^ 2": r"\*\*.*column 1",
    "x % 2": "Mod",
    "x // 2": "FloorDiv",
    "x @ z": "MatMult",
    "foo(x)": "unknown function 'foo'.*known: abs.*column 1",
    "x + foo(x)": "column 5",
    "  x +\n foo(x)": "column 8",
    "x + é": "column 5",
    "exp": r"write exp\(\.\.\.\)",
    "exp(x, z)": "takes 1 argument",
    "exp()": "takes 1 argument.*got 0",
    "where(x, z)": "takes 3",
    "max(x)": "2 to 16",
    "exp(*x)": "plain arguments",
    "exp(x=1)": "plain arguments",
    "x.real": "Attribute",
    "x[0]": "Subscript",
    "[x]": "List",
    "(x, z)": "Tuple",
    "lambda: x": "Lambda",
    "(x := 2)": "NamedExpr",
    "'x'": "not a real number",
    "None": "not a real number",
    "True": "not a real number",
    "2j*x": "not a real number",
    "...": "not a real number",
    "f'{x}'": "JoinedStr",
    "x is z": "comparison Is",
    "x in z": "comparison In",
    "~x": "UnaryOp",
    "x; z": "formula",
    "import os": "formula",
    "__import__('os')": "unknown function '__import__'",
    "__import__('os').system('true')": "plain function name",
    "x.__class__.__mro__": "Attribute",
    "().__class__": "Attribute",
    "eval('1')": "unknown function 'eval'",
    "open('/etc/passwd')": "unknown function",
    "[y for y in x]": "ListComp",
    "1/0": "division by zero",
    "x/0": "division by zero",
    "x/(1 - 1)": "division by zero",
    "0**-1": "division by zero",
    "log(0)": "infinite|finite",
    "log(-1)": "not a finite real",
    "sqrt(-2)*x": "not a finite real",
    "(-8)**(1/3)": "not a finite real",
    "1e999": "too large",
    "1e300*1e300": "too large",
    "9**9**9": "exponent",
    "x**9**9": "exponent",
    "x**-100": "exponent",
    "(2*x)**(10**12)": "exponent",
    "((x**64)**64)**64": "exponent",
    "(((2*x)**64)**64)": "bits|float64",
    "2**64**(x*0 + 1)**64**64": "exponent",
    "exp(10**9)": "too large",
    "floor(exp(exp(20)))": "too large",
    "é + 1": "ASCII",
    "x\x00": "formula",
    "1" * 3000: "bits",
    "9" * 4000: "bits",
    "1" * 5000: "characters",
    "(" * 10_000 + "x" + ")" * 10_000: "characters",
    "(" * 1500 + "x" + ")" * 1500: "formula",
    "-" * 3000 + "x": "formula",
    "exp(" * 300 + "x" + ")" * 300: "formula",
    "sin(" * 100 + "x" + ")" * 100: "levels deep",
    "relu(x*" * 16 + "x" + ")" * 16: "operations",
    "x) + (z": "unmatched",
    "1(x)": "plain function name",
    "x**" * 100 + "2": "levels deep|exponent",
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda t: repr(t[:30]))
def test_refuses(text: str) -> None:
    with pytest.raises(FormulaError, match=REFUSED[text]) as caught:
        parse_formula(text)
    assert len(str(caught.value)) < 700
    assert caught.value.__cause__ is None


def test_refuses_what_is_not_text_and_bad_variables() -> None:
    with pytest.raises(FormulaError, match="text"):
        parse_formula(3)  # type: ignore[arg-type]
    for names in (["a", "a"], ["1a"], ["a b"], [""]):
        with pytest.raises(FormulaError, match="variable"):
            parse_formula("a", names)
    with pytest.raises(FormulaError, match=r"unknown name 'q' \(known: a, b, pi, e\) at column 5"):
        parse_formula("a + q", ["a", "b"])


@pytest.mark.parametrize("name", [f for f in FUNCTIONS if f not in ("where", "max", "min", "atan2")])
def test_deep_nesting_that_is_allowed_survives_every_later_step(name: str) -> None:
    text = f"{name}(x/3 + " * 19 + "x" + ")" * 19
    expr, problem = sp.S.One, ""
    try:
        expr, _ = parse_formula(text)
    except FormulaError as refusal:
        problem = str(refusal)
    assert problem == "" or "operations" in problem
    slope = derivative(stabilise(expr), x)
    assert to_c(slope, {x: "x"}, {x: "float32"}, "float32") != ""
    assert evaluate(slope, [np.linspace(0.1, 0.9, 5)]).shape in ((), (5,))


def test_a_long_sum_of_constants_is_read() -> None:
    expr, names = parse_formula("+".join(f"sin({i})" for i in range(400)) + "*x")
    assert names == ("x",)
    assert float(evaluate(expr, [0.0])) == pytest.approx(sum(math.sin(i) for i in range(399)))


def test_long_sums_are_not_deep() -> None:
    expr, _ = parse_formula(" + ".join(f"x**{i % 60}*{i}" for i in range(1, 300)))
    assert float(evaluate(expr, [1.0])) == 300 * 299 / 2
