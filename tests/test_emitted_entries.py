"""Entry points refuse wrong batches, sizes, labels and memory by code and message, and write nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import graphc as gc
from graphc_runtime.arrays import aligned

OK, BAD_BATCH, BAD_SIZE, BAD_VALUE, BAD_MEMORY = range(5)
BATCH = 4
BLOCKS = ("params", "grads", "slots", "state", "folded", "arena")


class Raw:
    """A compiled module's C functions, on memory that this class owns."""

    def __init__(self, module: gc.Module):
        self.ffi, self.lib = module.ffi, module.lib
        sizes = module.manifest["sizes"]
        rng = np.random.default_rng(0)
        self.blocks = {}
        for name in BLOCKS:
            count = sizes["arena_bytes"] if name == "arena" else sizes[name] * 4
            self.blocks[name] = aligned(count + 64, np.uint8)  # some room behind, which must stay as it is
            self.blocks[name][:] = rng.integers(0, 60, count + 64)
        self.sizes = {name: block.size - 64 for name, block in self.blocks.items()}
        self.arrays = {
            "x": rng.standard_normal((BATCH, 3)).astype(np.float32),
            "y": np.array([0, 1, 4, 2], np.int32),
            "out": np.full((BATCH, 5), 7, np.float32),
            "loss": np.full((), 7, np.float32),
        }
        self.storage = aligned(self.lib.checked_context_bytes(), np.uint8)
        self.context = self.ffi.cast("checked_context *", self.storage.ctypes.data)

    def init(self, sizes: dict[str, int] | None = None, shift: dict[str, int] | None = None) -> None:
        memory = self.ffi.new("checked_memory *")
        for name, block in self.blocks.items():
            address = block.ctypes.data + (shift or {}).get(name, 0)
            setattr(memory, name, self.ffi.cast("void *", address if self.sizes[name] else 0))
            setattr(memory, f"{name}_bytes", {**self.sizes, **(sizes or {})}[name])
        assert self.lib.checked_init(self.context, self.storage.size, memory, 0) == OK

    def call(self, entry: str, batch: int = BATCH, **sizes: int | None) -> int:
        """Call an entry point; ``sizes`` are byte counts other than the arrays', or None for a NULL array."""
        arguments: list[Any] = []
        for name in {
            "predict": ("x", "out"),
            "evaluate": ("x", "y", "loss"),
            "train_step": ("x", "y", "loss"),
        }[entry]:
            array = self.arrays[name]
            given = sizes.get(
                name, array.nbytes * batch // BATCH if array.ndim and 1 <= batch <= BATCH else array.nbytes
            )
            ctype = "int32_t *" if array.dtype == np.int32 else "float *"
            address = 0 if given is None else array.ctypes.data
            arguments += [self.ffi.cast(ctype, address), given or 0]
        more = (0.1, 1) if entry == "train_step" else ()
        return int(getattr(self.lib, f"checked_{entry}")(self.context, batch, *arguments, *more))

    def message(self) -> str:
        return str(self.ffi.string(self.lib.checked_message(self.context)).decode())

    def snapshot(self) -> dict[str, bytes]:
        return {k: v.tobytes() for k, v in (*self.blocks.items(), *self.arrays.items())}


@pytest.fixture(scope="module")
def module() -> gc.Module:
    x, y = gc.input("x", ("N", 3)), gc.input("y", ("N",), dtype="int32")
    h = gc.nn.batch_norm(gc.nn.linear(x, 4, name="fc1"), name="norm")
    out = gc.nn.linear(gc.relu(h), 5, name="fc2")
    loss = gc.losses.cross_entropy(out, y)
    return gc.compile({"out": out}, loss, gc.SGD(lr=0.1, momentum=0.9), batch=BATCH, name="checked")


@pytest.fixture
def raw(module: gc.Module) -> Iterator[Raw]:
    """The functions, with everything in order; after the test nothing behind a block has changed."""
    made = Raw(module)
    behind = {name: block[made.sizes[name] :].tobytes() for name, block in made.blocks.items()}
    made.init()
    yield made
    assert behind == {name: block[made.sizes[name] :].tobytes() for name, block in made.blocks.items()}


ENTRIES = ("predict", "evaluate", "train_step")


def refused(raw: Raw, entry: str, code: int, *words: str, **call: Any) -> None:
    before = raw.snapshot()
    assert raw.call(entry, **call) == code
    for word in words:
        assert word in raw.message()
    assert raw.snapshot() == before


@pytest.mark.parametrize("entry", ENTRIES)
def test_calls_in_order_succeed(raw: Raw, entry: str) -> None:
    """The refusals below would mean little if nothing were accepted."""
    assert raw.lib.checked_fold(raw.context) == OK
    for batch in (1, 3, BATCH):
        assert raw.call(entry, batch) == OK, raw.message()


@pytest.mark.parametrize("batch", [0, -1, BATCH + 1, 2**62, -(2**63)])
@pytest.mark.parametrize("entry", ENTRIES)
def test_batch_out_of_range(raw: Raw, entry: str, batch: int) -> None:
    refused(raw, entry, BAD_BATCH, str(batch), f"1..{BATCH}", batch=batch)


@pytest.mark.parametrize("entry", ENTRIES)
def test_wrong_byte_counts(raw: Raw, entry: str) -> None:
    """One byte or one row less or more, a count for another batch, no array at all."""
    for name in {"predict": ("x", "out"), "evaluate": ("x", "y", "loss"), "train_step": ("x", "y", "loss")}[
        entry
    ]:
        right = raw.arrays[name].nbytes
        for wrong in (right - 1, right + 1, right - 4, right * 2, 0, None):
            refused(raw, entry, BAD_SIZE, f"'{name}'", str(right), **{name: wrong})
    refused(raw, entry, BAD_SIZE, "'x'", str(3 * 12), batch=3, x=raw.arrays["x"].nbytes)


@pytest.mark.parametrize("label", [-1, 5, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("entry", ["evaluate", "train_step"])
def test_label_out_of_range(raw: Raw, entry: str, label: int) -> None:
    raw.arrays["y"][3] = label
    refused(raw, entry, BAD_VALUE, "y[3]", str(label), "0..4")
    assert raw.call(entry, 3) == OK  # the row is not part of this batch


@pytest.mark.parametrize(
    ("entry", "blocks"),
    [
        ("predict", ("params", "folded", "arena")),
        ("train_step", ("params", "grads", "slots", "state", "arena")),
    ],
)
def test_too_small_or_misaligned_blocks(raw: Raw, entry: str, blocks: tuple[str, ...]) -> None:
    for name in blocks:
        if not raw.sizes[name]:
            continue
        raw.init(sizes={name: 1})
        refused(raw, entry, BAD_MEMORY, f"'{name}'", "got 1")
        raw.init(shift={name: 4})
        refused(raw, entry, BAD_MEMORY, f"'{name}'", "64")
    raw.init()
    assert raw.call(entry) == OK


def test_one_byte_less_than_needed(raw: Raw) -> None:
    """The exact size is accepted, one byte less is not: blocks, and the arena of the largest entry point."""
    for name in ("params", "grads", "slots", "state", "arena"):
        raw.init(sizes={name: raw.sizes[name] - 1})
        refused(raw, "train_step", BAD_MEMORY, f"'{name}'", str(raw.sizes[name]))


def test_no_context(raw: Raw) -> None:
    """NULL is refused everywhere, and a context needs its memory."""
    ffi, lib = raw.ffi, raw.lib
    null = ffi.cast("checked_context *", 0)
    assert lib.checked_fold(null) == BAD_MEMORY
    assert b"NULL" in ffi.string(lib.checked_message(null))
    assert lib.checked_init(null, 10**6, ffi.new("checked_memory *"), 0) == BAD_MEMORY
    before = raw.storage.tobytes()
    assert lib.checked_init(raw.context, raw.storage.size - 1, ffi.new("checked_memory *"), 0) == BAD_MEMORY
    assert raw.storage.tobytes() == before
