"""Measure what a GPU can do, by libraries alone: products by cuBLAS in each precision, and copies.

Prints JSON. ``--device cpu`` runs everything once at a small size and reports no numbers.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch

PRECISIONS = ("fp32", "tf32", "bf16")
SECONDS = 0.5  # of each measurement, after as much again to warm up
_GIB = 2**30


def set_precision(precision: str) -> None:
    """Products and convolutions of float32 arrays use TF32 only if that is asked for."""
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def best_seconds(work: Callable[[], object]) -> float:
    """Return the shortest time of the work on the device, measured by its own clock."""
    until = time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        work()
        torch.cuda.synchronize()
    found, until = [], time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(end) / 1e3)
    return min(found)


def product(device: str, precision: str, size: int) -> Callable[[], object]:
    """Return a product of two square matrices, into a third."""
    set_precision(precision)
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b, out = (torch.randn(size, size, device=device).to(kind) for _ in range(3))
    return lambda: torch.matmul(a, b, out=out)


def copies(device: str, size: int) -> dict[str, tuple[Callable[[], object], int]]:
    """Return copies and the bytes that each moves: those on the device read and write."""
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    host = torch.zeros(size // 4, dtype=torch.uint8)
    found = {
        "device_copy_gb_s": (lambda: target.copy_(source), 2 * size),
        "host_to_device_gb_s": (lambda: target[: size // 4].copy_(host), size // 4),
    }
    if device == "cuda":
        pinned = host.pin_memory()
        found["pinned_to_device_gb_s"] = (
            lambda: target[: size // 4].copy_(pinned, non_blocking=True),
            size // 4,
        )
    return found


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    device = parser.parse_args().device
    real = device == "cuda"
    found: dict[str, Any] = {}
    for precision in PRECISIONS:
        size = 8192 if real else 64
        work = product(device, precision, size)
        work()
        found[f"{precision}_tflops"] = 2 * size**3 / best_seconds(work) / 1e12 if real else None
    for name, (work, size) in copies(device, _GIB if real else 4096).items():
        work()
        found[name] = size / best_seconds(work) / 1e9 if real else None
    print(json.dumps(found))


if __name__ == "__main__":
    main()
