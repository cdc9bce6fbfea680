"""Hold the arena planner against instances of the placement problem: arena, lower bound, their ratio, seconds.

Folders name instances in the CSV format of minimalloc (https://github.com/google/minimalloc), which every file
ending in .csv in them is taken for. Columns are found by their names, in any order: id (or buffer, buffer_id),
lower and upper (or start, begin and end; half open: the buffer is gone when step `upper` begins; as closed intervals
minimalloc's challenging instances would not fit into the capacity that they name), size. Further columns may
be there, but gaps and alignments other than 1 are refused. Sizes are taken as they are, without alignment.

Instances of its own making are rectangles of steps and bytes, cut at random into buffers: at every step all bytes
are taken, so that the optimum is the bound, and only plans without any waste reach it. Some cuts are spirals of
five, which no straight cut undoes.

If OR-Tools is installed, an exact model goes on from each plan that is above its bound, for --exact seconds.

Examples:
    python benchmarks/placement.py                                       its own instances, some minutes
    python benchmarks/placement.py --quick --exact 0                     few of them, seconds
    python benchmarks/placement.py minimalloc/benchmarks/challenging     instances from a folder

OR-Tools comes with: pip install -e '.[exact]'
"""

from __future__ import annotations

import argparse
import csv
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import exact
import machine
import tables
from session import bare_parser, place, save, say
from tqdm import tqdm

from graphc.errors import DataError
from graphc.memory import ArenaPlan, Interval, plan_arena
from graphc.memory.planner import DEFAULT_EFFORT

COUNTS = (50, 100, 200, 350, 500)
STEPS, BYTES = 400, 1 << 20  # of the rectangles that are cut
SPIRALS = 0.2  # how often a cut is a spiral, where there is room for one

NAMES = {
    "id": "id", "buffer": "id", "buffer_id": "id", "lower": "lower", "start": "lower", "begin": "lower",
    "upper": "upper", "end": "upper", "size": "size",
}  # fmt: skip


class Instance(NamedTuple):
    """Buffers to be placed, and where they come from."""

    origin: str
    name: str
    intervals: list[Interval]


# ---------------------------------------------------------------- files


def read(path: Path) -> Instance:
    """Return the instance in a file.

    Raises:
        DataError: the file does not have the columns, or a value cannot be.
    """
    with path.open(encoding="utf-8", newline="") as file:
        table = csv.DictReader(file)
        given = [name.strip() for name in table.fieldnames or ()]
        table.fieldnames = [NAMES.get(name, name) for name in given]
        lacking = {"id", "lower", "upper", "size"}.difference(table.fieldnames)
        if lacking:
            raise DataError(
                f"{path}: the columns {', '.join(sorted(lacking))} are missing among {', '.join(given)}"
            )
        rows = list(table)
    for row in rows:
        if row.get("gaps") or row.get("alignment", "1") != "1":
            raise DataError(
                f"{path}: buffer {row['id']} has gaps or an alignment, which graphc's planner has not"
            )
    try:
        found = [Interval(row["id"], int(row["lower"]), int(row["upper"]), int(row["size"])) for row in rows]
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: {error}") from None
    return Instance(path.parent.name, path.stem, found)


# ---------------------------------------------------------------- rectangles


class Rectangle(NamedTuple):
    """Steps [lower, upper) and bytes [bottom, top)."""

    lower: int
    upper: int
    bottom: int
    top: int


def _spiral(r: Rectangle, rng: random.Random) -> list[Rectangle]:
    """Return the rectangle as five: four around a fifth, each reaching past the next one's corner."""
    left, right = sorted(rng.sample(range(r.lower + 1, r.upper), 2))
    low, high = sorted(rng.sample(range(r.bottom + 1, r.top), 2))
    return [
        Rectangle(r.lower, left, r.bottom, high), Rectangle(r.lower, right, high, r.top),
        Rectangle(right, r.upper, low, r.top), Rectangle(left, r.upper, r.bottom, low),
        Rectangle(left, right, low, high),
    ]  # fmt: skip


def _halves(r: Rectangle, rng: random.Random) -> list[Rectangle]:
    """Return the rectangle as two, one after the other or one above the other."""
    if r.upper - r.lower > 1 and (r.top - r.bottom == 1 or rng.random() < 0.5):
        at = rng.randrange(r.lower + 1, r.upper)
        return [r._replace(upper=at), r._replace(lower=at)]
    at = rng.randrange(r.bottom + 1, r.top)
    return [r._replace(top=at), r._replace(bottom=at)]


def cut(count: int, seed: int, steps: int = STEPS, units: int = BYTES // 64) -> list[Rectangle]:
    """Return a full rectangle cut into so many, the larger of two drawn pieces at a time."""
    rng = random.Random(seed)
    pieces = [Rectangle(0, steps, 0, units)]

    def area(k: int) -> int:
        return (pieces[k].upper - pieces[k].lower) * (pieces[k].top - pieces[k].bottom)

    while len(pieces) < count:
        chosen = max(rng.randrange(len(pieces)), rng.randrange(len(pieces)), key=area)
        r = pieces[chosen]
        if area(chosen) == 1:
            continue
        roomy = r.upper - r.lower > 2 and r.top - r.bottom > 2 and len(pieces) + 4 <= count
        pieces[chosen : chosen + 1] = _spiral(r, rng) if roomy and rng.random() < SPIRALS else _halves(r, rng)
    rng.shuffle(pieces)  # or ids would tell where the pieces lay
    return pieces


def rectangle(count: int, seed: int) -> Instance:
    """Return the pieces of a cut rectangle as buffers, without their addresses."""
    intervals = [
        Interval(f"b{k}", r.lower, r.upper, 64 * (r.top - r.bottom)) for k, r in enumerate(cut(count, seed))
    ]
    return Instance("cut", f"{count} seed {seed}", intervals)


# ---------------------------------------------------------------- runs


def instances(options: argparse.Namespace) -> Iterator[Instance]:
    """Yield those of the folders, or else those of its own making; what cannot be read is said."""
    for folder in options.folders:
        for path in sorted(folder.glob("*.csv")):
            try:
                yield read(path)
            except (DataError, OSError, UnicodeError) as error:
                say(f"left out: {error}")
    if not options.folders:
        for count in options.buffers:
            for seed in range(options.seeds):
                yield rectangle(count, seed)


def measure(instance: Instance, effort: int, exact_seconds: float) -> dict[str, Any]:
    """Return the row of an instance."""
    alignment = 64 if instance.origin == "cut" else 1
    start = time.perf_counter()
    plan = plan_arena(instance.intervals, alignment=alignment, effort=effort)
    row = {"origin": instance.origin, "name": instance.name, "buffers": len(instance.intervals)}
    row |= {"seconds": time.perf_counter() - start, **_sizes(plan)}
    if exact_seconds:
        start = time.perf_counter()
        best, proven = exact.plan_exactly(instance.intervals, plan, exact_seconds)
        row["exact"] = {"arena": best.arena_bytes, "proven": proven, "seconds": time.perf_counter() - start}
    return row


def _sizes(plan: ArenaPlan) -> dict[str, Any]:
    return {"bound": plan.lower_bound_bytes, "arena": plan.arena_bytes, "ratio": plan.ratio}


def text(results: dict[str, Any], *, markdown: bool) -> str:
    """Return the table and what it comes to."""
    rows, facts = results["rows"], results["machine"]
    compared = any("exact" in row for row in rows)
    head = ["from", "instance", "buffers", "bound", "arena", "ratio", "seconds"]
    lines = [[*head, *(["exact arena", "ratio", "proven", "seconds"] if compared else [])]]
    for row in rows:
        line = [row["origin"], row["name"], str(row["buffers"]), f"{row['bound']:,}", f"{row['arena']:,}"]
        line += [f"{row['ratio']:.4f}", f"{row['seconds']:.2f}"]
        if "exact" in row:
            best = row["exact"]
            line += [f"{best['arena']:,}", f"{best['arena'] / row['bound']:.4f}"]
            line += ["yes" if best["proven"] else "no", f"{best['seconds']:.1f}"]
        lines.append(line)
    above = f"{facts['cpu']}, Python {facts['python']}, {facts['date']}."
    above += f"\nSizes in bytes, effort {results['setup']['effort']:,}."
    optimal = sum(row["arena"] == row["bound"] for row in rows)
    below = f"{optimal} of {len(rows)} plans meet the bound" + (
        f", the worst ratio is {max(row['ratio'] for row in rows):.4f}." if rows else "."
    )
    if not compared:
        below += f" No exact plans: {results['setup']['no_exact']}."
    return "\n\n".join([above, tables.lay_out(lines, markdown), below])


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = bare_parser(str(__doc__))
    parser.add_argument(
        "folders", nargs="*", type=Path, metavar="FOLDER", help="with CSV files; none: rectangles"
    )
    parser.add_argument("--buffers", nargs="+", type=int, metavar="N",
                        help=f"of a rectangle; default {' '.join(map(str, COUNTS))}, quick 50 100")  # fmt: skip
    parser.add_argument("--seeds", type=int, help="rectangles of each number, default 3, 1 with --quick")
    parser.add_argument("--effort", type=int, default=DEFAULT_EFFORT, metavar="N",
                        help=f"of the planner, default {DEFAULT_EFFORT}")  # fmt: skip
    parser.add_argument("--exact", type=float, default=20, metavar="S",
                        help="seconds of the exact model, default 20, 0 for none")  # fmt: skip
    options = parser.parse_args(arguments)
    place(options, "placement")
    options.buffers = options.buffers or ((50, 100) if options.quick else COUNTS)
    options.seeds = options.seeds or (1 if options.quick else 3)
    for folder in options.folders:
        if not folder.is_dir():
            parser.error(f"{folder} is no folder")
    if min(options.buffers) < 1 or options.seeds < 1 or options.effort < 0 or options.exact < 0:
        parser.error("--buffers and --seeds must be positive, --effort and --exact not negative")
    return options


def main() -> None:
    """Measure, and print the table."""
    options = parse()
    missing = "not installed: ortools" if not exact.installed() else "left out by --exact 0"
    seconds = options.exact if exact.installed() else 0
    if not seconds:
        say(f"exact model skipped: {missing}")
    setup = {"effort": options.effort, "exact_seconds": seconds, "no_exact": missing}
    results: dict[str, Any] = {"machine": machine.describe(1), "setup": setup, "rows": []}
    for instance in tqdm(list(instances(options)), unit="plan", dynamic_ncols=True):
        results["rows"].append(measure(instance, options.effort, seconds))
    print(text(results, markdown=options.markdown))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    save(results, options)


if __name__ == "__main__":
    main()
