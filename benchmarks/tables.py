"""What is computed from the times, and the table of it as text or Markdown."""

from __future__ import annotations

import statistics
from typing import Any

from worker import EMITTERS, TITLES

Row = dict[str, Any]


def add_ratios(row: Row, machine: dict[str, Any]) -> None:
    """The row has graphc's GFLOP/s, its part of the FMA peak, and the fastest peer's time over graphc's.

    The emitters of plain loops are no such peers.
    """
    ours = row["peers"].get("graphc", {}).get("best_ms")
    if ours is None:
        return
    row["gflops"] = row["flops"] / ours / 1e6
    row["percent_of_peak"] = 100 * row["gflops"] / machine["fma_gflops"]
    times = {
        peer: result["best_ms"]
        for peer, result in row["peers"].items()
        if peer not in ("graphc", *EMITTERS) and result.get("best_ms") is not None
    }
    if times:
        row["fastest_peer"] = min(times, key=lambda peer: times[peer])
        row["ratio"] = times[row["fastest_peer"]] / ours


def geometric_means(rows: list[Row]) -> dict[str, dict[str, float]]:
    """Return by mode the geometric mean over the rows of the ratio, for the fastest peer and for each peer."""
    found: dict[str, dict[str, float]] = {}
    for mode in dict.fromkeys(row["mode"] for row in rows):
        timed = [row for row in rows if row["mode"] == mode and "ratio" in row]
        ratios: dict[str, list[float]] = {"fastest": [row["ratio"] for row in timed]}
        for row in timed:
            for peer, result in row["peers"].items():
                if peer != "graphc" and "best_ms" in result:
                    ratio = result["best_ms"] / row["peers"]["graphc"]["best_ms"]
                    ratios.setdefault(peer, []).append(ratio)
        found[mode] = {peer: statistics.geometric_mean(values) for peer, values in ratios.items() if values}
    return found


def milliseconds(value: float) -> str:
    """Return the number with about four digits."""
    return f"{value:.{3 if value < 10 else 2 if value < 100 else 1 if value < 1000 else 0}f}"


def cell(result: Row | None) -> str:
    """Return the best and the median milliseconds, or what stands in their place."""
    if result is None:
        return "-"
    if "best_ms" not in result:
        return "left out"
    return f"{milliseconds(result['best_ms'])} ({milliseconds(result['median_ms'])})"


def _cells(row: Row, peers: list[str], layers: bool) -> list[str]:
    first = [row["net"], str(row["count"] if layers else row["mode"]), str(row["batch"])]
    times = [cell(row["peers"].get(peer)) for peer in peers]
    if "gflops" not in row:
        return [*first, *times, "-", "-", "-"]
    ratio = f"{row['ratio']:.2f}" if "ratio" in row else "-"
    return [*first, *times, ratio, f"{row['gflops']:.1f}", f"{row['percent_of_peak']:.0f} %"]


def lay_out(lines: list[list[str]], markdown: bool) -> str:
    """Return the lines, the head first, as a table."""
    if markdown:
        rule = ["---"] * 3 + ["--:"] * (len(lines[0]) - 3)
        return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if k < 2 else cell.rjust(w) for k, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )  # fmt: skip


def count(number: int, noun: str) -> str:
    """Return the number with its noun."""
    return f"{number} {noun}{'s' if number > 1 else ''}"


def machine_text(results: dict[str, Any]) -> str:
    """Return what the results are measured on, and what that can do."""
    machine = results["machine"]
    names = [f"{name} {version}" for name, version in machine["versions"].items()]
    threads = count(machine["threads"], "thread")
    return (
        f"{machine['cpu']}, {threads}, {machine['isa']}, {machine['compiler']}, "
        f"{' '.join(machine['flags'])}, {machine['date']}.\n{', '.join(names)}.\n"
        f"FMA peak {machine['fma_gflops_one_core']:.0f} GFLOP/s on one core and {machine['fma_gflops']:.0f} on "
        f"all threads, memory {machine['bandwidth_gb_s']:.1f} GB/s, fork and join {machine['fork_join_us']:.1f} us."
    )


def text(results: dict[str, Any], *, markdown: bool) -> str:
    """Return the machine, the table and the geometric means."""
    setup, rows = results["setup"], results["rows"]
    layers = any("conv" in row for row in rows)
    peers = [p for p in TITLES if any(p in row["peers"] for row in rows)]
    head = ["layer", "times"] if layers else ["net", "mode"]
    head += ["batch", *(TITLES[peer] for peer in peers), "fastest peer / graphc", "GFLOP/s", "of peak"]
    table = lay_out([head, *(_cells(row, peers, layers) for row in rows)], markdown)
    above = machine_text(results) + (
        f"\nMilliseconds a call in float32, best (median) of {setup['rounds']} rounds; GFLOP/s are graphc's,"
        "\nof the direct convolutions: Winograd's need fewer products, and may be above the peak."
    )
    below = []
    for mode, means in results["geometric_means"].items():
        parts = [f"{TITLES.get(peer, 'fastest peer')} {value:.2f}" for peer, value in means.items()]
        if parts:
            below.append(
                f"Geometric means of time over graphc's, {mode}: {', '.join(parts)} "
                "(each peer over the rows that it has)."
            )
    return "\n\n".join([above, table, "\n".join(below)])
