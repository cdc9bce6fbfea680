"""The stack that a call takes: what the header of an exported module says is enough for what compilers make of it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import graphc as gc
from graphc.emit.stack import stack_bound
from graphc.export import TARGETS
from graphc.isa import ISAS

# Of what only folds weights and records a batch.
QUICK = gc.BuildOptions(optimisation=("-O1", "-march=native"))


def module() -> gc.Module:
    """Return a net with many kinds of kernels: direct and Winograd's convolutions, pooling, batch norm, softmax."""
    x, y = gc.input("x", ("N", 3, 24, 24)), gc.input("y", ("N",), dtype="int32")
    h = gc.nn.max_pool2d(gc.relu(gc.nn.conv2d(x, 24, 5, padding=2, stride=2)), 3, 2, 1)
    h = gc.relu(gc.nn.batch_norm(gc.nn.conv2d(h, 40, 3, padding=1, bias=False)))
    h = gc.nn.max_pool2d(gc.relu(gc.nn.conv2d(h, 40, 3, padding=1)), 2)
    h = gc.nn.dropout(gc.tanh(gc.nn.linear(gc.flatten(h), 50)), 0.5)
    logits = gc.nn.linear(h, 10)
    loss = gc.losses.cross_entropy(logits, y)
    return gc.compile({"logits": logits}, loss, gc.Adam(lr=0.01), batch=16, name="many", build=QUICK)


@pytest.mark.parametrize("target", ["native", "x86-64", "aarch64", "armv7"])
def test_compilers_need_no_more_stack_than_stated(target: str, tmp_path: Path) -> None:
    """Of the whole training step, at the bundle's own flags."""
    compiler = TARGETS[target].compiler if target in TARGETS else ""
    if compiler and shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}")
    folder = module().export(tmp_path / "many", train=True, target=target, build=QUICK)
    done = subprocess.run(
        ["make", "-s", "stack"], cwd=folder, capture_output=True, text=True, timeout=300, check=True
    )
    measured = re.fullmatch(r"at most (\d+) bytes of stack\n", done.stdout)
    stated = re.search(r"MANY_STACK_BYTES (\d+) ", (folder / "many.h").read_text())
    assert measured is not None and stated is not None
    assert 2048 < int(measured[1]) <= int(stated[1])


def test_all_arrays_of_a_text_are_counted() -> None:
    """Several in a declaration, with products and names as extents; parameters and pointers are none."""
    text = """
static void kernel(const float *restrict a, float out[4])
{
    float sum[6][8] = {0}, panel[4 * 25];
    double lanes[GC_LANES];
    const float *const rows[2] = {a, a};
    int32_t taps[3];
    const float value = a[7];
}
"""
    arrays = 4 * (48 + 100) + 8 * 16 + 4 * 3
    isa = ISAS["sse2"]
    assert stack_bound([text, ""], [], isa) - stack_bound([], [], isa) == pytest.approx(arrays, abs=63)
    assert stack_bound([text], [text, text], isa) - stack_bound([], [], isa) == pytest.approx(
        3 * arrays, abs=63
    )
