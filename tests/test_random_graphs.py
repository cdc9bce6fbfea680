"""Random graphs: the generated C and every pass must agree with the interpreter of the graph as written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from random_graphs import BATCHES, LARGEST, RandomGraph, grow
from replay import check_plan, replay

import graphc as gc
from graphc.graph.interpret import interpret
from graphc.graph.node import Node, topological
from graphc.graph.verify import verify
from graphc.ops.leaves import Folded, Input, Parameter
from graphc.passes import fuse, recompute
from graphc.passes.fold import fold_scales, hoist_fixed
from graphc.passes.pool_before_activation import pool_before_activation
from graphc.passes.simplify import simplify
from graphc.passes.specialise import specialise
from graphc.pipeline import Request, compile_program

# Both sides compute in double precision, in another order of summation; random_graphs keeps values below 50
# and away from kinks, so that a few hundred roundings stay far below this.
TOLERANCE = 1e-9
_PER_MODULE = 4  # graphs compiled together: most of a test's time is one run of the C compiler
_QUICK = gc.BuildOptions(optimisation=("-O1",))

# Derandomised: CI sees the same graphs on every run. Long tapes; the shrinker replaces numbers by 0.
_TAPE = st.lists(st.integers(0, 2**16 - 1), min_size=150, max_size=150)
_PROFILE = settings(
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),  # Phase.explain would run for minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)

# Shrinking by compiling takes minutes as well; a failure names its graph, and the tape is printed.
_COMPILED = settings(_PROFILE, phases=(Phase.explicit, Phase.generate))


def differentiated(graph: RandomGraph) -> tuple[dict[str, Node], Node]:
    """Return a graph's outputs, its loss and the gradients for inputs and parameters; and the loss."""
    loss = graph.loss
    outputs = {**graph.outputs, f"{graph.prefix}loss": loss}
    for k, gradient in enumerate(gc.grad(loss, graph.wrt)):
        outputs[f"{graph.prefix}gradient{k}"] = gradient
    return outputs, loss


def assert_close(got: np.ndarray, want: np.ndarray, what: str) -> None:
    scale = max(1.0, float(np.abs(want).max(initial=0)))
    np.testing.assert_allclose(
        got.astype(np.float64), want, rtol=TOLERANCE, atol=TOLERANCE * scale, err_msg=what
    )


def assert_same(got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray]) -> None:
    for name, value in want.items():
        assert_close(got[name], value, name)


def evaluate(
    outputs: Mapping[str, Node], values: Mapping[Node, np.ndarray], batch: int
) -> dict[str, np.ndarray]:
    return dict(zip(outputs, interpret(list(outputs.values()), values, batch=batch), strict=True))


def arguments(values: Mapping[Node, np.ndarray], wanted: Sequence[str]) -> dict[str, np.ndarray]:
    return {
        n.op.name: v.astype("float64" if n.type.is_float else n.dtype)
        for n, v in values.items()
        if isinstance(n.op, Input) and n.op.name in wanted
    }


def inputs_of(outputs: Mapping[str, Node]) -> list[str]:
    return [n.op.name for n in topological(outputs.values()) if isinstance(n.op, Input)]


def check_compiled(graphs: Sequence[RandomGraph], threads: int, dump_dir: Path | None = None) -> None:
    """Compile the graphs as one module; compare predict, evaluate and backward with the interpreter."""
    batch_input = gc.input("b", ("N",))  # every entry point knows the batch, whatever the graphs read
    scale = gc.parameter("s", (), 0.5)
    outputs: dict[str, Node] = {"batch": batch_input + 1.0}
    losses = [gc.mean(batch_input) * scale]
    for graph in graphs:
        written, loss = differentiated(graph)
        outputs |= written
        losses.append(loss)
    total = sum(losses[1:], losses[0])
    # Without a dump folder, the result would come from the cache, whatever the thresholds are now.
    module = gc.compile(
        outputs, loss=total, batch=LARGEST, dtype="float64", build=_QUICK, dump_dir=dump_dir,
        fork_us=4.0 if threads == 1 else 0.0,
    )  # fmt: skip
    module.threads = threads
    plain = specialise(outputs, training=False).outputs
    for batch in BATCHES:
        values = {n: v for graph in graphs for n, v in graph.values[batch].items()}
        values |= {batch_input: np.arange(float(batch)), scale: np.asarray(0.5)}
        assert_same(module.predict(**arguments(values, inputs_of(outputs))), evaluate(plain, values, batch))
        given_values = arguments(values, inputs_of({"loss": total}))
        want = evaluate(specialise({"loss": total}, training=True).outputs, values, batch)["loss"]
        assert_close(np.array(float(module.evaluate(**given_values))), want, "evaluate")
        assert_close(np.array(float(module.backward(**given_values))), want, "backward")
        params = [n for n in topological([total]) if isinstance(n.op, Parameter)]
        gradients = interpret(gc.grad(total, params), values, batch=batch)
        for node, gradient in zip(params, gradients, strict=True):
            assert_close(module.grads[str(node.name)], gradient, str(node.name))


@pytest.mark.slow
@settings(_COMPILED, max_examples=40)
@given(st.lists(_TAPE, min_size=_PER_MODULE, max_size=_PER_MODULE))
def test_generated_code_agrees_with_the_interpreter(tapes: list[list[int]]) -> None:
    """160 graphs: outputs, gradients for inputs and parameters, loss and training, at two batch sizes."""
    check_compiled([grow(tape, f"g{k}_") for k, tape in enumerate(tapes)], threads=1)


@pytest.mark.slow
@settings(_COMPILED, max_examples=15)
@given(st.lists(_TAPE, min_size=_PER_MODULE, max_size=_PER_MODULE))
def test_generated_code_agrees_where_thresholds_are_low(tapes: list[list[int]]) -> None:
    """60 graphs with every kernel parallel, cheap values recomputed, no second sweep over small domains."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recompute, "_WORTH", 1)
        patch.setattr(recompute, "_CHEAP", 30)
        patch.setattr(fuse, "_SMALL_DOMAIN", 1)
        with TemporaryDirectory() as folder:
            check_compiled([grow(tape, f"g{k}_") for k, tape in enumerate(tapes)], 2, Path(folder))


@settings(_PROFILE, max_examples=150)
@given(_TAPE)
def test_passes_preserve_meaning(tape: list[int]) -> None:
    graph = grow(tape, "")
    outputs, _ = differentiated(graph)
    plain = specialise(outputs, training=False).outputs
    simple = simplify(plain)
    rewritten = {
        "simplify": simple,
        "pool": pool_before_activation(plain),
        "pool, simplify": simplify(pool_before_activation(plain)),
        "fold": simplify(fold_scales(simple)),
    }
    leaves: dict[Node, Node] = {}

    def leaf_of(value: Node) -> Node:
        op = Folded(value.dtype, tuple(d for d in value.shape if isinstance(d, int)), len(leaves))
        return leaves.setdefault(value, op())

    called, fixed = hoist_fixed(simple, leaf_of)
    for batch in BATCHES:
        values = graph.values[batch]
        want = evaluate(plain, values, batch)
        for result in rewritten.values():
            verify(result)
            assert [n.type for n in result.values()] == [n.type for n in plain.values()]
            assert_same(evaluate(result, values, batch), want)
        folded = evaluate({str(k): value for k, value in enumerate(fixed.values())}, values, batch)
        ahead = dict(zip(fixed, folded.values(), strict=True))
        assert set(fixed) >= {n for n in topological(called.values()) if isinstance(n.op, Folded)}
        assert_same(evaluate(called, {**values, **ahead}, batch), want)


@settings(_PROFILE, max_examples=150)
@given(_TAPE)
def test_symbolic_gradient_agrees_with_a_difference_quotient(tape: list[int]) -> None:
    """The slope of the loss along a random direction, in the interpreter.

    A step of 1e-6 leaves about 1e-9 of truncation and 1e-10/1e-6 of rounding relative to the terms.
    """
    graph = grow(tape, "")
    outputs, loss = differentiated(graph)
    wrt = graph.wrt
    plain = specialise(
        {"loss": loss, **{f"d{k}": outputs[f"gradient{k}"] for k in range(len(wrt))}}, training=False
    )
    step = 1e-6
    for batch in BATCHES:
        values = graph.values[batch]
        rng = np.random.default_rng(0)
        direction = {n: rng.standard_normal(values[n].shape) for n in wrt}
        ahead = {**values, **{n: values[n] + step * d for n, d in direction.items()}}
        behind = {**values, **{n: values[n] - step * d for n, d in direction.items()}}
        found = evaluate(plain.outputs, values, batch)
        up = evaluate({"loss": plain.outputs["loss"]}, ahead, batch)["loss"]
        down = evaluate({"loss": plain.outputs["loss"]}, behind, batch)["loss"]
        terms = [found[f"d{k}"] * direction[n] for k, n in enumerate(wrt)]
        slope = sum(float(t.sum()) for t in terms)
        scale = 1 + abs(float(found["loss"])) + sum(float(np.abs(t).sum()) for t in terms)
        assert abs(float(up - down) / (2 * step) - slope) < 2e-5 * scale


@settings(_PROFILE, max_examples=100)
@given(_TAPE)
def test_plans_keep_what_is_still_read(tape: list[int]) -> None:
    graph = grow(tape, "g_")
    outputs, loss = differentiated(graph)
    batch_input = gc.input("b", ("N",))  # every entry point knows the batch, whatever the graph reads
    outputs["batch"] = batch_input + 1.0
    loss = loss + gc.mean(batch_input) * gc.parameter("s", ())
    request = Request("net", outputs, loss, {}, None, LARGEST, "float32")
    compiled = compile_program(request)
    for batch in (LARGEST, 1):
        assert replay(compiled.program, batch) >= 1
    for plan in compiled.plans.values():
        check_plan(plan)
