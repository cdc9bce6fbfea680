"""Time the compilation of nets, inference and training together, cold and from the cache.

Each measurement is a new process; the cache is a temporary folder. Prints the import, the first and the
second compilation in seconds (median and minimum of the runs), the lines of generated source, and the
number of usable processors.

example: python benchmarks/compile_time.py --nets resnet50 googlenet vgg16 --runs 3
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

CODE = """
import json, sys, time
start = time.perf_counter()
import graphc as gc
imported = time.perf_counter()
name = sys.argv[1]
small = name in ("lenet", "mlp")
x = gc.input("x", ("N", *((1, 32, 32) if small else (3, 224, 224))))
y = gc.input("y", ("N",), dtype="int32")
logits = getattr(gc.models, name)(x)
loss = gc.losses.cross_entropy(logits, y)
optimizer = gc.SGD(lr=0.05, momentum=0.9)
module = gc.compile({"logits": logits}, loss=loss, optimizer=optimizer, batch=64 if small else 16, name=name)
done = time.perf_counter()
lines = sum(text.count("\\n") for text in module.source.values())
print(json.dumps({"import": imported - start, "compile": done - imported, "lines": lines}))
"""


def run(net: str, cache: str) -> dict[str, float]:
    """Return the seconds of the import and of the compilation in a new process, and the lines of source."""
    environment = dict(os.environ, GRAPHC_CACHE_DIR=cache)
    done = subprocess.run(
        [sys.executable, "-c", CODE, net], env=environment, check=True, capture_output=True, text=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure(net: str, runs: int) -> dict[str, list[float]]:
    """Return the times of all runs, each with a cache that is empty at first."""
    times: dict[str, list[float]] = {"import": [], "cold": [], "cached": [], "lines": []}
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as cache:
            cold, cached = run(net, cache), run(net, cache)
        times["import"].append(cached["import"])
        times["cold"].append(cold["compile"])
        times["cached"].append(cached["compile"])
        times["lines"].append(cold["lines"])
    return times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", nargs="+", default=["lenet"], metavar="NET", help="default: lenet")
    parser.add_argument("--runs", type=int, default=5, help="default: 5")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the times there")
    options = parser.parse_args()
    print(f"{os.cpu_count()} processors, {options.runs} runs; seconds, median (minimum)")
    results = {}
    for net in options.nets:
        times = results[net] = measure(net, options.runs)
        shown = [
            f"{name} {statistics.median(times[name]):.3f} ({min(times[name]):.3f})"
            for name in ("import", "cold", "cached")
        ]
        print(f"{net:12s} {', '.join(shown)}, {int(times['lines'][0]):,} lines", flush=True)
    if options.json is not None:
        options.json.write_text(
            json.dumps({"processors": os.cpu_count(), "seconds": results}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
