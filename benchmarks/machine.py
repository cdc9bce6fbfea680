"""What the machine can do, and what it is."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path
from typing import Any

from graphc.build import BuildOptions, measure_machine, target_macros
from graphc.build.compiler import find_compiler
from graphc.isa import isa_of


def measure(threads: int) -> dict[str, float]:
    """Return what the machine can do, measured anew: see ``graphc.build.machine``."""
    measure_machine.cache_clear()
    return measure_machine(threads)


def best_of(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    """Return the better of two measurements: the larger speeds, and the shorter time."""
    return {
        key: (min if key.endswith("_us") else max)(value, second.get(key, value))
        for key, value in first.items()
    }


def describe(threads: int) -> dict[str, Any]:
    """Return what the numbers are measured on: processor, compiler, flags, date."""
    options = BuildOptions()
    model, flags = platform.processor(), ""
    if Path("/proc/cpuinfo").exists():
        lines = [line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line]
        facts = {key.strip(): value.strip() for key, value in lines}
        model, flags = facts.get("model name", model), facts.get("flags", "")
    vectors = [flag for flag in flags.split() if flag.startswith(("avx", "fma", "amx", "f16c"))]
    return {
        "cpu": model,
        "vector_extensions": vectors,
        "cores": os.cpu_count(),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "compiler": find_compiler().headline,
        "flags": list(options.optimisation),
        "isa": isa_of(target_macros(options)),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
