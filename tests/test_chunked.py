"""Products that pack their large matrix in chunks: bit for bit those whose matrix is packed ahead."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import full_only

import graphc as gc
from graphc.isa import ISAS
from graphc.passes import pack

FLAGS = gc.BuildOptions(optimisation=("-O1", "-march=native"))
# Depth, columns, largest batch: odd, cut into chunks with a rest and without, one row, many rows.
CASES = [(100, 70, 7), (513, 300, 19), (33, 1100, 3), (64, 2048, 130), (35, 37, 1), (544, 512, 16)]


def module(depth: int, columns: int, batch: int, isa: str, dtype: str, name: str) -> gc.Module:
    """Two layers, so that the second is multiplied for its result and for the gradient of its input."""
    x = gc.input("x", ("N", depth))
    h = gc.nn.linear(gc.relu(gc.nn.linear(x, depth, name="first")), columns, name="second")
    return gc.compile(
        {"h": h}, loss=gc.mean(h * h), optimizer=gc.SGD(lr=0.1), batch=batch, isa=isa, dtype=dtype, name=name,
        fork_us=0.0, threads=2, build=FLAGS,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("isa", "dtype"),
    [
        ("avx2", "float32"),
        ("avx512", "float32"),
        ("avx512", "float64"),
        *(pytest.param(isa, "float32", marks=full_only) for isa in sorted({*ISAS} - {"avx2", "avx512"})),
    ],
)
def test_chunks_do_not_change_a_bit(isa: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses and gradients of three steps, at the largest batch and at a smaller one."""
    for number, case in enumerate(CASES):
        depth, _, batch = case
        monkeypatch.setattr(pack, "_CHUNKED_BYTES", 1)
        chunked = module(*case, isa, dtype, f"chunks{number}")
        monkeypatch.setattr(pack, "_CHUNKED_BYTES", 2**40)
        packed = module(*case, isa, dtype, f"whole{number}")
        # Three products of each step, of which that for the first layer's input is not wanted, multiply by weights.
        assert [_chunked(m) for m in (chunked, packed)] == [3, 0]
        for rows in (batch, max(1, batch - 3)):
            x = np.random.default_rng(rows).standard_normal((rows, depth)).astype(dtype)
            losses = [[m.train_step(x=x) for _ in range(3)] for m in (chunked, packed)]
            assert losses[0] == losses[1], case
            for name in packed.grads:
                np.testing.assert_array_equal(
                    chunked.grads[name], packed.grads[name], err_msg=f"{case} {name}"
                )


def _chunked(found: gc.Module) -> int:
    """Return how many products of the training step pack a matrix themselves."""
    return sum(" panel[" in text for text in "".join(found.source.values()).split("\nstatic void "))


def test_only_what_is_large_and_changes_is_packed_in_chunks() -> None:
    """Weights of a mebibyte in a training step: no copy of them is in its arena."""
    x = gc.input("x", ("N", 64))
    h = gc.nn.linear(gc.nn.linear(x, 512, name="small"), 512, name="large")
    built = gc.compile({"h": h}, loss=gc.mean(h * h), batch=4, name="sizes", build=FLAGS)
    assert built.plan("train").arena_bytes < 4 * 512 * 512
    assert _chunked(built) == 2
