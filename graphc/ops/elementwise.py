"""Elementwise ops: each is one sympy expression, from which everything else follows.

``tanh = elementwise("tanh", sp.tanh(x))`` is a whole op: shape rule, derivative, fusion, C and reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import sympy as sp

from graphc import scalar
from graphc.errors import DTypeError, FormulaError, RangeError
from graphc.graph.node import Node, Op, apply, names_the_line, operators
from graphc.ops.leaves import constant, full
from graphc.ops.reduce import sum_to
from graphc.ops.registry import Sample, register
from graphc.types import DType, N, TensorType, broadcast_shapes, check_dtype, promote

x, y, z = (scalar.argument(i) for i in range(3))
_compare = scalar.compare


@dataclass(frozen=True)
class Elementwise(Op):
    """``out[i] = expr(x0[i], x1[i], ...)`` with NumPy's broadcasting.

    ``result`` is the dtype of the result where it is not the promoted dtype of the inputs.
    ``integers`` says whether integer inputs make sense, ``floats`` whether others do; ``monotone`` whether the
    function of its first argument never decreases, so that it may change places with a maximum.
    """

    label: ClassVar[str] = "elementwise"
    name: str
    expr: sp.Expr
    arity: int
    result: DType | None = None
    integers: bool = False
    monotone: bool = False
    floats: bool = True

    @property
    def title(self) -> str:
        """The name of the function."""
        return self.name

    @property
    def attributes(self) -> str:
        """The formula, and whether its derivative needs the output alone."""
        note = "; derivative from output" if self.from_output is not None else ""
        return scalar.describe(self.expr) + note

    @property
    def from_output(self) -> sp.Expr | None:
        """The derivative of a unary function written in its output alone, or None."""
        if self.arity != 1 or self.result is not None:
            return None
        return scalar.derivative_from_output(self.expr)

    def infer(self, *types: TensorType) -> TensorType:
        """Broadcast the shapes and promote the dtypes."""
        if len(types) != self.arity:
            raise RangeError(f"takes {self.arity} tensors, got {len(types)}")
        if not self.integers and not all(t.is_float for t in types):
            raise DTypeError(f"needs floating-point tensors, got {', '.join(str(t) for t in types)}")
        if not self.floats and any(t.is_float for t in types):
            raise DTypeError(f"needs integer tensors, got {', '.join(str(t) for t in types)}")
        return TensorType(
            self.result or promote(t.dtype for t in types), broadcast_shapes(*(t.shape for t in types))
        )

    def vjp(self, node: Node, cotangent: Node) -> Sequence[Node | None]:
        """Multiply the cotangent by the symbolic derivative; read the output instead of the input if possible."""
        if not node.type.is_float:
            return (None,) * self.arity
        grads: list[Node | None] = []
        for position, operand in enumerate(node.inputs):
            if not operand.type.is_float:
                grads.append(None)
                continue
            if self.from_output is not None:
                gradient = _times(self.name, self.from_output, {scalar.OUTPUT: node}, cotangent)
            else:
                derivative = scalar.derivative(self.expr, scalar.argument(position))
                arguments = {scalar.argument(i): operand for i, operand in enumerate(node.inputs)}
                gradient = _times(self.name, derivative, arguments, cotangent)
            if gradient is not None:
                gradient = cast(sum_to(gradient, operand.shape), operand.dtype)
            grads.append(gradient)
        return grads

    def reference(self, *arrays: np.ndarray) -> np.ndarray:
        """Evaluate the expression through NumPy."""
        return scalar.evaluate(self.expr, arrays)


def _times(name: str, derivative: sp.Expr, arguments: dict[sp.Symbol, Node], cotangent: Node) -> Node | None:
    """Return ``cotangent * derivative`` as one elementwise node over the arguments that occur in it."""
    if derivative == 0:
        return None
    if derivative == 1:
        return cotangent
    used = [s for s in arguments if s in derivative.free_symbols]
    shifted = {s: scalar.argument(k + 1) for k, s in enumerate(used)}
    expr = scalar.argument(0) * scalar.substitute(derivative, shifted)
    label = name if name.endswith("_backward") else f"{name}_backward"
    integers = any(not arguments[s].type.is_float for s in used)
    op = Elementwise(label, expr, 1 + len(used), integers=integers)
    return op(cotangent, *(arguments[s] for s in used))


@lru_cache(maxsize=4096)
def _with_numbers(expr: sp.Expr, pattern: tuple[float | None, ...]) -> sp.Expr:
    """Return expr with numbers for some arguments and the others renumbered."""
    free = iter(range(len(pattern)))
    values = {
        scalar.argument(i): scalar.argument(next(free)) if v is None else scalar.number(v)
        for i, v in enumerate(pattern)
    }
    return scalar.substitute(expr, values)


@names_the_line
def apply_elementwise(op: Elementwise, operands: Sequence[Any], name: str | None = None) -> Node:
    """Return the op on tensors, arrays and numbers; finite numbers become part of the expression.

    Raises:
        DTypeError: an operand is neither a tensor, an array nor a number.
    """
    tensors: list[Node] = []
    pattern: list[float | None] = []
    floats = False
    for operand in operands:
        if isinstance(operand, np.ndarray) and operand.ndim:
            operand = constant(operand)
        if isinstance(operand, Node):
            pattern.append(None)
            tensors.append(operand)
        elif isinstance(operand, (bool, int, float, np.number, np.bool_, np.ndarray)):
            floats |= isinstance(operand, (float, np.floating))
            value = float(operand)
            if np.isfinite(value):
                pattern.append(value)
            else:  # sympy would simplify with infinities; keep them out of its sight
                pattern.append(None)
                tensors.append(full((), value))
        else:
            raise DTypeError(f"{op.title}: expected a tensor or a number, got {type(operand).__name__}")
    if not tensors:
        raise DTypeError(f"{op.title}: expected at least one tensor, got numbers only")
    result = op.result
    if floats and result is None and not any(t.type.is_float for t in tensors):
        tensors = [cast(t, "float32") for t in tensors]
    if all(p is None for p in pattern):
        return op(*tensors, name=name)
    expr = _with_numbers(op.expr, tuple(pattern))
    if expr == scalar.argument(0) and len(tensors) == 1 and result is None:
        return tensors[0]
    return apply(
        Elementwise(op.name, expr, len(tensors), result, op.integers, op.monotone, op.floats), tensors, name
    )


def elementwise(
    name: str,
    expr: sp.Expr,
    *,
    result: DType | None = None,
    integers: bool = False,
    monotone: bool = False,
    floats: bool = True,
    domain: tuple[float, float] = (-3.0, 3.0),
    smooth: bool = True,
) -> Callable[..., Node]:
    """Define and register an elementwise op; returns the function that applies it.

    One without ``floats`` takes integers only, and is tested on int32. ``domain`` is where the contract tests
    draw inputs from.
    """
    arity = 1 + max(int(str(s)[1:]) for s in expr.free_symbols)
    op = Elementwise(name, scalar.stabilise(expr), arity, result, integers or not floats, monotone, floats)

    def draw(rng: np.random.Generator, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        return [rng.uniform(*domain, shape) for shape in shapes]

    def function(*operands: Any, name: str | None = None) -> Node:
        return apply_elementwise(op, operands, name)

    shapes = [(N, 3, 5), (3, 1), (1, 5)][:arity]
    types = tuple(TensorType("float32" if floats else "int32", s) for s in shapes)
    smooth = smooth and result is None
    register(name, lambda: [Sample(function, types, values=draw, smooth=smooth)])
    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"Return ``{scalar.describe(op.expr)}`` elementwise, with NumPy's broadcasting."
    return function


def _truth(condition: Any) -> sp.Expr:
    return scalar.piecewise((1, condition), (0, True))


add = elementwise("add", x + y, integers=True)
sub = elementwise("sub", x - y, integers=True)
mul = elementwise("mul", x * y, integers=True)
div = elementwise("div", x / y, domain=(0.5, 3))
neg = elementwise("neg", -x, integers=True)
abs = elementwise("abs", sp.Abs(x), integers=True)
sign = elementwise(
    "sign",
    scalar.piecewise((1, _compare(sp.Gt, x, 0)), (-1, _compare(sp.Lt, x, 0)), (x, True)),
    integers=True,
    smooth=False,
)
square = elementwise("square", x * x, integers=True)
pow = elementwise("pow", x**y, domain=(0.5, 2))
exp = elementwise("exp", sp.exp(x), monotone=True)
log = elementwise("log", sp.log(x), domain=(0.2, 4), monotone=True)
log1p = elementwise("log1p", scalar.log1p(x), domain=(-0.5, 4), monotone=True)
expm1 = elementwise("expm1", scalar.expm1(x), monotone=True)
sqrt = elementwise("sqrt", sp.sqrt(x), domain=(0.2, 4), monotone=True)
rsqrt = elementwise("rsqrt", 1 / sp.sqrt(x), domain=(0.2, 4))
reciprocal = elementwise("reciprocal", 1 / x, domain=(0.3, 4))
sin = elementwise("sin", sp.sin(x))
cos = elementwise("cos", sp.cos(x))
erf = elementwise("erf", sp.erf(x), monotone=True)
maximum = elementwise("maximum", scalar.maximum(x, y), integers=True)
minimum = elementwise("minimum", scalar.minimum(x, y), integers=True)
less = elementwise("less", _truth(_compare(sp.Lt, x, y)), result="bool", integers=True)
less_equal = elementwise("less_equal", _truth(_compare(sp.Le, x, y)), result="bool", integers=True)
greater = elementwise("greater", _truth(_compare(sp.Gt, x, y)), result="bool", integers=True)
greater_equal = elementwise("greater_equal", _truth(_compare(sp.Ge, x, y)), result="bool", integers=True)
equal = elementwise("equal", _truth(_compare(sp.Eq, x, y)), result="bool", integers=True)
not_equal = elementwise("not_equal", _truth(_compare(sp.Ne, x, y)), result="bool", integers=True)

relu = elementwise("relu", scalar.relu(x), monotone=True)
sigmoid = elementwise("sigmoid", scalar.sigmoid(x), monotone=True)
tanh = elementwise("tanh", sp.tanh(x), monotone=True)
softplus = elementwise("softplus", scalar.softplus(x), monotone=True)
silu = elementwise("silu", x * scalar.sigmoid(x))
hard_swish = elementwise(
    "hard_swish",
    scalar.piecewise((0, _compare(sp.Le, x, -3)), (x * (x + 3) / 6, _compare(sp.Lt, x, 3)), (x, True)),
    domain=(-2.9, 2.9),
)
hard_sigmoid = elementwise(
    "hard_sigmoid",  # NaN fails both tests and flows through the last branch
    scalar.piecewise(
        (0, _compare(sp.Le, x, -3)), (1, _compare(sp.Ge, x, 3)), (x / 6 + sp.Rational(1, 2), True)
    ),
    domain=(-2.9, 2.9), monotone=True,
)  # fmt: skip
_where = elementwise("where", scalar.piecewise((y, _compare(sp.Ne, x, 0)), (z, True)), integers=True)
_at_least = elementwise(
    "at_least", scalar.piecewise((y, _compare(sp.Lt, x, y)), (x, True)), integers=True, monotone=True
)
_at_most = elementwise(
    "at_most", scalar.piecewise((y, _compare(sp.Gt, x, y)), (x, True)), integers=True, monotone=True
)
_leaky_relu = elementwise("leaky_relu", scalar.piecewise((y * x, _compare(sp.Le, x, 0)), (x, True)))
_elu = elementwise("elu", scalar.piecewise((y * scalar.expm1(x), _compare(sp.Le, x, 0)), (x, True)))
_gelu = elementwise("gelu", x * (1 + sp.erf(x / sp.sqrt(2))) / 2)
_gelu_tanh = elementwise(
    "gelu_tanh",
    x * (1 + sp.tanh(sp.sqrt(2 / sp.pi) * (x + sp.Rational(44715, 10**6) * x**3))) / 2,
)


def where(condition: Any, a: Any, b: Any) -> Node:
    """Return ``a`` where the condition is non-zero, else ``b``."""
    return _where(condition, a, b)


def leaky_relu(a: Node, slope: float | Node = 0.01) -> Node:
    """Return ``max(a, slope*a)`` for slopes below 1: PyTorch's leaky_relu."""
    return _leaky_relu(a, slope)


def elu(a: Node, alpha: float = 1.0) -> Node:
    """Return ``a`` above zero and ``alpha*(exp(a) - 1)`` below. Source: Clevert et al. 2016."""
    return _elu(a, alpha)


@names_the_line
def gelu(a: Node, approximate: str = "none") -> Node:
    """Return the Gaussian error linear unit, exact or in its tanh form. Source: Hendrycks and Gimpel 2016.

    Raises:
        RangeError: ``approximate`` is neither ``"none"`` nor ``"tanh"``.
    """
    if approximate not in ("none", "tanh"):
        raise RangeError(f"gelu: approximate must be 'none' or 'tanh', got {approximate!r}")
    return _gelu(a) if approximate == "none" else _gelu_tanh(a)


def clip(a: Node, low: float | Node | None = None, high: float | Node | None = None) -> Node:
    """Return ``min(max(a, low), high)``; a bound of None does not bind.

    Numerics: NaN stays NaN; the slope is 1 at the bounds themselves, as torch.clamp's.
    """
    bounded = a if low is None else _at_least(a, low)
    return bounded if high is None else _at_most(bounded, high)


@names_the_line
def cast(a: Node, dtype: str) -> Node:
    """Return a in another dtype; floats truncate towards zero when they become integers."""
    target = check_dtype(dtype)
    if a.dtype == target:
        return a
    expr = _truth(_compare(sp.Ne, x, 0)) if target == "bool" else x
    return Elementwise("cast", expr, 1, target, integers=True)(a)


@names_the_line
def user_function(name: str, formula: str | sp.Expr, *operands: Any) -> Node:
    """Return a function of the user's own, given as text or as a sympy expression.

    In text, the tensors are named in order of first appearance; in an expression, the free symbols in
    alphabetical order. Gradient, fusion and C follow from the formula.

    Raises:
        FormulaError: the text cannot be read, or the number of operands does not fit.
    """
    return apply_elementwise(formula_op(name, formula, len(operands)), operands, name)


@lru_cache(maxsize=1024)
def formula_op(name: str, formula: str | sp.Expr, arity: int) -> Elementwise:
    """Return the op that a formula defines."""
    if isinstance(formula, str):
        expr, variables = scalar.parse_formula(formula)
    else:
        symbols = sorted(formula.free_symbols, key=str)
        variables = tuple(str(s) for s in symbols)
        expr = scalar.substitute(formula, {s: scalar.argument(i) for i, s in enumerate(symbols)})
    if len(variables) != arity:
        raise FormulaError(
            f"elementwise {name!r}: the formula has the variables {', '.join(variables) or '(none)'}, "
            f"got {arity} tensors"
        )
    return Elementwise(name, scalar.stabilise(expr), arity)


for _name, _function in {
    "add": add, "sub": sub, "mul": mul, "div": div, "pow": pow, "neg": neg, "abs": abs, "less": less,
    "less_equal": less_equal, "greater": greater, "greater_equal": greater_equal, "equal": equal, "cast": cast,
}.items():  # fmt: skip
    operators[_name] = _function
