"""The loops of multiply-adds keep their sums in registers, in what compilers make of the kernels.

The assembly is made with the flags of a real build, for processors that this machine need not be.
"""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest
from assembly import multiply_add_loops
from emitted import COMPILERS, Emission, compile_objects, emission

import graphc as gc
from graphc.build import BuildOptions, Cache
from graphc.build.extension import _choose_toolchain

PACKED = {
    "packed_conv2d",
    "packed_conv2d_backward_weight",
    "packed_matmul",
    "chunked_matmul",
    "winograd_conv2d",
}
MARCH = {"avx512": "x86-64-v4", "avx2": "x86-64-v3"}
on_x86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="needs a compiler for x86-64"
)


def net(isa: str) -> Emission:
    """Every packed kernel, so large that compilers leave its innermost loop standing."""
    x = gc.input("x", ("N", 6, 28, 28))
    h = gc.nn.max_pool2d(gc.relu(gc.nn.conv2d(x, 20, kernel=5, name="pooled")), 2)
    walked = gc.nn.max_pool2d(gc.nn.conv2d(x, 20, kernel=5, padding=2, name="walked"), 3, 2)
    tiles = gc.nn.conv2d(walked, 32, 3, padding=1, name="padded")
    tiles = gc.nn.max_pool2d(gc.nn.conv2d(tiles, 48, 3, padding=1, name="walked_tiles"), 3, 2)
    h = gc.relu(gc.nn.conv2d(h, 36, 1, name="single"))
    h = gc.relu(gc.nn.conv2d(h, 48, 3, padding=1, name="winograd"))
    strided = gc.nn.conv2d(h, 19, 3, stride=2, padding=1, name="strided")
    strip = gc.nn.conv2d(h, 40, 1, stride=2, name="strip")
    narrow = gc.nn.linear(gc.flatten(strided), 48, name="whole")  # whole vectors of columns
    wide = gc.nn.linear(gc.flatten(strip), 19, name="odd")
    large = gc.nn.linear(gc.flatten(strip), 530, name="large")  # packed in chunks
    outputs = {"narrow": narrow, "wide": wide, "large": large, "tiles": tiles}
    loss = gc.mean(narrow * narrow) + gc.mean(wide * wide) + gc.mean(large * large) + gc.mean(tiles * tiles)
    return emission("spilled", outputs, loss, batch=8, isa=isa)


def packed_kernels(module: Emission) -> set[str]:
    """Return the names of the functions that run in register tiles."""
    found = set()
    for entry in module.program.entries:
        names = module.emitted.kernel_names[entry.name]
        found |= {n for n, c in zip(names, entry.calls, strict=True) if c.kernel.template in PACKED}
    return found


def spills(assembly: str) -> list[str]:
    """Return every loop that spills, with a few of its instructions."""
    loops = [loop for loop in multiply_add_loops(assembly) if loop.spills]
    return [f"{loop.function}: {len(loop.spills)} spills, such as {loop.spills[:3]}" for loop in loops]


@on_x86
@pytest.mark.slow
@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("isa", sorted(MARCH))
def test_tiles_stay_in_registers(compiler: str, isa: str, tmp_path: Path) -> None:
    """No loop of a tile writes a vector, or reads one from its function's frame."""
    module = net(isa)
    templates = {c.kernel.template for e in module.program.entries for c in e.calls}
    assert templates >= PACKED
    options = BuildOptions(compiler=compiler, optimisation=("-O3", f"-march={MARCH[isa]}"))
    flags = _choose_toolchain(options, Cache(options.cache_root())).flags
    paths = module.write(tmp_path)
    assert compile_objects(compiler, paths, [*flags, "-S"]) == []
    assembly = "\n".join(path.with_suffix(".o").read_text() for path in paths)
    assert spills(assembly) == []
    loops = multiply_add_loops(assembly)
    assert max(loop.multiply_adds for loop in loops) >= 25
    if compiler == "gcc":  # clang numbers the functions that run in threads
        looping = {loop.function.split(".")[0] for loop in loops}
        assert packed_kernels(module) <= looping


def tile(sums: int) -> str:
    """Return a C function with so many sums in its loop."""
    lines = [f"v s{k} = {{0}};" for k in range(sums)]
    lines += ["for (long c = 0; c < n; c++) {", "const v w = weight[c];"]
    lines += [
        f'__asm__("vfmadd231ps %1%{{1to16%}}, %2, %0" : "+v"(s{k}) : "m"(in[c * 64 + {k}]), "v"(w));'
        for k in range(sums)
    ]
    lines += ["}", *(f"out[{k}] = s{k};" for k in range(sums))]
    body = "\n".join(lines)
    return (
        "typedef float v __attribute__((vector_size(64)));\n"
        f"void tile(v *out, const v *weight, const float *in, long n)\n{{\n{body}\n}}\n"
    )


@on_x86
@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize(("sums", "fits"), [(8, True), (31, True), (32, False), (40, False)])
def test_too_many_sums_are_told(compiler: str, sums: int, fits: bool) -> None:
    """32 registers hold 31 sums and a vector; the 32nd sum must spill."""
    command = [compiler, "-O3", "-march=x86-64-v4", "-S", "-x", "c", "-", "-o", "-"]
    done = subprocess.run(command, input=tile(sums), capture_output=True, text=True, check=True)
    (loop,) = multiply_add_loops(done.stdout)
    assert (loop.function, loop.multiply_adds) == ("tile", sums)
    assert (not loop.spills) == fits


X86 = """\
\t.type\tkernel._omp_fn.0, @function
kernel._omp_fn.0:
\tpushq\t%rbp{frame}
.L2:
\tvmovups\t(%rdi), %zmm0  # weights
{line}
\tvfmadd231ps\t4(%rax){{1to16}}, %zmm0, %zmm1
\taddq\t$4, %rax
\tcmpq\t%rcx, %rax
\tjne\t.L2
\tvmovaps\t%zmm1, 64(%rsp)
\tret
\t.size\tkernel._omp_fn.0, .-kernel._omp_fn.0
"""
ARM = """\
\t.type\tkernel, %function
kernel:
\tmov\tx29, sp
.L2:
\tldr\tq0, [x1]
{line}
\tfmla\tv1.4s, v0.4s, v2.s[0]
\tadd\tx1, x1, 16
\tcmp\tx1, x2
\tb.ne\t.L2
\tstr\tq1, [sp, 64]
\tret
\t.size\tkernel, .-kernel
"""
FRAME = "\n\tmovq\t%rsp, %rbp"


@pytest.mark.parametrize(
    ("line", "frame", "spilled"),
    [
        ("vmovaps %zmm2, 128(%rsp)", "", True),
        ("vmovaps %ymm2, (%rdx)", "", True),  # a loop of sums writes nothing
        ("vmovaps 128(%rsp), %zmm2", "", True),
        ("vbroadcastss -4(%rsp), %zmm2", "", True),
        ("vfmadd231ps 64(%rsp), %zmm0, %zmm3", "", True),
        ("vmovaps -128(%rbp), %zmm2", FRAME, True),
        ("vmovaps -128(%rbp), %zmm2", "", False),  # a pointer to weights
        ("vbroadcastss 128(%rsp,%rax,4), %zmm2", "", False),  # a tile on the stack
        ("movq 8(%rsp), %rdx", "", False),
        ("vmovaps %zmm2, %zmm3", "", False),
    ],
)
def test_what_is_a_spill_on_x86(line: str, frame: str, spilled: bool) -> None:
    (loop,) = multiply_add_loops(X86.format(line=f"\t{line}", frame=frame))
    assert loop.spills == ((line,) if spilled else ())
    assert loop.function == "kernel._omp_fn.0"


@pytest.mark.parametrize(
    ("line", "spilled"),
    [
        ("str q3, [sp, 16]", True),
        ("stp q3, q4, [x5]", True),
        ("ldp q3, q4, [sp, #16]", True),
        ("ldr s3, [x29, 16]", True),
        ("ldr s3, [sp, x4, lsl 2]", False),
        ("ldr x3, [sp, 16]", False),
        ("ldr q3, [x4, 16]", False),
    ],
)
def test_what_is_a_spill_on_arm(line: str, spilled: bool) -> None:
    (loop,) = multiply_add_loops(ARM.format(line=f"\t{line}"))
    assert loop.spills == ((line,) if spilled else ())


def test_code_around_a_loop_is_no_loop() -> None:
    """What stores the sums belongs to the outer loop, whose way back is longer."""
    outer = X86.format(line="", frame="").replace(
        "\tret\n", "\tjmp\t.L3\n.L3:\n\tcmpq\t%rdx, %rcx\n\tjl\t.L4\n\tret\n"
    )
    outer = outer.replace(".L2:\n", ".L4:\n\tvmovaps\t64(%rsp), %zmm1\n.L2:\n", 1)
    (loop,) = multiply_add_loops(outer)
    assert loop.spills == ()
    assert len(loop.instructions) == 5
