"""Time the compilation of LeNet with training, cold and from the cache: ``python benchmarks/compile_time.py``.

Each measurement is a new process; the cache is a temporary folder. Prints the import, the first and the
second compilation in seconds (median and minimum of the runs), and the number of usable processors.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile

CODE = """
import time
start = time.perf_counter()
import graphc as gc
imported = time.perf_counter()
x = gc.input("x", ("N", 1, 32, 32))
y = gc.input("y", ("N",), dtype="int32")
logits = gc.models.lenet(x)
loss = gc.losses.cross_entropy(logits, y)
gc.compile({"logits": logits}, loss=loss, optimizer=gc.SGD(lr=0.05, momentum=0.9), batch=64, name="lenet")
print(imported - start, time.perf_counter() - imported)
"""


def run(cache: str) -> tuple[float, float]:
    """Return the seconds of the import and of the compilation in a new process."""
    environment = dict(os.environ, GRAPHC_CACHE_DIR=cache)
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, check=True, capture_output=True, text=True
    )
    imported, compiled = done.stdout.split()
    return float(imported), float(compiled)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    times: dict[str, list[float]] = {"import": [], "cold": [], "cached": []}
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as cache:
            _, cold = run(cache)
            imported, cached = run(cache)
        for name, value in (("import", imported), ("cold", cold), ("cached", cached)):
            times[name].append(value)
    print(f"{os.cpu_count()} processors, {runs} runs")
    for name, values in times.items():
        print(f"{name:7s} median {statistics.median(values):.3f} s, minimum {min(values):.3f} s")


if __name__ == "__main__":
    main()
