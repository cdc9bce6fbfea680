"""The emitted C works in the memory that it is handed: no call after the first allocates or frees anything.

Here every parallel loop runs on the same number of threads, as ``emission`` has it. Where one loop has work for a
single thread and the next for all, GNU's OpenMP library frees the record of one team and allocates the other's;
that is its business, and no symbol of the emitted objects.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from emitted import Emission, compile_objects, emission, lenet_module

import graphc as gc
from graphc import models
from graphc.build import BuildOptions, build_program
from graphc.program.ir import Entry
from graphc.types import at

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the GNU C library's allocator is replaced"
)

# Nothing below the source decides who allocates; without optimisation no compiler removes a pair of calls either.
FLAGS = ("-O0",)
ALLOCATORS = (
    "malloc", "calloc", "realloc", "reallocarray", "posix_memalign", "aligned_alloc", "memalign", "valloc",
    "pvalloc", "free", "strdup", "strndup", "asprintf", "vasprintf", "mmap", "sbrk",
)  # fmt: skip

# The program's own definitions take the place of the C library's, in OpenMP's library as well.
_COUNTERS = r"""
#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include "@NAME@.h"

void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t), __libc_free(void *);

static atomic_int calls;

#pragma GCC visibility push(default)
void *malloc(size_t size) { calls++; return __libc_malloc(size); }
void *calloc(size_t count, size_t size) { calls++; return __libc_calloc(count, size); }
void *realloc(void *old, size_t size) { calls++; return __libc_realloc(old, size); }
void *memalign(size_t alignment, size_t size) { calls++; return __libc_memalign(alignment, size); }
void *aligned_alloc(size_t alignment, size_t size) { calls++; return __libc_memalign(alignment, size); }
int posix_memalign(void **place, size_t alignment, size_t size)
{
    calls++;
    *place = __libc_memalign(alignment, size);
    return *place ? 0 : ENOMEM;
}
void free(void *old) { calls++; __libc_free(old); }
#pragma GCC visibility pop
"""

_MAIN = r"""
static _Alignas(64) char arena[@UPPER@_ARENA_BYTES + 64], place[4096];
static _Alignas(64) @REAL@ params[@UPPER@_PARAMS + 1], grads[@UPPER@_GRADS + 1], slots[@UPPER@_SLOTS + 1];
static _Alignas(64) @REAL@ state[@UPPER@_STATE + 1], folded[@UPPER@_FOLDED + 1];
@ARRAYS@

static int run(@NAME@_context *context)
{
    int failed = 0;
    for (int64_t N = 1; N <= @UPPER@_BATCH; N += @UPPER@_BATCH - 1) {
@CALLS@
    }
    return failed;
}

int main(void)
{
    const @NAME@_memory memory = {
        params, sizeof params, grads, sizeof grads, slots, sizeof slots,
        state, sizeof state, folded, sizeof folded, arena, sizeof arena,
    };
    @NAME@_context *const context = (@NAME@_context *)place;
    if (@NAME@_init(context, sizeof place, &memory, 7) != 0) return 2;
    @NAME@_set_threads(context, 2);
    for (size_t k = 0; k < @UPPER@_PARAMS; k++) params[k] = (@REAL@)(k % 7) / 64;
    int failed = run(context); /* OpenMP makes its threads */
    const int first = calls;
    calls = 0;
    for (int k = 0; k < 3; k++) failed += run(context);
    const int later = calls;
    printf("%d %d %d\n", failed, first, later);
    return 0;
}
"""


def program(module: Emission) -> str:
    """Return main.c: memory of its own, one round of all entry points, then three whose allocations are counted."""
    p = module.program
    arguments = {a.name: a for e in p.entries for a in (*e.inputs, *e.outputs)}
    ctypes = {"float32": "float", "float64": "double", "int32": "int32_t"}
    arrays = [
        f"static {ctypes[a.dtype]} v_{a.name}[{at(a.buffer.size, p.batch)}];" for a in arguments.values()
    ]

    def call(entry: Entry) -> str:
        given = ["context", *(["N"] if entry.name != "fold" else [])]
        for a in (*entry.inputs, *entry.outputs):
            given += [f"v_{a.name}", f"sizeof *v_{a.name} * (size_t)({a.buffer.size})"]
        given += ["0.01", "1"] if entry.name == "train_step" else []
        return f"        failed += {p.name}_{entry.name}({', '.join(given)}) != 0;"

    text = _COUNTERS + _MAIN
    words = {
        "NAME": p.name, "UPPER": p.name.upper(), "REAL": ctypes[p.dtype], "ARRAYS": "\n".join(arrays),
        "CALLS": "\n".join(call(e) for e in sorted(p.entries, key=lambda e: e.name != "fold")),
    }  # fmt: skip
    for word, value in words.items():
        text = text.replace(f"@{word}@", value)
    return text


def counted(module: Emission) -> tuple[int, int]:
    """Return how many calls of allocators there were in the first round, and in the three after it."""
    try:
        path = build_program(module.emitted.sources, program(module), BuildOptions(optimisation=FLAGS))
    except gc.GraphcError as error:
        if "__libc_" in str(error):
            pytest.skip("this C library has no second name for its allocator")
        raise
    done = subprocess.run([path], capture_output=True, text=True, check=True, timeout=60)
    failed, first, later = map(int, done.stdout.split())
    assert failed == 0
    return first, later


def lenet() -> Emission:
    return lenet_module("lenet_still")


def residual() -> Emission:
    x, y = gc.input("x", ("N", 3, 12, 12)), gc.input("y", ("N",), dtype="int32")
    logits = models.resnet_cifar(x, 4, depth=8, width=8)
    loss = gc.losses.cross_entropy(logits, y)
    return emission("residual_still", {"logits": logits}, loss, gc.Adam(lr=1e-3), batch=3)


NETS = [lenet, residual]


@pytest.mark.parametrize("net", NETS)
def test_no_call_after_the_first_allocates(net: Callable[[], Emission]) -> None:
    """Inference, evaluation and training, at two batches and with two threads."""
    first, later = counted(net())
    assert first > 0, "OpenMP allocates its threads, which the counters must see"
    assert later == 0


def test_an_allocation_is_counted() -> None:
    x = gc.input("x", ("N", 4))
    module = emission("leaky", {"out": gc.exp(x)}, batch=3)
    source = module.emitted.sources["leaky.c"]
    leaky = source.replace("    return LEAKY_OK;\n}\n", "    free(malloc(16));\n    return LEAKY_OK;\n}\n")
    assert leaky.count("free(malloc(16))") == source.count("    return LEAKY_OK;\n}\n") > 0
    module.emitted.sources["leaky.c"] = "#include <stdlib.h>\n" + leaky
    assert counted(module)[1] >= 2 * 3


@pytest.mark.parametrize("net", NETS)
def test_objects_refer_to_no_allocator(net: Callable[[], Emission], tmp_path: Path) -> None:
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("there is no nm to list undefined symbols with")
    paths = net().write(tmp_path)
    compiler = shutil.which("gcc") or shutil.which("cc") or "cc"
    assert not compile_objects(compiler, paths, ("-std=gnu11", "-fopenmp", *FLAGS))
    objects = [path.with_suffix(".o") for path in paths]
    listed = subprocess.run([nm, "-u", *objects], capture_output=True, text=True, check=True).stdout
    undefined = {
        line.split()[-1].partition("@")[0] for line in listed.splitlines() if line.split()[:1] == ["U"]
    }
    assert any(name.startswith(("GOMP_", "__kmpc_")) for name in undefined), "or these are not the names"
    assert not undefined.intersection(ALLOCATORS)
