"""A step of training as a graph: loss, gradients, new running statistics, and the optimizer's rule written out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import sympy as sp

from graphc import scalar
from graphc.differentiate import grad
from graphc.errors import GraphError
from graphc.graph.node import Node, topological
from graphc.onnx.emission import Emission
from graphc.onnx.formulas import Formulas
from graphc.ops.leaves import Parameter
from graphc.optim import Optimizer, Rule
from graphc.passes.specialise import specialise, without_gradient_rules
from graphc.pipeline import Request

STEP, LR = "graphc.step", "lr"


@dataclass(frozen=True)
class TrainingGraph:
    """The results of a step by name, and the names of the parameters that it trains."""

    outputs: dict[str, Node]
    parameters: dict[Node, str]


def training_graph(written: Mapping[str, Node], request: Request, names: Mapping[Node, str]) -> TrainingGraph:
    """Return loss and metrics, ``grad.NAME`` of every parameter and ``new.NAME`` of every running statistic.

    Raises:
        GraphError: nothing can be trained.
    """
    wanted = {"loss": written["loss"], **{k: written[f"metric.{k}"] for k in request.metrics}}
    special = specialise(wanted, training=True)
    loss = special.outputs["loss"]
    trained = [n for n in topological([loss]) if isinstance(n.op, Parameter) and n.op.trainable]
    if not trained:
        raise GraphError("to_onnx: the loss depends on no trainable parameter")
    outputs = dict(special.outputs)
    outputs |= {f"grad.{names[p]}": g for p, g in zip(trained, grad(loss, trained), strict=True)}
    outputs |= {f"new.{names[s]}": value for s, value in special.updates.items()}
    return TrainingGraph(without_gradient_rules(outputs), {p: names[p] for p in trained})


def write_update(
    e: Emission, step: TrainingGraph, optimizer: Optimizer, dtype: str, results: Mapping[str, str]
) -> dict[str, str]:
    """Write the optimizer's rule; return the names of the new parameters, slots and number of the step.

    Numerics: what depends on the learning rate and the step alone is computed in double precision, as in C.
    """
    following = e.op("Add", STEP, e.constant(1, "int64"))
    numbers = {LR: LR, "t": e.cast(following, "float64")}
    written: dict[Rule, dict[str, str]] = {}
    found: dict[str, str] = {}
    for parameter, name in step.parameters.items():
        h = optimizer.hyperparameters_of(name, parameter.rank)
        rule = optimizer.rule({key: scalar.number(value) for key, value in h.items()})
        if rule not in written:  # one for each group of parameters
            written[rule] = _scalars(e, rule, numbers, dtype)
        values = {**written[rule], "w": name, "g": results[f"grad.{name}"]}
        values |= {slot: f"optimizer.{slot}.{name}" for slot in rule.slots}
        changed = {slot: values[slot] for slot in rule.slots}  # a group without momentum keeps its slot
        for target, expr in rule.updates:
            value = _write(e, expr, values, dtype)
            values[f"{target}_new"] = changed[target] = value
        found[f"new.{name}"] = changed.pop("w")
        found |= {f"new.optimizer.{slot}.{name}": value for slot, value in changed.items()}
    return {**found, f"new.{STEP}": following}


def _scalars(e: Emission, rule: Rule, numbers: Mapping[str, str], dtype: str) -> dict[str, str]:
    """Return what a rule computes once a step, rounded to the dtype of the weights, and the learning rate."""
    values = dict(numbers)
    for name, expr in rule.scalars:
        values[name] = _write(e, expr, values, "float64")
    if dtype == "float64":
        return values
    used = {s.name for _, expr in rule.updates for s in expr.free_symbols}
    return {name: e.cast(value, dtype) for name, value in values.items() if name in used}


def _write(e: Emission, expr: sp.Expr, values: Mapping[str, str], dtype: str) -> str:
    symbols: Iterable[sp.Symbol] = expr.free_symbols
    return Formulas(e, {s: values[s.name] for s in symbols}, dtype).write(expr)
