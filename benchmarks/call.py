"""Measure what a call from Python costs beside the C work: a net of one layer of 4 by 4, called over and over.

The C function alone is called with pointers made beforehand; everything else that a call takes (finding the
entry point, checks of names, shapes and dtypes, new arrays for the outputs, pointers to arrays) is the rest.

Examples:
    python benchmarks/call.py                five seconds
    python benchmarks/call.py --repeats 20   on a machine that has other work to do
"""

from __future__ import annotations

import argparse
import statistics
import timeit
from collections.abc import Callable

import numpy as np
import tables

import graphc as gc

CALLS = 20000  # in a repetition


def ways() -> dict[str, Callable[[], object]]:
    """Return the C function alone, and the ways to call it from Python."""
    x = gc.input("x", ("N", 4))
    module = gc.compile({"y": gc.nn.linear(x, 4, name="layer")}, batch=1, name="call")
    array, out = np.ones((1, 4), np.float32), {"y": np.empty((1, 4), np.float32)}
    module.predict(x=array)
    pointer = module.ffi.typeof("float[]")
    read, written = (module.ffi.from_buffer(pointer, a) for a in (array, out["y"]))
    function, context = module.lib.call_predict, module._context
    return {
        "C function alone": lambda: function(context, 1, read, array.nbytes, written, array.nbytes),
        "predict(x=array)": lambda: module.predict(x=array),
        "predict(x=array, out=arrays)": lambda: module.predict(x=array, out=out),
    }


def main() -> None:
    """Measure in turns, and print microseconds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7, help="of each way, in turns (default 7)")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    options = parser.parse_args()
    calls = ways()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(options.repeats):
        for name, call in calls.items():
            times[name].append(timeit.timeit(call, number=CALLS) / CALLS * 1e6)
    alone = min(times["C function alone"])
    lines = [["call", "best, us", "median, us", "beside the C work, us"]]
    for name, found in times.items():
        best = min(found)
        lines.append([name, f"{best:.2f}", f"{statistics.median(found):.2f}", f"{best - alone:.2f}"])
    print(tables.lay_out(lines, options.markdown))


if __name__ == "__main__":
    main()
