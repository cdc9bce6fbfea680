"""Time an exported net, called from C, beside the module that it came from, called from Python; and its sizes.

Both predict the same batch on one thread, in turns: best (median) microseconds of a call over the rounds, with the
flags of the bundle's Makefile. Sizes are those of the code (text of the library's objects), of the stripped example
(linked statically, too, where musl-gcc is there), and of the weights; compiling is one command, cc with the example
and the library.

Examples:
    python benchmarks/exported.py
    python benchmarks/exported.py --net resnet18 --batch 1 --rounds 5
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
import numpy as np
from nets import NETS
from session import bare_parser, confine, place, save
from worker import versions

import graphc as gc
from graphc.export import targets_named
from graphc_runtime.module import Module

MAIN = """\
#include "{name}.h"
#include <stdio.h>
#include <time.h>
extern const uint32_t {name}_weights[];
static _Alignas(64) unsigned char context_memory[{upper}_CONTEXT_BYTES], arena[{upper}_ARENA_BYTES];
static float x[{inputs}], logits[{outputs}];
static double now(void)
{{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e6 * (double)t.tv_sec + 1e-3 * (double)t.tv_nsec;
}}
int main(void)
{{
    FILE *const file = fopen("check/predict.in.x.bin", "rb");
    if (file == NULL || fread(x, 1, sizeof x, file) != sizeof x) return 1;
    {name}_memory memory = {{.arena = arena, .arena_bytes = sizeof arena}};
    {name}_context *const context = ({name}_context *)context_memory;
    if ({name}_init(context, sizeof context_memory, &memory, 0)) return 1;
    if ({name}_load(context, {name}_weights, {upper}_WEIGHTS_BYTES)) return 1;
    for (int round = 0; round < 2; round++) {{
        const double start = now();
        for (int call = 0; call < {calls}; call++)
            if ({name}_predict(context, {batch}, x, sizeof x, logits, sizeof logits)) return 1;
        if (round) printf("%f\\n", (now() - start) / {calls});
    }}
    return 0;
}}
"""


def from_python(module: Module, x: np.ndarray, calls: int) -> float:
    """Return the microseconds of a call from Python into arrays that are there already."""
    out = module.predict(x=x)
    start = time.perf_counter()
    for _ in range(calls):
        module.predict(x=x, out=out)
    return 1e6 * (time.perf_counter() - start) / calls


def measure(net: str, batch: int, rounds: int, calls: int) -> dict[str, Any]:
    """Return the times and sizes."""
    x = gc.input("x", ("N", *NETS[net].shape))
    module = gc.compile({"logits": NETS[net].graph(gc, x)}, batch=batch, name=net)
    flags = targets_named("native", "avx2")[0].flags
    with tempfile.TemporaryDirectory() as work:
        folder = module.export(Path(work) / net, weights="object")
        sources = [p.name for p in sorted(folder.glob("*.c")) if p.name not in ("example.c", "check.c")]
        command = ["cc", "-O3", *flags, "example.c", *sources, f"{net}_weights.S", "-lm", "-o", "example"]
        start = time.perf_counter()
        subprocess.run(command, cwd=folder, check=True)
        compiling = time.perf_counter() - start
        values = {"name": net, "upper": net.upper(), "batch": batch, "calls": calls}
        inputs = batch * int(np.prod(NETS[net].shape))
        (folder / "timed.c").write_text(
            MAIN.format(**values, inputs=inputs, outputs=batch * NETS[net].classes)
        )
        command = [*command[:2], *flags, "timed.c", *sources, f"{net}_weights.S", "-lm", "-o", "timed"]
        subprocess.run(command, cwd=folder, check=True)
        array = np.fromfile(folder / "check/predict.in.x.bin", "f").reshape(-1, *NETS[net].shape)[:batch]
        found: dict[str, list[float]] = {"c": [], "python": []}
        for _ in range(rounds):
            done = subprocess.run(["./timed"], cwd=folder, check=True, capture_output=True, text=True)
            found["c"].append(float(done.stdout))
            found["python"].append(from_python(module, array, calls))
        subprocess.run(["cc", "-O3", *flags, "-c", *sources], cwd=folder, check=True)
        objects = [Path(s).with_suffix(".o").name for s in sources]
        done = subprocess.run(["size", *objects], cwd=folder, check=True, capture_output=True, text=True)
        text = sum(int(line.split()[0]) for line in done.stdout.splitlines()[1:])
        weights = (folder / f"{net}.weights").stat().st_size
        subprocess.run(["strip", "example"], cwd=folder, check=True)
        program = (folder / "example").stat().st_size - weights
        static = None
        if shutil.which("musl-gcc") is not None:
            command = [
                "musl-gcc",
                "-static",
                "-s",
                "-O3",
                *flags,
                "example.c",
                *sources,
                f"{net}_weights.S",
                "-lm",
            ]
            subprocess.run([*command, "-o", "static"], cwd=folder, check=True)
            static = (folder / "static").stat().st_size - weights
    return {
        "net": net, "batch": batch, "compile_seconds": compiling, "code_bytes": text, "weights_bytes": weights,
        "program_bytes_without_weights": program, "static_program_bytes_without_weights": static,
        **{f"{k}_us": {"best": min(v), "median": float(np.median(v))} for k, v in found.items()},
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = bare_parser(__doc__)
    parser.add_argument("--net", default="lenet", choices=list(NETS), metavar="NET", help="default: lenet")
    parser.add_argument("--batch", type=int, default=1, choices=(1, 2, 4), help="default: 1")
    parser.add_argument("--rounds", type=int, default=7, help="default: 7")
    parser.add_argument("--calls", type=int, default=5000, help="of a round, default: 5000")
    options: argparse.Namespace = parser.parse_args()
    if options.quick:
        options.rounds, options.calls = 2, 50
    place(options, "exported")
    confine(1)
    row = measure(options.net, options.batch, options.rounds, options.calls)
    save({"machine": {**machine.describe(1), "versions": versions(("graphc", "numpy"))}, "row": row}, options)
    c, python = row["c_us"], row["python_us"]
    ratio = python["best"] / c["best"]
    print(f"{row['net']}, batch {row['batch']}, one thread; best (median) of {options.rounds} rounds")
    print(f"from C       {c['best']:10.2f} ({c['median']:.2f}) us a call")
    print(f"from Python  {python['best']:10.2f} ({python['median']:.2f}) us a call, {ratio:.2f} times")
    print(f"compiled in {row['compile_seconds']:.2f} s; code {row['code_bytes']:,} bytes; stripped program")
    print(f"{row['program_bytes_without_weights']:,} bytes beside weights of {row['weights_bytes']:,}")
    static = row["static_program_bytes_without_weights"]
    print(f"linked statically with musl: {static:,} bytes" if static else "no musl-gcc for a static program")


if __name__ == "__main__":
    main()
