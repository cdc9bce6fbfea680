"""What the tests of the emitted C share: modules of all registry samples, and a C program that runs a module.

The program hands in every array at exactly the stated size, guards the gaps between the buffers of the
arena, and demands the same bits from every number of threads and whatever the arena held before.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from helpers import LARGEST, make_inputs, weighted_sum

import graphc as gc
from graphc.emit.c import Emitted, emit_c
from graphc.graph.node import Node
from graphc.isa import isa_named
from graphc.ops.leaves import Input
from graphc.ops.registry import REGISTRY, Sample
from graphc.optim import Optimizer
from graphc.pipeline import Compiled, Request, compile_program
from graphc.program.ir import Argument, Entry, Program, Space
from graphc.types import ITEMSIZE, DType, TensorType, at, check_dtype

STRICT = ("-std=gnu11", "-Wall", "-Wextra", "-Wshadow", "-Werror")
GUARD = 64  # bytes that nobody may touch, between any two buffers of a spread arena
COMPILERS = [
    pytest.param(c, marks=pytest.mark.skipif(shutil.which(c) is None, reason=f"{c} is not installed"))
    for c in ("gcc", "clang")
]


@dataclass(frozen=True)
class Emission:
    """A program and its text."""

    program: Program
    optimizer: Optimizer | None
    emitted: Emitted

    @property
    def name(self) -> str:
        """The prefix of the module's functions."""
        return self.program.name

    @property
    def source(self) -> str:
        """The C source, all files of it."""
        return "\n".join(text for file, text in self.emitted.sources.items() if file != f"{self.name}.h")

    @property
    def header(self) -> str:
        """The C header."""
        return self.emitted.sources[f"{self.name}.h"]

    def write(self, folder: Path) -> list[Path]:
        """Write all files; return the paths of those that are compiled."""
        for file, text in self.emitted.sources.items():
            (folder / file).write_text(text)
        return [folder / file for file in self.emitted.sources if file.endswith(".c")]


def emission(
    name: str,
    outputs: dict[str, Node],
    loss: Node | None = None,
    optimizer: Optimizer | None = None,
    *,
    metrics: dict[str, Node] | None = None,
    batch: int = LARGEST,
    dtype: str = "float32",
    nan_guard: bool = False,
    poison: bool = False,
    guarded_arena: bool = False,
    isa: str = "avx512",
    keep_gradients: bool = True,
) -> Emission:
    """Return what graphc.compile would build, without building it."""
    request = Request(
        name,
        outputs,
        loss,
        metrics or {},
        optimizer,
        batch,
        check_dtype(dtype),
        isa=isa_named(isa),
        fork_us=0.0,
        keep_gradients=keep_gradients,
    )
    compiled = compile_program(request)
    return _emit(compiled, optimizer, guarded_arena=guarded_arena, nan_guard=nan_guard, poison=poison)


def _emit(
    compiled: Compiled,
    optimizer: Optimizer | None,
    *,
    guarded_arena: bool = False,
    nan_guard: bool = False,
    poison: bool = False,
) -> Emission:
    program = spread(compiled.program) if guarded_arena else compiled.program
    plans = compiled.plans if poison else None
    return Emission(program, optimizer, emit_c(program, optimizer, nan_guard=nan_guard, poison=plans))


def spread(program: Program) -> Program:
    """Return the program with no two arena buffers in one place, and a gap after every one."""
    offsets: dict[str, dict[str, int]] = {}
    for entry in program.entries:
        places: dict[str, int] = {}
        end = 0
        for name, (size, _) in arena_buffers(entry, program.batch).items():
            places[name] = end
            end += -(-size // GUARD) * GUARD + GUARD
        offsets[entry.name] = {**places, "": end}
    return replace(program, offsets=offsets, arena_bytes=max(o[""] for o in offsets.values()))


def arena_buffers(entry: Entry, batch: int) -> dict[str, tuple[int, str]]:
    """Return the bytes of every arena buffer at a batch, and their C expression in N."""
    found = {}
    for call in entry.calls:
        for b in call.buffers:
            if b.space is Space.ARENA:
                item = ITEMSIZE[b.dtype]
                found[b.name] = (max(1, at(b.size, batch)) * item, f"(size_t)({b.size}) * {item}")
    return found


def scaled_samples(samples: Sequence[Sample], scale: Node, first: int) -> tuple[dict[str, Node], Node]:
    """Return the samples' values for float inputs times a parameter, and a loss that depends on all."""
    outputs: dict[str, Node] = {}
    loss = scale * scale
    for number, sample in enumerate(samples, first):
        inputs = [_input(f"in{number}_{k}", t) for k, t in enumerate(sample.types)]
        scaled = [i * scale if i.type.is_float else i for i in inputs]
        outputs[f"out{number}"] = sample.build(*scaled)
        if outputs[f"out{number}"].type.is_float and any(t.is_float for t in sample.types) and sample.smooth:
            loss = loss + weighted_sum(outputs[f"out{number}"])
    return outputs, loss


def _input(name: str, t: TensorType) -> Node:
    return Input(name, t.dtype, t.shape)(name=name)


SAMPLES = tuple(s for make in REGISTRY.values() for s in make())
_PER_MODULE = 9


@functools.cache
def _compiled_samples(dtype: DType, first: int) -> tuple[Compiled, Optimizer]:
    """Return a module of some samples, compiled once for the plain and for the guarded arena."""
    scale = gc.parameter("scale", (), 1.0)
    outputs, loss = scaled_samples(SAMPLES[first : first + _PER_MODULE], scale, first)
    optimizer = gc.SGD(lr=1e-3, momentum=0.9, weight_decay=1e-4)
    name = f"samples_{first}_{dtype}"
    request = Request(
        name, outputs, loss, {}, optimizer, LARGEST, dtype, isa=isa_named("avx512"), fork_us=0.0
    )
    return compile_program(request), optimizer


@functools.cache
def sample_modules(dtype: DType, *, guarded: bool = False, most: int = len(SAMPLES)) -> tuple[Emission, ...]:
    """Return modules that together hold every sample of the registry, forward and training; not to be altered.

    With ``most`` they are no more than hold the first so many samples.
    """
    return tuple(
        _emit(*_compiled_samples(dtype, first), guarded_arena=guarded)
        for first in range(0, most, _PER_MODULE)
    )


def lenet_module(
    name: str = "lenet",
    *,
    dtype: str = "float32",
    guarded: bool = False,
    poison: bool = False,
    batch: int = 6,
) -> Emission:
    """Return LeNet with batch norm and dropout, with training by momentum."""
    x, y = gc.input("x", ("N", 1, 32, 32)), gc.input("y", ("N",), dtype="int32")
    h = gc.nn.batch_norm(gc.nn.conv2d(x, 6, kernel=5, name="conv1"), name="norm1")
    h = gc.nn.max_pool2d(gc.relu(h), 2)
    h = gc.nn.max_pool2d(gc.relu(gc.nn.conv2d(h, 16, kernel=5, name="conv2")), 2)
    h = gc.nn.dropout(gc.relu(gc.nn.linear(gc.flatten(h), 120, name="fc1")), 0.3)
    h = gc.relu(gc.nn.linear(h, 84, name="fc2"))
    logits = gc.nn.linear(h, 10, name="fc3")
    return emission(
        name, {"logits": logits, "probabilities": gc.softmax(logits)}, gc.losses.cross_entropy(logits, y),
        gc.SGD(lr=0.05, momentum=0.9, weight_decay=5e-4),
        metrics={"accuracy": gc.metrics.accuracy(logits, y)},
        batch=batch, dtype=dtype, guarded_arena=guarded, poison=poison,
    )  # fmt: skip


def winograd_module(name: str = "tiles", *, dtype: str = "float32", guarded: bool = False) -> Emission:
    """Return 3x3 convolutions with enough channels for Winograd's method; sums of one gradient come in two chunks."""
    x = gc.input("x", ("N", 3, 17, 40))
    h = gc.relu(gc.nn.conv2d(x, 35, kernel=3, padding=1, name="conv1"))
    h = gc.nn.max_pool2d(gc.relu(gc.nn.conv2d(h, 64, kernel=3, padding=1, name="conv2")), 2)
    h = gc.nn.conv2d(h, 33, kernel=3, name="conv3")
    return emission(
        name, {"h": gc.mean(h, (2, 3))}, gc.mean(h * h), gc.SGD(lr=0.01), batch=6, dtype=dtype, guarded_arena=guarded
    )  # fmt: skip


def pooled_module(name: str = "pooled", *, dtype: str = "float32", guarded: bool = False) -> Emission:
    """Return convolutions whose kernels walk down the windows that they pool; Winograd's, where float32 allows it."""
    x = gc.input("x", ("N", 3, 53, 57))
    h = gc.relu(gc.nn.conv2d(x, 35, kernel=7, stride=2, padding=3, name="conv1"))
    h = gc.relu(gc.nn.conv2d(gc.nn.max_pool2d(h, 3, 2, 1), 33, kernel=3, padding=1, name="conv2"))
    h = gc.nn.conv2d(gc.nn.max_pool2d(h, 3, 2, ceil_mode=True), 17, kernel=5, padding=2, name="conv3")
    h = gc.nn.max_pool2d(gc.relu(h), 3, 2)
    return emission(
        name, {"h": gc.mean(h, (2, 3))}, gc.mean(h * h), gc.SGD(lr=0.01), batch=6, dtype=dtype, guarded_arena=guarded
    )  # fmt: skip


def chunked_module(name: str = "chunked", *, dtype: str = "float32", guarded: bool = False) -> Emission:
    """Return products by matrices that a training step packs in chunks, with whole vectors of columns and without.

    A batch of 3 has 12 rows: a tile, and some that fill none.
    """
    x = gc.input("x", ("N", 4, 33))
    odd = gc.nn.linear(gc.relu(gc.nn.linear(x, 523, name="fc1")), 509, name="fc2")
    even = gc.nn.linear(gc.relu(gc.nn.linear(x, 544, name="fc3")), 512, name="fc4")
    return emission(
        name, {"odd": odd, "even": even}, gc.mean(odd * odd) + gc.mean(even * even), gc.SGD(lr=0.01),
        batch=6, dtype=dtype, guarded_arena=guarded,
    )  # fmt: skip


def updating_module(name: str = "updating", *, dtype: str = "float32", guarded: bool = False) -> Emission:
    """Return a net whose kernels update its large parameters, in the epilogue of a product and in loops."""
    x = gc.input("x", ("N", 3, 9, 9))
    h = gc.relu(gc.nn.conv2d(x, 160, kernel=3, name="conv"))
    h = gc.nn.linear(gc.mean(h, (2, 3)), 37, name="fc")
    return emission(
        name, {"h": h}, gc.mean(h * h), gc.AdamW(lr=0.01), batch=6, dtype=dtype, guarded_arena=guarded,
        keep_gradients=False,
    )  # fmt: skip


NETS = (lenet_module, winograd_module, pooled_module, chunked_module, updating_module)


def compile_objects(
    compiler: str, paths: Sequence[Path], flags: Sequence[str], jobs: int = 2
) -> list[tuple[Path, str]]:
    """Compile each file on its own, several at once; return those that failed with the compiler's words."""
    pending, running, failed = list(paths), [], []
    while pending or running:
        while pending and len(running) < jobs:
            path = pending.pop(0)
            command = [compiler, *flags, "-c", str(path), "-o", str(path.with_suffix(".o"))]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            running.append((path, process))
        path, process = running.pop(0)
        output, _ = process.communicate()
        if process.returncode:
            failed.append((path, output))
    return failed


_DRIVER = r"""
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
@INCLUDES@
#if defined __SANITIZE_ADDRESS__
#define GUARDED 1
#elif defined __has_feature
#if __has_feature(address_sanitizer)
#define GUARDED 1
#endif
#endif
#ifdef GUARDED
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(begin, bytes) ((void)(begin), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(begin, bytes) ((void)(begin), (void)(bytes))
#endif

/* What every module calls is not inlined: the driver is one large file, and compilers took most of a test's time
 * for it. Not every set of modules needs all of it. */
#define APART __attribute__((noinline, unused)) static

APART uint64_t hash_bytes(uint64_t seed, const void *memory, size_t bytes)
{
    const unsigned char *byte = memory;
    for (size_t k = 0; k < bytes; k++) seed = (seed ^ byte[k]) * 0x100000001b3u;
    return seed;
}

/* The sign of a NaN has no meaning, and compilers that move a negation across a sum change it. */
#define HASH_REAL(T) \
    APART uint64_t hash_##T(uint64_t seed, const T *values, size_t bytes) \
    { \
        for (size_t k = 0; k < bytes / sizeof *values; k++) { \
            const T value = isnan(values[k]) ? (T)NAN : values[k]; \
            seed = hash_bytes(seed, &value, sizeof value); \
        } \
        return seed; \
    }
HASH_REAL(float)
HASH_REAL(double)
#define hash(seed, memory, bytes) \
    _Generic((memory), float *: hash_float, double *: hash_double, default: hash_bytes)(seed, memory, bytes)

APART void *block(size_t bytes)
{
    void *memory = bytes ? aligned_alloc(64, bytes) : NULL;
    if (bytes && !memory) exit(2);
    if (bytes) memset(memory, 0, bytes);
    return memory;
}

/* Numbers in -1..1, never 0: derivatives at kinks are conventions, but 1/0 is nobody's sample. */
#define FILL_REAL(T) \
    APART void fill_##T(T *array, size_t count, uint32_t state) \
    { \
        for (size_t k = 0; k < count; k++) { \
            state = state * 1664525u + 1013904223u; \
            array[k] = (T)((double)(state >> 8) / 8388608.0 - 1.0 + 1e-7); \
        } \
    }
FILL_REAL(float)
FILL_REAL(double)
#define FILL_INT(T) \
    APART void fill_##T(T *array, size_t count, int64_t low, int64_t values) \
    { \
        for (size_t k = 0; k < count; k++) array[k] = (T)(low + (int64_t)k % values); \
    }
FILL_INT(int32_t)
FILL_INT(int64_t)
FILL_INT(uint8_t)

struct gap { size_t offset, used; };

APART void poison_gaps(char *arena, size_t bytes, const struct gap *gaps, size_t count)
{
    ASAN_POISON_MEMORY_REGION(arena, bytes);
    for (size_t k = 0; k < count; k++) ASAN_UNPOISON_MEMORY_REGION(arena + gaps[k].offset, gaps[k].used);
}
@MODULES@
int main(void)
{
    const int64_t batches[] = {@BATCHES@};
    const int threads[] = {@THREADS@};
    int failures = 0;
    for (size_t b = 0; b < sizeof batches / sizeof *batches; b++) {
@CALLS@
    }
    return failures != 0;
}
"""


def driver(modules: Sequence[Emission], batches: Sequence[int], threads: Sequence[int]) -> str:
    """Return the text of main.c that runs all entry points of the modules and hashes all results."""
    calls = []
    for m in modules:
        calls += [
            "        {", "            uint64_t first = 0;",
            "            for (size_t t = 0; t < sizeof threads / sizeof *threads; t++)",
            "                for (int fill = 0xFF; fill >= 0x3F; fill -= 0xC0) {",
            f"                    const uint64_t got = run_{m.name}(batches[b], threads[t], fill);",
            "                    if (t == 0 && fill == 0xFF) first = got;",
            "                    if (got == first) continue;",
            f'                    printf("{m.name} differs: threads %d, fill %d\\n", threads[t], fill);',
            "                    failures++;",
            "                }",
            f'            printf("{m.name} batch %d %016llx\\n",',
            "                (int)batches[b], (unsigned long long)first);",
            "        }",
        ]  # fmt: skip
    text = _DRIVER.replace("@INCLUDES@", "\n".join(f'#include "{m.name}.h"' for m in modules))
    text = text.replace("@MODULES@", "\n".join(_runner(m) for m in modules))
    text = text.replace("@BATCHES@", ", ".join(map(str, batches)))
    text = text.replace("@THREADS@", ", ".join(map(str, threads)))
    return text.replace("@CALLS@", "\n".join(calls))


def _runner(module: Emission) -> str:
    """Return the C function that runs one module on exactly the memory that it asks for."""
    p, n = module.program, module.name
    upper, real = n.upper(), {"float32": "float", "float64": "double"}[p.dtype]
    arguments = {a.name: a for e in p.entries for a in (*e.inputs, *e.outputs)}
    lines = [
        f"static uint64_t run_{n}(int64_t N, int threads, int fill)",
        "{",
        "    uint64_t all = 0xcbf29ce484222325u;",
    ]
    lines += [
        f"    {n}_memory memory = {{0}};",
        *(
            f"    memory.{b}_bytes = sizeof(real_{n}) * {upper}_{macro};\n"
            f"    memory.{b} = block(memory.{b}_bytes);"
            for b, macro in (
                ("params", "PARAMS"), ("grads", "GRADS"), ("slots", "SLOTS"),
                ("state", "STATE"), ("folded", "FOLDED"),
            )
        ),
        f"    memory.arena_bytes = {upper}_ARENA_BYTES; memory.arena = block(memory.arena_bytes);",
        f"    {n}_context *context = block(({n}_context_bytes() + 63) / 64 * 64);",
        f"    if ({n}_init(context, {n}_context_bytes(), &memory, 7) != 0) exit(3);",
        f"    {n}_set_threads(context, threads);",
    ]  # fmt: skip
    for k, slot in enumerate((*p.params, *p.states)):
        where = "params" if k < len(p.params) else "state"
        count = 1
        for d in slot.shape:
            count *= d
        lines.append(f"    fill_{real}(memory.{where} + {slot.offset}, {count}, {k + 1}u);")
        if "running_var" in slot.name:
            lines.append(
                f"    for (int k = 0; k < {count}; k++)\n"
                f"        memory.{where}[{slot.offset} + k] = (real_{n})(1 + k % 3);"
            )
    bounds = {b.input: (b.low, b.high) for e in p.entries for b in e.bounds}
    lines += [
        line for k, a in enumerate(arguments.values()) for line in _array(a, k, *bounds.get(a.name, (0, 2)))
    ]
    if any(e.name == "fold" for e in p.entries):
        lines += _call(module, next(e for e in p.entries if e.name == "fold"), "")
    for entry in p.entries:
        if entry.name == "train_step":
            lines += [] if p.uses_up else _call(module, entry, ", 0.01, 0")
            lines += 2 * _call(module, entry, ", 0.01, 1")
        elif entry.name != "fold":
            lines += _call(module, entry, "")
    lines += [f"    free({_var(a)});" for a in arguments.values()]
    lines += [f"    free(memory.{b});" for b in ("params", "grads", "slots", "state", "folded", "arena")]
    return "\n".join([f"typedef {real} real_{n};", *lines, "    free(context);", "    return all;", "}"])


def _var(a: Argument) -> str:
    return "v_" + a.name.replace(".", "_")


def _ctype(a: Argument) -> str:
    return {"float32": "float", "float64": "double", "bool": "uint8_t"}.get(a.dtype, f"{a.dtype}_t")


def _array(a: Argument, seed: int, low: int, high: int) -> list[str]:
    count = f"(size_t)({a.buffer.size})"
    fill = f"fill_{_ctype(a)}({_var(a)}, {count}, {seed + 100}u);"
    if not a.dtype.startswith("float"):
        fill = f"fill_{_ctype(a)}({_var(a)}, {count}, {low}, {min(high - low, 3)});"
    size = f"sizeof({_ctype(a)}) * {count}"
    return [f"    {_ctype(a)} *{_var(a)} = malloc({size}); /* exactly */", f"    {fill}"]


def _call(module: Emission, entry: Entry, more: str) -> list[str]:
    """Return the lines that call an entry point between guards, and hash everything that it may write."""
    p, n = module.program, module.name
    gaps = [
        f"{{{p.offsets[entry.name][name]}, {used}}}"
        for name, (_, used) in arena_buffers(entry, p.batch).items()
    ]
    spread_out = len(gaps) * GUARD < p.offsets[entry.name].get("", 0) and _is_spread(p, entry)
    lines = ["    {", "        if (memory.arena_bytes) memset(memory.arena, fill, memory.arena_bytes);"]
    if spread_out:
        lines += [
            f"        const struct gap gaps[] = {{{', '.join(gaps)}}};",
            "        poison_gaps(memory.arena, memory.arena_bytes, gaps, sizeof gaps / sizeof *gaps);",
        ]
    passed = "".join(
        f", {_var(a)}, sizeof({_ctype(a)}) * (size_t)({a.buffer.size})"
        for a in (*entry.inputs, *entry.outputs)
    )
    batch = "" if entry.name == "fold" else ", N"
    lines += [
        f"        if ({n}_{entry.name}(context{batch}{passed}{more}) != 0) {{",
        f'            printf("{n}_{entry.name}: %s\\n", {n}_message(context));',
        "            exit(4);",
        "        }",
    ]
    if spread_out:
        lines.append("        ASAN_UNPOISON_MEMORY_REGION(memory.arena, memory.arena_bytes);")
    for a in entry.outputs:
        lines.append(f"        all = hash(all, {_var(a)}, sizeof({_ctype(a)}) * (size_t)({a.buffer.size}));")
    if entry.name == "train_step":
        lines += [
            f"        all = hash(all, memory.{b}, memory.{b}_bytes);"
            for b in ("params", "grads", "slots", "state")
        ]
    return [*lines, "    }"]


def _is_spread(p: Program, entry: Entry) -> bool:
    places = sorted(
        (p.offsets[entry.name][name], size) for name, (size, _) in arena_buffers(entry, p.batch).items()
    )
    ends = [offset + size for offset, size in places]
    return all(
        begin >= end + GUARD // 2 for (begin, _), end in zip(places[1:], ends[:-1], strict=True)
    ) and bool(places)


__all__ = [
    "COMPILERS", "GUARD", "NETS", "STRICT", "Emission", "arena_buffers", "chunked_module", "compile_objects",
    "driver", "emission", "lenet_module", "make_inputs", "sample_modules", "spread", "winograd_module",
]  # fmt: skip
