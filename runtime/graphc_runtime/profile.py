"""How long every kernel of an entry point takes, beside what it computes and moves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from graphc_runtime.errors import GraphcError

_SHOWN = 40  # columns of a name


@dataclass(frozen=True)
class KernelTime:
    """One call of a kernel: its place, function, nodes and lines, and the median of its seconds.

    ``flops`` and ``bytes`` count every operation once, and every element of every operand once.
    """

    number: int
    kernel: str
    nodes: tuple[str, ...]
    sources: tuple[str, ...]
    seconds: float
    flops: int
    bytes: int

    @property
    def gflops(self) -> float:
        """GFLOP/s."""
        return self.flops / self.seconds / 1e9 if self.seconds > 0 else 0.0

    @property
    def gb_s(self) -> float:
        """GB/s."""
        return self.bytes / self.seconds / 1e9 if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class Profile:
    """The kernels of one entry point in the order in which they run, and what the machine can do.

    ``machine`` has ``fma_gflops`` (GFLOP/s of multiply-adds in float32 on all threads) and ``bandwidth_gb_s``; it is
    empty where nobody has measured them, as on a device, whose ``threads`` are 0.
    """

    module: str
    entry: str
    batch: int
    threads: int
    repeats: int
    kernels: tuple[KernelTime, ...]
    machine: Mapping[str, float]

    @property
    def seconds(self) -> float:
        """The sum of all kernels' medians."""
        return sum(kernel.seconds for kernel in self.kernels)

    def percent_of_peak(self, kernel: KernelTime) -> float:
        """Return the time that the machine needs at least, by its peak or its bandwidth, in percent of the kernel's.

        Data that is in a cache moves faster than from memory, so that this may be above 100.

        Raises:
            GraphcError: what the machine can do is not known.
        """
        if not self.machine:
            raise GraphcError(
                f"profile of {self.module!r}: what its device can do at the most is not measured"
            )
        least = max(
            kernel.flops / self.machine["fma_gflops"] / 1e9,
            kernel.bytes / self.machine["bandwidth_gb_s"] / 1e9,
        )
        return 100 * least / kernel.seconds if kernel.seconds > 0 else 0.0

    def table(self, most: int | None = None) -> str:
        """Return a line for each kernel, the slowest first, at most so many."""
        total = self.seconds or 1.0
        slowest = sorted(self.kernels, key=lambda kernel: -kernel.seconds)
        roof, percent = "peak and bandwidth of the device are not measured", ""
        if self.machine:
            percent = " of roof"
            peak, bandwidth = self.machine["fma_gflops"], self.machine["bandwidth_gb_s"]
            roof = f"peak {peak:.0f} GFLOP/s, memory {bandwidth:.1f} GB/s"
        lines = [
            f"{self.module} {self.entry}, batch {self.batch}, {self._where()}: {1e3 * self.seconds:.3f} ms in "
            f"{len(self.kernels)} kernels (medians of {self.repeats})",
            roof,
            "",
            f"{'us':>10} {'share':>6} {'GFLOP/s':>8} {'GB/s':>7}{percent}  kernel, nodes, line",
        ]
        for kernel in slowest[:most]:
            what = f"{kernel.kernel}: {', '.join(kernel.nodes)}"
            what = what if len(what) <= _SHOWN else what[: _SHOWN - 3] + "..."
            percent = f" {self.percent_of_peak(kernel):6.0f}%" if self.machine else ""
            lines.append(
                f"{1e6 * kernel.seconds:10.1f} {100 * kernel.seconds / total:5.1f}% {kernel.gflops:8.1f} "
                f"{kernel.gb_s:7.1f}{percent}  {what}, {', '.join(kernel.sources[:1])}"
            )
        left = len(slowest) - len(slowest[:most])
        return "\n".join([*lines, *([f"... and {left} more"] if left else [])]) + "\n"

    def _where(self) -> str:
        return f"threads {self.threads}" if self.threads else "on a device"

    def trace(self, path: str | Path) -> None:
        """Write the kernels as a trace in JSON that chrome://tracing and Perfetto show."""
        events = []
        begin = 0.0
        for kernel in self.kernels:
            arguments = {
                "nodes": ", ".join(kernel.nodes), "lines": ", ".join(kernel.sources),
                "GFLOP/s": round(kernel.gflops, 2), "GB/s": round(kernel.gb_s, 2),
            }  # fmt: skip
            events.append({
                "name": kernel.kernel, "cat": self.entry, "ph": "X", "pid": 1, "tid": 1, "ts": begin,
                "dur": 1e6 * kernel.seconds, "args": arguments,
            })  # fmt: skip
            begin += 1e6 * kernel.seconds
        text = json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}, indent=1)
        Path(path).write_text(text + "\n")

    def plot(self, path: str | Path) -> None:
        """Draw the roofline: each kernel's GFLOP/s over its FLOPs for each byte, the larger the longer it takes.

        Where the roof is not known the kernels stand alone. Needs matplotlib: pip install 'graphc[train]'.
        """
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        counted = [k for k in self.kernels if k.flops and k.bytes and k.seconds > 0]
        figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
        intensities = [k.flops / k.bytes for k in counted] or [1.0]
        if self.machine:
            peak, bandwidth = self.machine["fma_gflops"], self.machine["bandwidth_gb_s"]
            low, high = min(*intensities, 0.1), max(*intensities, 10 * peak / bandwidth)
            axes.plot(
                [low, peak / bandwidth, high], [low * bandwidth, peak, peak], color="#444444", label="roof"
            )
        areas = [20 + 2000 * k.seconds / self.seconds for k in counted]
        axes.scatter(intensities, [k.gflops for k in counted], areas, alpha=0.5, color="#1f77b4")
        for kernel in sorted(counted, key=lambda k: -k.seconds)[:8]:
            axes.annotate(kernel.kernel, (kernel.flops / kernel.bytes, kernel.gflops), fontsize=7)
        axes.set(
            xscale="log", yscale="log", xlabel="FLOPs for each byte", ylabel="GFLOP/s",
            title=f"{self.module} {self.entry}, batch {self.batch}, {self._where()}",
        )  # fmt: skip
        axes.grid(alpha=0.3, which="both")
        figure.savefig(path)
        pyplot.close(figure)
