"""The order of kernels against brute force: all orders of small graphs, with and without operands in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

import graphc as gc
from graphc import pipeline
from graphc.lower.order import Order, best_order, peak_bytes
from graphc.program.ir import Buffer, Call, Kernel, Operand, Space
from graphc.rewrites import ALL, Rewrites

NO_PLACE = Rewrites(in_place=False, accumulate=False)


def call(number: int, reads: Sequence[Buffer], writes: Sequence[Buffer]) -> Call:
    """Return a kernel of which nothing matters but what it reads and writes."""
    operands = [Operand(f"in{k}", b.dtype, False, (b.size,)) for k, b in enumerate(reads)]
    operands += [Operand(f"out{k}", b.dtype, True, (b.size,)) for k, b in enumerate(writes)]
    kernel = Kernel("none", number, tuple(operands), None, "", 0, 0, "float32", False)
    return Call(kernel, (*reads, *writes), (), (), "")


@st.composite
def graphs(draw: Any) -> tuple[list[Call], list[Call]]:
    """Draw up to seven kernels, each of which writes a buffer and reads some before it; and what comes last."""
    buffers: list[Buffer] = []
    calls: list[Call] = []
    for number in range(draw(st.integers(1, 7))):
        chosen = draw(st.lists(st.sampled_from(buffers), max_size=3, unique=True)) if buffers else []
        space = draw(st.sampled_from([Space.ARENA, Space.ARENA, Space.ARENA, Space.OUTPUT]))
        out = Buffer(f"b{number}", "float32", 16 * draw(st.integers(1, 6)), space)
        calls.append(call(number, chosen, [out]))
        buffers.append(out)
    kept = draw(st.lists(st.sampled_from(buffers), max_size=2, unique=True))
    return calls, [call(99, kept, [Buffer("state", "float32", 16, Space.STATE)])] if kept else []


def every_order(calls: Sequence[Call]) -> Iterator[list[Call]]:
    """Yield the calls in every order in which a buffer is written before it is read."""
    if not calls:
        yield []
    for k, first in enumerate(calls):
        reads = {b for o, b in zip(first.kernel.operands, first.buffers, strict=True) if not o.written}
        others = [*calls[:k], *calls[k + 1 :]]
        written = {b for c in others for o, b in zip(c.kernel.operands, c.buffers, strict=True) if o.written}
        if not reads & written:
            for rest in every_order(others):
                yield [first, *rest]


def check(calls: Sequence[Call], last: Sequence[Call], rewrites: Rewrites) -> Order:
    """The order found is one of all orders, and the best of them where that is claimed."""
    found = best_order(calls, last, 1, rewrites)
    least = min(peak_bytes([*order, *last], 1, rewrites) for order in every_order(calls))
    assert sorted(map(repr, found.calls)) == sorted(map(repr, [*calls, *last]))
    ordered = list(found.calls[: len(calls)])
    position = {id(c): k for k, c in enumerate(ordered)}
    for k, c in enumerate(calls):
        for other in calls[:k]:
            outs = {b for o, b in zip(other.kernel.operands, other.buffers, strict=True) if o.written}
            if outs & set(c.buffers):
                assert position[id(other)] < position[id(c)]
    assert found.peak == peak_bytes(found.calls, 1, rewrites)
    assert found.least == least == found.peak  # small enough that the search never gives up
    return found


@given(graphs())
@settings(max_examples=80, deadline=None)
def test_the_least_peak_of_all_orders_is_found(graph: tuple[list[Call], list[Call]]) -> None:
    check(*graph, NO_PLACE)


@st.composite
def formulas(draw: Any) -> dict[str, gc.Tensor]:
    """Draw a graph of up to six elementwise nodes and sums, each a kernel of its own."""
    x = gc.input("x", ("N", 40))
    values = [x]
    for _ in range(draw(st.integers(2, 6))):
        a, b = draw(st.sampled_from(values)), draw(st.sampled_from(values))
        kind = draw(st.sampled_from(["exp", "add", "mul", "sum"]))
        if kind == "sum":
            values.append(gc.expand(gc.sum(a, (1,), keepdims=True), (x.shape[0], 40)) * 0.5)
        else:
            values.append(gc.exp(a) if kind == "exp" else a + b if kind == "add" else a * b)
    return {"y": gc.sum(values[-1] + values[-2], (1,))}


@given(formulas())
@settings(max_examples=30, deadline=None)
def test_the_least_peak_is_found_with_operands_in_place(outputs: dict[str, gc.Tensor]) -> None:
    """Kernels that may write over an operand: the credit for that depends on the order."""
    request = pipeline.Request("t", outputs, None, {}, None, 1, "float32", apart=True, rewrites=NO_PLACE)
    entry = pipeline.compile_program(request).program.entries[0]
    if len(entry.calls) <= 8:
        check(entry.calls, (), ALL)
