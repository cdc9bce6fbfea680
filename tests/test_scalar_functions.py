"""Value and derivative of every scalar function, and the stable forms at the extremes."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import sympy as sp

from graphc.errors import FormulaError
from graphc.scalar import (
    argument,
    compare,
    derivative,
    describe,
    evaluate,
    expm1,
    flops,
    free_arguments,
    log1p,
    logaddexp,
    logcosh,
    maximum,
    minimum,
    number,
    parse_formula,
    piecewise,
    relu,
    sigmoid,
    softplus,
    stabilise,
    substitute,
    whole,
)
from graphc.scalar.catalogue import CATALOGUE

x, z = argument(0), argument(1)

EXACT = {
    sp.exp: mpmath.exp,
    sp.log: mpmath.log,
    sp.sin: mpmath.sin,
    sp.cos: mpmath.cos,
    sp.tan: mpmath.tan,
    sp.asin: mpmath.asin,
    sp.acos: mpmath.acos,
    sp.atan: mpmath.atan,
    sp.atan2: mpmath.atan2,
    sp.sinh: mpmath.sinh,
    sp.cosh: mpmath.cosh,
    sp.tanh: mpmath.tanh,
    sp.asinh: mpmath.asinh,
    sp.acosh: mpmath.acosh,
    sp.atanh: mpmath.atanh,
    sp.erf: mpmath.erf,
    sp.erfc: mpmath.erfc,
    sp.floor: mpmath.floor,
    sp.ceiling: mpmath.ceil,
    sp.Abs: abs,
    sp.sign: mpmath.sign,
    log1p: lambda t: mpmath.log(1 + t),
    expm1: lambda t: mpmath.exp(t) - 1,
    sigmoid: lambda t: 1 / (1 + mpmath.exp(-t)),
    softplus: lambda t: mpmath.log(1 + mpmath.exp(t)),
    logcosh: lambda t: mpmath.log(mpmath.cosh(t)),
    logaddexp: lambda a, b: mpmath.log(mpmath.exp(a) + mpmath.exp(b)),
    maximum: max,
    minimum: min,
}
WHOLE_EXACT = {
    whole.rint: lambda a: round(a),
    whole.isnan: lambda a: 0,
    whole.isinf: lambda a: 0,
    whole.quotient: lambda a, b: abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1) if b else 0,
    whole.remainder: lambda a, b: abs(a) % abs(b) * (-1 if a < 0 else 1),
    whole.modulo: lambda a, b: a % b,
    whole.bit_and: lambda a, b: a & b,
    whole.bit_or: lambda a, b: a | b,
    whole.bit_xor: lambda a, b: a ^ b,
    whole.bit_not: lambda a: -a - 1,
    whole.shift_left: lambda a, b: a * 2**b,
    whole.shift_right: lambda a, b: a // 2**b,
    whole.whole_power: lambda a, b: a**b,
}
DOMAIN = {
    sp.log: (1e-30, 1e30),
    sp.asin: (-0.999, 0.999),
    sp.acos: (-0.999, 0.999),
    sp.atanh: (-0.999, 0.999),
    sp.acosh: (1.001, 1e6),
    log1p: (-0.999, 1e30),
    sp.sin: (-50, 50),
    sp.cos: (-50, 50),
    sp.tan: (-1.5, 1.5),
}
REAL = [f for f in CATALOGUE if f.__module__ != "graphc.scalar.whole"]
WHOLE = [f for f in CATALOGUE if f not in REAL]
TWO = (sp.atan2, logaddexp, maximum, minimum)


def points(function: type[sp.Basic]) -> list[float]:
    low, high = DOMAIN.get(function, (-600.0, 600.0))
    magnitudes = [1e-30, 1e-12, 3e-7, 1e-3, 0.1, 0.37, 0.9, 1.7, 4.3, 11.2, 33.3, 97.1, 510.0, 1e5, 1e29]
    return [t for m in magnitudes for t in (m, -m) if low <= t <= high]


def exact(function: type[sp.Basic], operands: tuple[float, ...]) -> mpmath.mpf:
    # 700 digits: cosh(600) and log(1 + exp(-600)) still have digits to spare.
    with mpmath.workdps(700):
        return EXACT[function](*[mpmath.mpf(t) for t in operands])


def calls() -> list[tuple[type[sp.Basic], tuple[float, ...]]]:
    found: list[tuple[type[sp.Basic], tuple[float, ...]]] = []
    for function in REAL:
        some = points(function)
        found += [
            (function, (a, b) if function in TWO else (a,))
            for a, b in zip(some, some[3:] + some[:3], strict=True)
        ]
    return found


def test_every_function_is_checked() -> None:
    assert set(EXACT) == set(REAL)
    assert set(WHOLE_EXACT) == set(WHOLE)


@pytest.mark.parametrize("function", REAL, ids=lambda f: f.__name__)
def test_value_matches_high_precision(function: type[sp.Basic]) -> None:
    symbols = (x, z) if function in TWO else (x,)
    expr = function(*symbols)
    for f, operands in calls():
        if f is function:
            got = float(evaluate(expr, list(operands)))
            assert got == pytest.approx(float(exact(f, operands)), rel=4e-15, abs=1e-300), operands


@pytest.mark.parametrize("function", WHOLE, ids=lambda f: f.__name__)
def test_functions_of_whole_numbers_are_exact(function: type[sp.Basic]) -> None:
    two = function.nargs == sp.FiniteSet(2)
    expr = function(x, z) if two else function(x)
    positive = function in (whole.shift_left, whole.shift_right, whole.whole_power)
    for a in (-1000, -7, -2, -1, 0, 1, 3, 6, 255):
        for b in (0, 1, 2, 5) if positive else (-9, -2, -1, 1, 4, 17):
            given = (a, b) if two else (a,)
            wanted = WHOLE_EXACT[function](*given)
            assert float(evaluate(expr, [float(v) for v in given])) == wanted, given
            assert function(*map(sp.Integer, given)) in (wanted, function(*given)), given


@pytest.mark.parametrize("function", WHOLE, ids=lambda f: f.__name__)
def test_slopes_of_functions_of_whole_numbers(function: type[sp.Basic]) -> None:
    """0 for all but what a division leaves, whose slope in the divisor is minus the quotient."""
    if function in (whole.remainder, whole.modulo):
        down = -4.0 if function is whole.modulo else -3.0
        assert float(evaluate(derivative(function(x, z), x), [-7.5, 2.0])) == 1
        assert float(evaluate(derivative(function(x, z), z), [-7.5, 2.0])) == -down
        return
    two = function.nargs == sp.FiniteSet(2)
    assert derivative(function(x, z) if two else function(x), x) == 0


@pytest.mark.parametrize("function", REAL, ids=lambda f: f.__name__)
def test_derivative_matches_central_difference(function: type[sp.Basic]) -> None:
    symbols = (x, z) if function in TWO else (x,)
    slopes = [derivative(function(*symbols), s) for s in symbols]
    for f, operands in calls():
        if f is not function or max(map(abs, operands)) > 300:
            continue
        for i, slope in enumerate(slopes):
            with mpmath.workdps(200):
                step = mpmath.mpf(10) ** -60
                up = [mpmath.mpf(t) + step * (k == i) for k, t in enumerate(operands)]
                down = [mpmath.mpf(t) - step * (k == i) for k, t in enumerate(operands)]
                wanted = float((EXACT[f](*up) - EXACT[f](*down)) / (2 * step))
            # sigmoid*(1 - sigmoid) and 1 - tanh**2 are accurate to the precision of 1.
            assert float(evaluate(slope, list(operands))) == pytest.approx(wanted, rel=2e-13, abs=3e-16), (
                operands
            )


@pytest.mark.parametrize("function", [sigmoid, softplus, log1p, expm1])
def test_inverse_undoes_the_function(function: type[sp.Basic]) -> None:
    there_and_back = function(x).inverse()(function(x))
    points = np.array([-0.9, -0.3, 0.2, 1.5])
    np.testing.assert_allclose(evaluate(there_and_back, [points]), points, rtol=1e-12)


@pytest.mark.parametrize("function", [sigmoid, softplus, log1p, expm1, logcosh])
def test_numbers_evaluate_to_many_digits(function: type[sp.Basic]) -> None:
    value = sp.Rational(1, 10**20)
    assert abs(sp.N(function(value), 40) - sp.N(function(value).elementary(), 40)) < sp.Float("1e-38")
    assert not function(sp.Rational(1, 3)).is_Number  # kept whole until asked
    assert function(sp.S.Zero) == function.at_zero


STABLE = {
    "log(1 + exp(x))": softplus(x),
    "log(exp(-2*x) + 1)": softplus(-2 * x),
    "log(2 + 2*exp(x))": sp.log(2) + softplus(x),
    "log(1 + x)": log1p(x),
    "log(1 - x)": log1p(-x),
    "log1p(exp(x))": softplus(x),
    "log1p(expm1(x))": x,
    "exp(x) - 1": expm1(x),
    "3*exp(2*x) - 3": 3 * expm1(2 * x),
    "1 - exp(-x)": -expm1(-x),
    "1/(1 + exp(-x))": sigmoid(x),
    "1/(1 + exp(x))": sigmoid(-x),
    "exp(x)/(1 + exp(x))": sigmoid(x),
    "exp(x)/(exp(x) + exp(z))": sigmoid(x - z),
    "exp(-x)/(1 + exp(-x))**2": sigmoid(x) * sigmoid(-x),
    "(exp(x) - exp(-x))/(exp(x) + exp(-x))": sp.tanh(x),
    "(exp(2*x) - 1)/(exp(2*x) + 1)": sp.tanh(x),
    "(1 - exp(-2*x))/(1 + exp(-2*x))": sp.tanh(x),
    "2/(1 + exp(-2*x)) - 1": sp.tanh(x),
    "log(exp(x) + exp(z))": logaddexp(x, z),
    "log(cosh(x))": logcosh(x),
    "log((exp(x) + exp(-x))/2)": logcosh(x),
    "log(1/(1 + exp(-x)))": -softplus(-x),
    "log(1 - sigmoid(x))": -softplus(x),
    "x*tanh(log(1 + exp(x)))": x * sp.tanh(softplus(x)),
    "x/(1 + exp(-x))": x * sigmoid(x),
    "log(2 + x)": sp.log(2 + x),
    "exp(x) - 2": sp.exp(x) - 2,
}


@pytest.mark.parametrize("formula", STABLE)
def test_stable_form(formula: str) -> None:
    expr, _ = parse_formula(formula, ["x", "z"])
    stable = stabilise(expr)
    # log(a + b) keeps what sympy calls it; the comparison is up to the order of arguments
    assert stable == STABLE[formula] or (stable - STABLE[formula]).equals(0)
    assert stabilise(stable) == stable
    points = [np.array([-0.7, 0.1, 0.6]), np.array([0.3, -0.2, 0.9])]
    np.testing.assert_allclose(evaluate(stable, points), evaluate(expr, points), rtol=1e-13)


@pytest.mark.parametrize(
    "formula", [f for f in STABLE if not f.startswith(("log(1 + x", "log(1 - x", "3*exp", "log(2 +"))]
)
def test_no_overflow_where_the_function_is_tame(formula: str) -> None:
    expr, _ = parse_formula(formula, ["x", "z"])
    tame = ("x", "z") if "z" in formula else ("x",)
    big = np.array([-1e4, -1e3, -90.0, 0.0, 90.0, 1e3, 1e4])
    if formula in ("exp(x) - 1", "exp(x) - 2", "1 - exp(-x)"):
        big = -big[:4] if "-x" in formula else big[:4]
    for s in (x, z)[: len(tame)]:
        for e in (stabilise(expr), derivative(expr, s)):
            for other in (-1e4, 0.0, 1e4):
                assert np.isfinite(evaluate(e, [big, np.array(other)])).all(), (describe(e), other)


def test_kinks_follow_pytorch() -> None:
    assert evaluate(derivative(relu(x), x), [np.array([-1.0, 0.0, 2.0])]).tolist() == [0, 0, 1]
    assert evaluate(derivative(sp.Abs(x), x), [np.array([-1.0, 0.0, 2.0])]).tolist() == [-1, 0, 1]
    assert evaluate(derivative(sp.Max(x, z), x), [[1.0, 2.0, 3.0], [2.0, 2.0, 2.0]]).tolist() == [0, 0.5, 1]
    assert evaluate(derivative(sp.Min(x, z), x), [[1.0, 2.0, 3.0], [2.0, 2.0, 2.0]]).tolist() == [1, 0.5, 0]
    assert stabilise(sp.Max(x, 0)) == relu(x)
    assert derivative(sp.sign(x) + sp.floor(x) + sp.ceiling(x), x) == 0


TORCH = {
    "relu": "relu(x)",
    "relu6": "min(max(x, 0), 6)",
    "leaky_relu": "where(x > 0, x, 0.01*x)",
    "elu": "where(x <= 0, expm1(x), x)",
    "selu": "1.0507009873554805*where(x <= 0, 1.6732632423543772*expm1(x), x)",
    "silu": "x*sigmoid(x)",
    "gelu": "0.5*x*(1 + erf(x/sqrt(2)))",
    "hardtanh": "max(min(x, 1), -1)",
    "hardsigmoid": "where(x <= -3, 0, where(x >= 3, 1, x/6 + 0.5))",
    "hardswish": "where(x <= -3, 0, where(x < 3, x*(x + 3)/6, x))",
    "mish": "x*tanh(log(1 + exp(x)))",
    "softsign": "x/(1 + abs(x))",
    "softplus": "softplus(x)",
    "logsigmoid": "log(sigmoid(x))",
    "tanhshrink": "x - tanh(x)",
    "threshold": "where(x > 1, x, 0)",
}


@pytest.mark.parametrize("name", TORCH)
def test_activations_agree_with_pytorch_at_kinks_and_extremes(name: str) -> None:
    torch = pytest.importorskip("torch")
    expr = stabilise(parse_formula(TORCH[name])[0])
    points = np.array([-1e4, -88.0, -6.0, -3.0, -1.0, -0.3, 0.0, 0.3, 1.0, 3.0, 6.0, 20.0, 1e4])
    t = torch.tensor(points, requires_grad=True)
    function = getattr(torch.nn.functional, name)
    value = function(t, 1.0, 0.0) if name == "threshold" else function(t)
    (slope,) = torch.autograd.grad(value.sum(), t)
    np.testing.assert_allclose(evaluate(expr, [points]), value.detach().numpy(), rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(evaluate(derivative(expr, x), [points]), slope.numpy(), rtol=1e-7, atol=1e-12)


NAN_FLOWS = [
    "relu(x)",
    "max(x, 0)",
    "min(max(x, 0), 6)",
    "sigmoid(x)",
    "softplus(x)",
    "abs(x)",
    "sign(x)",
    "where(x > 0, x, 0.1*x)",
    "log(cosh(x))",
]


@pytest.mark.parametrize("formula", NAN_FLOWS)
def test_nan_flows_through(formula: str) -> None:
    assert np.isnan(evaluate(stabilise(parse_formula(formula)[0]), [np.nan]))


def test_extrema_propagate_nan_from_either_side() -> None:
    a, b = np.array([np.nan, 1.0, np.nan]), np.array([1.0, np.nan, np.nan])
    assert np.isnan(evaluate(maximum(x, z), [a, b])).all()
    assert np.isnan(evaluate(minimum(x, z), [a, b])).all()


def test_derivative_leaves_nothing_behind() -> None:
    unusual = sp.Abs(sp.log(x)) + sp.Max(x, 0) * sp.Min(x**2, 3) + sp.Abs(sp.sqrt(x) - 2) ** sp.Rational(3, 2)
    slope = derivative(unusual, x)
    assert not slope.has(sp.Heaviside, sp.DiracDelta, sp.Derivative, sp.Subs, sp.re, sp.im, sp.Max, sp.Min)
    at = np.array([0.3, 1.7, 2.9])
    numeric = (evaluate(stabilise(unusual), [at + 1e-6]) - evaluate(stabilise(unusual), [at - 1e-6])) / 2e-6
    np.testing.assert_allclose(evaluate(slope, [at]), numeric, rtol=1e-6)


def test_a_function_without_derivative_is_named() -> None:
    with pytest.raises(FormulaError, match="mystery"):
        derivative(sp.Function("mystery")(x), x)


def test_powers_with_variables_on_both_sides() -> None:
    at = [np.array([0.5, 2.0]), np.array([1.5, -0.5])]
    expr = x**z
    for s, wanted in ((x, at[1] * at[0] ** (at[1] - 1)), (z, at[0] ** at[1] * np.log(at[0]))):
        np.testing.assert_allclose(evaluate(derivative(expr, s), at), wanted)
    np.testing.assert_allclose(evaluate(derivative(2**x, x), [at[0]]), 2 ** at[0] * np.log(2))


def test_piecewise_keeps_its_conditions() -> None:
    expr = relu(2 * x + 3)
    assert expr.args[0].args[1] == compare(sp.Le, 2 * x + 3, 0)
    inner = substitute(relu(x), {x: 2 * x + z})
    assert inner.args[0].args[1] == compare(sp.Le, 2 * x + z, 0)
    assert piecewise((x, compare(sp.Gt, x, 1)), (x, sp.true)) == x
    assert piecewise((x, sp.false), (z, sp.true)) == z
    assert substitute(x + z, {x: z, z: x}) == x + z


def test_sympy_rebuilds_a_choice_as_it_was() -> None:
    condition = compare(sp.Le, 2 * x + 3, 0)
    for expr in (relu(x).xreplace({x: 2 * x + 3}), relu(x).subs(x, 2 * x + 3)):
        assert expr == relu(2 * x + 3) and expr.args[0].args[1] == condition
    assert isinstance(relu(x) ** -1, sp.Pow)
    assert evaluate(1 / relu(x), [-1.0]) == np.inf
    nested = relu(x).xreplace({x: relu(z) - 1})
    assert not nested.has(sp.ITE) and evaluate(nested, [0.0, 3.0]) == 2
    users = sp.Piecewise((0, x < 0), (x, True))
    assert type(stabilise(users)) is type(relu(x))
    assert describe(stabilise(users)) == "(0 if x0 < 0 else x0)"


def test_evaluate_broadcasts_and_refuses_unknowns() -> None:
    assert evaluate(sp.Integer(3), [np.zeros((2, 3))]).shape == (2, 3)
    assert evaluate(x, [np.zeros(3), np.zeros((2, 1))]).shape == (2, 3)
    assert evaluate(compare(sp.Lt, x, z), [[1.0, 3.0], 2.0]).tolist() == [1.0, 0.0]
    with pytest.raises(FormulaError, match="x1"):
        evaluate(x + z, [1.0])
    with pytest.raises(FormulaError, match="zeta"):
        evaluate(sp.zeta(x), [1.0])


def test_small_readers() -> None:
    assert describe(1 - x**2, {x: "y"}) == "1 - y**2"
    assert describe(relu(x)) == "(0 if x0 <= 0 else x0)"
    assert len(describe(sum((x + i) ** 3 for i in range(90)))) == 200
    assert flops(x) == 0 and flops(x * z + 1) == 2 and flops(x / z) == 1 and flops(sp.tanh(-x)) == 1
    assert flops(x**4) == 2 and flops(1 / x) == 1 and flops(sigmoid(x) * (1 - sigmoid(x))) == 3
    assert number(0.1) == sp.Rational(1, 10) and number(True) == 1 and number(float("inf")) == sp.oo
    assert [s.name for s in free_arguments([argument(10) + argument(2)])] == ["x2", "x10"]
    with pytest.raises(FormulaError):
        argument(-1)
