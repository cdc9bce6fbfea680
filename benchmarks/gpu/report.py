"""What is printed of the results: ceilings, the comparison with PyTorch, and the tables of times."""

from __future__ import annotations

from typing import Any

from gpu import speed
from tables import lay_out, milliseconds

Row = dict[str, Any]


def ceilings(found: Row) -> str:
    """Return the ceilings, a line each."""
    return "\n".join(
        f"{name}: {'not measured' if value is None else f'{value:,.1f}'}" for name, value in found.items()
    )


def comparison(rows: list[Row]) -> str:
    """Return the table of differences from PyTorch."""
    lines = [["net", "steps", "outputs", "gradients", "losses", ""]]
    for row in rows:
        values = [f"{row[what]:.1e}" if what in row else "-" for what in ("outputs", "gradients", "losses")]
        lines.append([row["net"], str(row["steps"]), *values, ", ".join(row["wrong"]) or "same"])
    return lay_out(lines, markdown=False)


def _time(result: Row | None, way: str) -> str:
    """Return the best and the median milliseconds of a way, or what stands in their place."""
    if result is None:
        return "-"
    if "left_out" in result:
        return "out of memory" if result["left_out"].startswith("out of memory") else "left out"
    found = result.get(way)
    if way == "kernels":
        return milliseconds(result["kernels_ms"]) if "kernels_ms" in result else "-"
    if found is None:
        return "-"
    return (
        f"{milliseconds(found['best_ms'])} ({milliseconds(found['median_ms'])})"
        if "best_ms" in found
        else "ran"
    )


def _table(rows: list[Row], way: str, ratio: str, markdown: bool) -> str:
    peers = [peer for peer in speed.PEERS if any(peer in row["peers"] for row in rows)]
    head = [
        "net",
        "mode",
        "batch",
        "precision",
        *(speed.titles()[peer] for peer in peers),
        "fastest peer / graphc",
    ]
    percent = way == "kernels"
    lines = [[*head, "graphc, of the product"] if percent else head]
    for row in rows:
        line = [row["net"], row["mode"], str(row["batch"]), row["precision"]]
        line += [_time(row["peers"].get(peer), way) for peer in peers]
        line.append(f"{row[ratio]:.2f}" if ratio in row else "-")
        if percent:
            part = row["peers"].get("graphc", {}).get("percent_of_product")
            line.append(f"{part:.0f} %" if part is not None else "-")
        lines.append(line)
    return lay_out(lines, markdown)


def times(rows: list[Row], *, markdown: bool) -> str:
    """Return the tables of times, and what was left out."""
    measured = [row for row in rows if "not_reached" not in row]
    parts = []
    for title, way, ratio in (
        ("Milliseconds a call, best (median): NumPy arrays in, NumPy arrays out.", "host", "host_ratio"),
        ("Milliseconds a call with images on the device, best (median); graphc has no such calls.", "device", ""),
        ("Milliseconds of a call's kernels alone, without copies to and from the host.", "kernels", "kernels_ratio"),
    ):  # fmt: skip
        parts += [title, _table(measured, way, ratio, markdown)]
    below = [
        f"{speed.name_of(row)}: {speed.titles().get(peer, peer)} left out: {result['left_out']}"
        for row in measured
        for peer, result in row["peers"].items()
        if "left_out" in result
    ]
    below += [
        f"{speed.name_of(row)}: {speed.titles()[peer]}: time of kernels unknown: {result['kernels_unknown']}"
        for row in measured
        for peer, result in row["peers"].items()
        if "kernels_unknown" in result
    ]
    below += [
        f"{speed.name_of(row)}: not reached: {row['not_reached']}" for row in rows if "not_reached" in row
    ]
    return "\n\n".join([*parts, "\n".join(below)]).strip()
