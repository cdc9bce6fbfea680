"""Which derivatives can be had from the output alone, and that those are right."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp

from graphc.scalar import (
    OUTPUT,
    argument,
    derivative,
    derivative_from_output,
    describe,
    evaluate,
    parse_formula,
    stabilise,
)

x = argument(0)

YES = {
    "x": "1",
    "3*x - 2": "3",
    "7": "0",
    "relu(x)": "(0 if y <= 0 else 1)",
    "max(x, 0)": "(0 if y <= 0 else 1)",
    "where(x > 0, x, 0)": "(0 if y <= 0 else 1)",
    "where(0 < x, x, 0)": "(0 if y <= 0 else 1)",
    "-relu(x)": "(-1 if y < 0 else 0)",
    "2*relu(x)": "(0 if y <= 0 else 2)",
    "where(x > 0, x, 0.01*x)": "(1/100 if y <= 0 else 1)",
    "where(x <= 0, expm1(x), x)": "(y + 1 if y <= 0 else 1)",
    "where(x <= 0, 1.5*(exp(x) - 1), x)": "(y + 3/2 if y <= 0 else 1)",
    "1.0507*where(x <= 0, 1.67326*expm1(x), x)": None,
    "where(x <= 0, 2*expm1(x/2), x)": "(y/2 + 1 if y <= 0 else 1)",
    "min(max(x, 0), 6)": "(0 if y <= 0 else 0 if y >= 6 else 1)",
    "max(min(x, 1), -1)": None,
    "where(x <= -3, 0, where(x >= 3, 1, x/6 + 0.5))": "(0 if y <= 0 else 0 if y >= 1 else 1/6)",
    "where(x > 1, x, 0)": None,
    "2*min(max(x, 0), 6)": None,
    "sigmoid(x)": "y*(1 - y)",
    "1/(1 + exp(-x))": "y*(1 - y)",
    "exp(x)/(1 + exp(x))": "y*(1 - y)",
    "tanh(x)": "1 - y**2",
    "2*tanh(3*x + 1) - 1": None,
    "exp(x)": "y",
    "exp(2*x + 1)": "2*y",
    "expm1(x)": "y + 1",
    "softplus(x)": "-expm1(-y)",
    "log(1 + exp(x))": "-expm1(-y)",
    "softplus(5*x)/5": "-expm1(-5*y)",
    "log(sigmoid(x))": None,
    "sqrt(x)": "1/(2*y)",
    "rsqrt(x)": "-y**3/2",
    "1/x": "-y**2",
    "sqrt(sigmoid(x))": None,
    "sign(x)": "0",
    "floor(x)": "0",
}
NO = [
    "x*sigmoid(x)",
    "0.5*x*(1 + erf(x/sqrt(2)))",
    "0.5*x*(1 + tanh(sqrt(2/pi)*(x + 0.044715*x**3)))",
    "x*where(x <= -3, 0, where(x >= 3, 1, x/6 + 0.5))",
    "where(x <= -3, 0, where(x < 3, x*(x + 3)/6, x))",
    "x**2",
    "x**3",
    "x**-2",
    "abs(x)",
    "sin(x)",
    "cosh(x)",
    "log(x)",
    "log1p(x)",
    "erf(x)",
    "atan(x)",
    "x*tanh(log(1 + exp(x)))",
    "log(cosh(x))",
    "x/(1 + abs(x))",
    "x - tanh(x)",
    "exp(-x**2)",
    "where(x > 0, x, -0.1*x)",
    "where(x <= 0, -2*expm1(x), x)",
    "where(x >= 0, x, 0)",  # derivative 1 at 0 there, and 0 for the same output just below
    "relu(x) + 1",  # 1 + 1e-9 is 1
    "relu(x)**2",
    "0.3*min(max(x, -0.1), 0.7) + 0.2",  # where the plateau lands depends on rounding
    "rsqrt(min(x, 2))",
    "tanh(sigmoid(x))",
    "where(2*x > 1, x, 0)",
    "where(x > 0, x, x - 1)*where(x > 1, 1, 2)",
]


def points() -> np.ndarray:
    m = np.concatenate([np.logspace(-30, 30, 241), np.linspace(0.01, 40, 500)])
    return np.concatenate([-m, [0.0], m]).astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("formula", YES)
def test_yes(formula: str) -> None:
    expr, _ = parse_formula(formula, ["x"])
    result = derivative_from_output(expr)
    assert result is not None
    assert result.free_symbols <= {OUTPUT}
    assert YES[formula] is None or describe(result) == YES[formula]
    at = points()
    at = at[np.isfinite(evaluate(expr, [at]))]
    wanted = evaluate(derivative(expr, x), [at])
    with np.errstate(over="ignore"):
        output = evaluate(stabilise(expr), [at])
    got = evaluate(result, [], output=output)
    np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("formula", NO)
def test_no(formula: str) -> None:
    assert derivative_from_output(parse_formula(formula, ["x"])[0]) is None


def test_two_arguments_are_refused_quietly() -> None:
    assert derivative_from_output(x * argument(1)) is None
    assert derivative_from_output(argument(1)) is None


def test_a_users_function_that_knows_itself() -> None:
    class swell(sp.Function):  # type: ignore[misc]  # noqa: N801
        """A function whose derivative is 2 f; it has no numeric meaning here, so the answer stays no."""

        def fdiff(self, argindex: int = 1) -> sp.Expr:
            return 2 * self

    assert derivative_from_output(swell(x)) is None
