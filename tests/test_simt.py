"""The SIMT emulator runs CUDA kernels as a device would, and reports what would hang one or read what nobody wrote.

One driver, ``drivers/simt.cu``, is built in several ways; nvcc compiles it too, so that it is really CUDA.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import graphc_templates

HEADER_FOLDER = Path(graphc_templates.__file__).parent / "cuda"
DRIVER = Path(__file__).parent / "drivers" / "simt.cu"
STRICT = ("-std=c++17", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off")
SANITIZERS = ("-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
BUILDS = {
    "plain": ("g++", "-O2", "-fno-exceptions", "-fno-rtti"),
    "ucontext": ("g++", "-O1", "-DGC_SIMT_UCONTEXT"),
    "debug": ("clang++", "-O1", "-DGC_SIMT_DEBUG", "-DGC_SIMT_REPORT=note"),
    "sanitized": ("g++", "-O1", "-DGC_SIMT_DEBUG", "-DGC_SIMT_REPORT=note", *SANITIZERS),
}
EPS = 2.0**-24  # half a place of a float near 1


@functools.cache
def build(name: str) -> Path:
    """Return the driver built in one of the ways."""
    compiler, *flags = BUILDS[name]
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    program = Path(tempfile.mkdtemp(prefix="graphc-simt-")) / "simt"
    include = ["-I", str(HEADER_FOLDER), "-x", "c++"]
    command = [compiler, *STRICT, *flags, *include, str(DRIVER), "-o", str(program)]
    result = subprocess.run(command, capture_output=True, text=True)
    if "libclang_rt" in result.stderr or "cannot find -lasan" in result.stderr:
        pytest.skip(f"{compiler} has no sanitizers")
    assert result.returncode == 0, result.stderr[:4000]
    return program


def start(
    name: str, *words: object, values: Sequence[np.ndarray] = (), **environment: object
) -> subprocess.CompletedProcess[bytes]:
    """Run a case of the driver."""
    given = b"".join(np.ascontiguousarray(v, dtype=np.float32).tobytes() for v in values)
    variables = {**os.environ, **{key: str(value) for key, value in environment.items()}}
    command = [str(build(name)), *map(str, words)]
    return subprocess.run(command, input=given, capture_output=True, env=variables, timeout=60)


def floats(name: str, *words: object, values: Sequence[np.ndarray] = (), **environment: object) -> np.ndarray:
    """Return the floats that a case computes."""
    result = start(name, *words, values=values, **environment)
    assert result.returncode == 0, result.stderr.decode()[:4000]
    return np.frombuffer(result.stdout, np.float32)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def line_of(text: str) -> int:
    """Return the number of the only line of the driver with that text."""
    (line,) = [k for k, line in enumerate(DRIVER.read_text().splitlines(), 1) if text in line]
    return line


every_build = pytest.mark.parametrize("name", BUILDS)


# ---- results --------------------------------------------------------------------------------------------------


@every_build
def test_sums_of_blocks(name: str) -> None:
    """By shared memory and by shuffles; 8 + 3 roundings at most lie between a value and the sum."""
    x = draw(4, 256)
    shared, shuffled = floats(name, "sums", values=[x]).reshape(2, 4)
    exact, bound = x.sum(1, dtype=np.float64), 16 * EPS * np.abs(x).sum(1, dtype=np.float64)
    assert np.all(np.abs(shared - exact) <= bound) and np.all(np.abs(shuffled - exact) <= bound)


@every_build
def test_product_of_matrices(name: str) -> None:
    """Tiles in shared memory, with edges that fill no tile; 50 products and their sum have 100 roundings."""
    a, b = draw(37, 50, seed=1), draw(50, 29, seed=2)
    c = floats(name, "matmul", values=[a, b]).reshape(37, 29)
    bound = 100 * EPS * (np.abs(a).astype(float) @ np.abs(b).astype(float))
    assert np.all(np.abs(c - a.astype(float) @ b.astype(float)) <= bound)


def expected_warps() -> list[list[int]]:
    """Return what the kernel warp_functions computes, after the programming guide."""
    threads, full = range(40), range(32)

    def of_warp(t: int) -> range:
        return full if t < 32 else range(32, 40)

    return [
        [t // 8 * 8 + 3 for t in threads],
        [t - 2 if t % 8 >= 2 else t for t in threads],
        [t + 3 if t % 8 < 5 else t for t in threads],
        [t ^ 5 for t in threads],
        [sum(k % 32 % 3 == 0 for k in of_warp(t)) for t in threads],
        [2 * (t >= 32) + (t < 32) for t in threads],
        [sum(k % 32 for k in of_warp(t)) for t in threads],
        [max(of_warp(t)) for t in threads],
        [-max(of_warp(t)) for t in threads],
        [10] * 40,
        [2] * 40,
        [t ^ 2 if t % 2 else t ^ 4 for t in threads],
    ]


@every_build
def test_functions_of_a_warp(name: str) -> None:
    """Segments, votes, reductions, a warp of 8 lanes, two branches with half of a warp each: integers, exactly."""
    assert floats(name, "warps").reshape(12, 40).tolist() == expected_warps()


def round_to(x: np.ndarray, dropped: int, even: bool) -> np.ndarray:
    """Return floats without their last bits: to nearest, and of two nearest to the even or to the larger."""
    words = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    half = np.uint64(1 << (dropped - 1))
    odd = (words >> np.uint64(dropped)) & np.uint64(1)
    words = words + (half - np.uint64(1) + odd if even else half)
    return (words >> np.uint64(dropped) << np.uint64(dropped)).astype(np.uint32).view(np.float32)


@every_build
def test_places_and_numbers(name: str) -> None:
    """Where threads and blocks find themselves, roundings and bits: exactly."""
    x = draw(200, seed=3) * 4
    x[:6] = [1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-11, 2.5, 3.5, -0.5]  # ties
    x[6:12] = [6e-8, 3e-8, 1e-5, 65504, 65519, 65520]  # where halves are subnormal, and where they end
    x[12:50] = 2.0 ** np.arange(-30, 8) * 1.2345
    found = floats(name, "arithmetic", values=[x])
    z, y, block_x, k, j, i = np.unravel_index(np.arange(720), (2, 3, 2, 3, 4, 5))
    np.testing.assert_array_equal(found[:720], i + 10 * j + 100 * k + 1000 * block_x + 10000 * y + 100000 * z)
    bf16, flipped, whole, fused, bits, bounded, tf32, half = found[720:].reshape(8, 200)
    np.testing.assert_array_equal(bf16, round_to(x, 16, even=True))
    np.testing.assert_array_equal(flipped, (x.view(np.uint32) ^ 1).view(np.float32))
    np.testing.assert_array_equal(whole, np.rint(x))
    np.testing.assert_array_equal(fused, (x.astype(float) ** 2 - 1).astype(np.float32))
    counted = [
        k.bit_count() + 100 * ((k & -k).bit_length()) + 10000 * (32 - k.bit_length()) for k in range(200)
    ]
    assert bits.tolist() == counted
    np.testing.assert_array_equal(bounded, np.clip(x, -2, 2) + np.float32(0.5))
    np.testing.assert_array_equal(tf32, round_to(x, 13, even=False))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(half, x.astype(np.float16).astype(np.float32))


@every_build
def test_atomics(name: str) -> None:
    """300 threads of three blocks in any order give one result, of values that floats hold exactly."""
    memory = start(name, "atomics").stdout
    assert np.frombuffer(memory, np.int32, 7).tolist() == [-300, 299, -299, 7, 1, 0, 9]
    assert np.frombuffer(memory, np.uint32, 1, 28)[0] == 600
    assert np.frombuffer(memory, np.uint64, 1, 32)[0] == 300 << 33
    assert np.frombuffer(memory, np.float32, 1, 40)[0] == 150
    assert np.frombuffer(memory, np.float64, 1, 48)[0] == 75


@every_build
def test_matrix_fragments(name: str) -> None:
    """Products of rounded inputs are exact in float; sums of 33 and 17 terms have a rounding each."""
    a, b, c = draw(16, 16, seed=4), draw(16, 16, seed=5), draw(16, 16, seed=6)
    bf16, tf32 = floats(name, "fragments", values=[a, b, c]).reshape(2, 16, 16)
    x, y = (round_to(m, 16, even=True).astype(float) for m in (a, b))
    bound = 33 * EPS * (2 * np.abs(x) @ np.abs(y.T) + np.abs(c))
    assert np.all(np.abs(bf16 - (2 * x @ y.T + c)) <= bound)
    x, y = (round_to(m, 13, even=False).astype(float) for m in (a, b))
    bound = 17 * EPS * (np.abs(x) @ np.abs(y) + np.abs(c.T))
    assert np.all(np.abs(tf32.T - (x @ y + c.T)) <= bound)


# ---- the runtime ----------------------------------------------------------------------------------------------


@every_build
def test_graphs_replay_what_was_captured(name: str) -> None:
    """Two launches, then one with changed data: arguments are those of the capture, contents those of the replay."""
    x, a, b = (np.arange(32, dtype=np.float32) + k for k in (1, 2, 3))
    result, left = floats(name, "graph", values=[x, a, b]).reshape(2, 32)
    a[:16] = 0  # by the captured memset, after the first launch; x was replaced by b before the third
    expected = 2 * (3 * b + a) + b
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(left, expected)


@every_build
def test_streams_keep_their_order(name: str) -> None:
    x, a = draw(32, seed=7), draw(32, seed=8)
    once = x * np.float32(2) + a
    np.testing.assert_array_equal(floats(name, "streams", values=[x, a]), once * np.float32(2) + a)


@pytest.mark.parametrize("name", ["plain", "debug", "sanitized"])
def test_copies_of_another_stream_must_be_waited_for(name: str) -> None:
    """Without the wait a kernel reads what was there before, in debug mode; with it, all streams do their work."""
    x, a = draw(32, seed=7), draw(32, seed=8)
    expected = [a, x * np.float32(2) + a]
    np.testing.assert_array_equal(floats(name, "staged", 1, values=[x, a]).reshape(2, 32), expected)
    copied, late = floats(name, "staged", 0, values=[x, a]).reshape(2, 32)
    np.testing.assert_array_equal(copied, a)
    assert np.array_equal(late, expected[1]) == (name == "plain")


ANSWERS = """\
1025 threads, peeked: cudaErrorInvalidConfiguration
1025 threads: cudaErrorInvalidConfiguration
asked again: cudaSuccess
empty grid: cudaErrorInvalidConfiguration
tall grid: cudaErrorInvalidConfiguration
deep block: cudaErrorInvalidConfiguration
no target: cudaErrorInvalidValue
direction: cudaErrorInvalidMemcpyDirection
device 7: cudaErrorInvalidDevice
no time: cudaErrorInvalidResourceHandle
not capturing: cudaErrorIllegalState
default stream: cudaErrorStreamCaptureUnsupported
synchronised: cudaErrorStreamCaptureUnsupported
invalidated: cudaErrorStreamCaptureInvalidated
default stream meanwhile: cudaErrorStreamCaptureImplicit
allocated meanwhile: cudaErrorStreamCaptureUnsupported
wrong stream ends: cudaErrorStreamCaptureUnmatched
and so: cudaErrorStreamCaptureInvalidated
unjoined: cudaErrorStreamCaptureUnjoined
"""


@every_build
def test_illegal_calls_are_refused(name: str) -> None:
    result = start(name, "errors")
    assert result.returncode == 0, result.stderr.decode()
    assert result.stdout.decode() == ANSWERS


@pytest.mark.parametrize("fails", range(1, 7))
def test_a_chosen_allocation_or_launch_fails(fails: int) -> None:
    """Three allocations and three launches: exactly the chosen one fails, without an effect on the others."""
    lines = start("plain", "failing", GC_SIMT_FAIL_AFTER=fails).stdout.decode().splitlines()
    expected = ["cudaMalloc: cudaSuccess"] * 3 + ["launch: cudaSuccess"] * 3
    if fails <= 3:
        expected[fails - 1] = "cudaMalloc: cudaErrorMemoryAllocation"
        lines = lines[:3] if fails == 3 else lines  # the launches would read memory that is not there
        expected = expected[: len(lines)]
        expected[3:4] = ["launch: cudaErrorMemoryAllocation"] * (len(lines) > 3)  # kept until somebody asks
    else:
        expected[fails - 1] = "launch: cudaErrorLaunchOutOfResources"
    assert lines == expected


# ---- what is found --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["debug", "sanitized"])
def test_a_missing_barrier_is_seen_in_some_order(name: str) -> None:
    """Without it, values that nobody wrote yet are NaN; with it, no order changes the result."""
    x = draw(64, seed=9)
    wrong = 0
    for seed in range(1, 5):
        right = floats(name, "reverse", 1, values=[x], GC_SIMT_SEED=seed)[:64]
        np.testing.assert_array_equal(right, x[::-1])
        racing = floats(name, "reverse", 0, values=[x], GC_SIMT_SEED=seed)[:64]
        wrong += np.isnan(racing).any()
        assert np.all(np.isnan(racing) | (racing == x[::-1]))
    assert wrong == 4  # of 64! orders, none to speak of is right


def test_the_order_is_that_of_the_seed() -> None:
    x = draw(64, seed=9)
    runs = [floats("debug", "reverse", 0, values=[x], GC_SIMT_SEED=seed) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(np.isnan(runs[0]), np.isnan(runs[2]))


@pytest.mark.parametrize("name", ["debug", "sanitized"])
def test_unwritten_shared_memory_is_nan(name: str) -> None:
    """In every block anew, as float and as double."""
    floats32, doubles = floats(name, "read_unwritten").reshape(2, 64)
    odd, quarter = np.arange(64) % 2 == 1, np.arange(64) % 4 == 0
    assert np.isnan(floats32[~odd]).all() and np.all(floats32[odd] == 1)
    assert np.isnan(doubles[quarter]).all() and np.all(doubles[~quarter] == 2)


def test_copies_are_late_in_debug_mode() -> None:
    """What was not waited for is NaN in debug mode, and there at once otherwise; the zeros asked for are there."""
    x = draw(128, seed=10)
    expected = x.copy()
    expected[64 + 3] = 0
    for name, left_out in (("plain", 0), ("plain", 1), ("debug", 0)):
        np.testing.assert_array_equal(floats(name, "copies", left_out, values=[x]), expected)
    late = floats("debug", "copies", 1, values=[x])
    np.testing.assert_array_equal(late[:64], x[:64])
    assert np.isnan(late[64:]).all()


# The case, the kernel's block, and for each group of threads its numbers and where it waits.
HANGS = {
    "part_ways": ("(0, 0, 0)", [("the first barrier", "0-39"), ("the second barrier", "40-63")], None),
    "leave_early": ("(0, 0, 0)", [("the barrier that some miss", "0-49")], "50-63"),
    "miss_lanes": ("(0, 0, 0)", [("the shuffle that two lanes miss", "0-29, 32-61")], "30-31, 62-63"),
}


@pytest.mark.parametrize("name", ["plain", "ucontext"])
@pytest.mark.parametrize("case", HANGS)
def test_threads_that_wait_for_ever_are_reported(case: str, name: str) -> None:
    """With the kernel's name, the block, all threads and the source lines; then the program aborts."""
    result = start(name, case, 50)
    block, groups, ended = HANGS[case]
    text = result.stderr.decode()
    assert result.returncode == -6, text
    assert f"barrier divergence in kernel {case}, block {block} of 64 threads, launched at {DRIVER}:" in text
    waits = re.findall(r"wait for others in \w+ at (.*):(\d+)(?:, mask 0xffffffff)?: (.*)\n", text)
    assert waits == [(str(DRIVER), str(line_of(f"// {what}")), threads) for what, threads in groups]
    assert re.findall(r"threads that have ended: (.*)\n", text) == ([ended] if ended else [])


def test_a_mask_names_the_thread_that_gives_it() -> None:
    result = start("plain", "wrong_mask")
    text = result.stderr.decode()
    assert result.returncode == -6
    assert "does not name the thread which gives it in kernel wrong_mask" in text
    assert f"thread 4, mask 0x0000000f, in __shfl_xor_sync at {DRIVER}:{line_of('// the mask of')}" in text


@pytest.mark.parametrize("name", ["debug", "sanitized"])
def test_a_hook_may_go_on_after_a_report(name: str) -> None:
    """The block is given up in the middle; the launch and all later calls fail, as after a fault on a device."""
    lines = start(name, "reported").stdout.decode().splitlines()
    assert lines[0].startswith(
        "reported: graphc's emulator: barrier divergence in kernel part_ways, block (0"
    )
    assert lines[-2:] == ["after it: cudaErrorLaunchFailure", "the next launch: cudaErrorLaunchFailure"]
    assert sum("reported" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("case", "kind"), [("read_shared_at", "poison"), ("read_at", "heap-buffer-overflow")]
)
def test_accesses_outside_arrays_are_found(case: str, kind: str) -> None:
    """By AddressSanitizer, one element behind and before shared memory and that of cudaMalloc, and only there."""
    assert start("sanitized", case, 0).returncode == 0
    for place in (1, -1):
        result = start("sanitized", case, place)
        text = result.stderr.decode()
        assert result.returncode != 0
        assert re.search(f"AddressSanitizer: .*{kind}", text)
        assert re.search(rf"#0 .* {case}\b", text)  # the kernel, in the trace of the fibre


# ---- the dialect ----------------------------------------------------------------------------------------------


def test_nvcc_compiles_the_same_kernels(tmp_path: Path) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    command = [
        "nvcc",
        "-arch=sm_80",
        "-std=c++17",
        "-x",
        "cu",
        "-c",
        str(DRIVER),
        "-o",
        str(tmp_path / "simt.o"),
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "simt.o").stat().st_size > 0


def test_translation_units_share_one_emulator(tmp_path: Path) -> None:
    """A launch in one unit is an error that another sees, and a kernel of the other can be launched."""
    unit = '#include "gc_simt.h"\n'
    first = unit + (
        "__global__ void put(int *where) { __syncthreads(); where[threadIdx.x] = blockDim.x; }\n"
        "void fail() { GC_LAUNCH(put, 1, 0, nullptr, nullptr); }\n"
    )
    second = unit + (
        "__global__ void put(int *where);\nvoid fail();\n"
        "int main() {\n"
        "    int *where;\n    fail();\n"
        "    if (cudaGetLastError() != cudaErrorInvalidConfiguration) return 1;\n"
        "    if (cudaMalloc(&where, 64 * sizeof(int)) != cudaSuccess) return 2;\n"
        "    GC_LAUNCH(put, 1, 64, nullptr, where);\n"
        "    return where[63] == 64 && cudaFree(where) == cudaSuccess ? 0 : 3;\n"
        "}\n"
    )
    names = []
    for name, text in (("first.cpp", first), ("second.cpp", second)):
        (tmp_path / name).write_text(text)
        names.append(str(tmp_path / name))
    program = tmp_path / "both"
    command = ["g++", *STRICT, "-I", str(HEADER_FOLDER), *names, "-o", str(program)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert subprocess.run([program]).returncode == 0
