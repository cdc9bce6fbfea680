"""What this machine can do at the most, measured by a small C program: the roof that kernels are held against."""

from __future__ import annotations

import json
import os
import subprocess
from functools import lru_cache

from graphc.build.extension import build_program
from graphc.build.options import BuildOptions
from graphc.errors import BuildError

# The explicit vectors are as long as the registers; twelve sums hide the latency of two fused multiply-adds.
_SOURCE = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <omp.h>

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
#define LANES (BYTES / 4)
#define SUMS 12
typedef float vec __attribute__((vector_size(BYTES)));

static volatile float sink;

/* Returns the FLOPs of `count` rounds of SUMS independent multiply-adds. */
static double multiply_add(int64_t count)
{
    /* Different first values: the compiler computes equal sums once. */
    vec s0 = {1}, s1 = {2}, s2 = {3}, s3 = {4}, s4 = {5}, s5 = {6};
    vec s6 = {7}, s7 = {8}, s8 = {9}, s9 = {10}, s10 = {11}, s11 = {12};
    const float start = sink;
    const vec a = (vec){0} + (0.999f + start), b = (vec){0} + (0.001f + start);
    for (int64_t k = 0; k < count; k++) {
        s0 = s0 * a + b; s1 = s1 * a + b; s2 = s2 * a + b; s3 = s3 * a + b; s4 = s4 * a + b; s5 = s5 * a + b;
        s6 = s6 * a + b; s7 = s7 * a + b; s8 = s8 * a + b; s9 = s9 * a + b; s10 = s10 * a + b; s11 = s11 * a + b;
    }
    const vec sum = s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7 + s8 + s9 + s10 + s11;
    sink = 0 * sum[0];
    return 2.0 * LANES * SUMS * (double)count;
}

/* Best FLOP/s of `threads` threads that work at the same time; short repeats, to find one without disturbance. */
static double peak(int threads)
{
    const int64_t count = 200000;
    double best = 0;
    for (int repeat = 0; repeat < 300; repeat++) {
        double flops = 0, start = 0, end = 0;
        #pragma omp parallel num_threads(threads) reduction(+ : flops)
        {
            #pragma omp barrier
            #pragma omp master
            start = omp_get_wtime();
            flops += multiply_add(count);
            #pragma omp barrier
            #pragma omp master
            end = omp_get_wtime();
        }
        if (flops / (end - start) > best)
            best = flops / (end - start);
    }
    return best;
}

/* Best bytes/s of a[k] = b[k] + 3 c[k] on arrays far larger than the caches, each array counted once. */
static double bandwidth(int threads)
{
    const int64_t count = 1 << 25;
    float *a = malloc(count * sizeof(float)), *b = malloc(count * sizeof(float)), *c = malloc(count * sizeof(float));
    if (!a || !b || !c)
        return 0;
    double best = 0;
    for (int repeat = 0; repeat < 8; repeat++) {
        const double start = omp_get_wtime();
        if (repeat == 0) {
            #pragma omp parallel for num_threads(threads) schedule(static)
            for (int64_t k = 0; k < count; k++)
                a[k] = b[k] = c[k] = 1;
            continue;
        }
        #pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t k = 0; k < count; k++)
            a[k] = b[k] + 3.0f * c[k];
        const double speed = 3.0 * count * sizeof(float) / (omp_get_wtime() - start);
        best = speed > best ? speed : best;
    }
    sink = 0 * a[count / 2];
    free(a), free(b), free(c);
    return best;
}

/* Best mean seconds of an empty parallel region. */
static double fork_join(int threads)
{
    double best = 1;
    for (int repeat = 0; repeat < 20; repeat++) {
        const double start = omp_get_wtime();
        for (int k = 0; k < 500; k++) {
            #pragma omp parallel num_threads(threads)
            __asm__ volatile("" ::: "memory");
        }
        const double mean = (omp_get_wtime() - start) / 500;
        best = mean < best ? mean : best;
    }
    return best;
}

int main(int argc, char **argv)
{
    const int threads = argc > 1 ? atoi(argv[1]) : 1;
    printf("{\"fma_gflops_one_core\": %.1f, \"fma_gflops\": %.1f, "
           "\"bandwidth_gb_s\": %.1f, \"fork_join_us\": %.2f}\n",
           peak(1) / 1e9, peak(threads) / 1e9, bandwidth(threads) / 1e9, fork_join(threads) * 1e6);
    return 0;
}
"""


@lru_cache(maxsize=4)
def measure_machine(threads: int) -> dict[str, float]:
    """Return the FMA peak of one core and of all threads, memory bandwidth, and the time of fork and join.

    Units: GFLOP/s in float32, GB/s, microseconds; the best of some repetitions each. Measured once a process,
    which takes some seconds.

    Raises:
        BuildError: there is no C compiler with OpenMP, or the program fails.
    """
    # Contraction makes the plain products and sums fused ones, as this instruction set has them.
    program = build_program({}, _SOURCE, BuildOptions(extra_flags=("-ffp-contract=fast",)))
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    try:
        done = subprocess.run(
            [program, str(threads)], check=True, capture_output=True, text=True, timeout=120, env=environment
        )
        measured: dict[str, float] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise BuildError(f"the machine's peak could not be measured: {error}") from error
    return measured
