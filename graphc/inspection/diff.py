"""What differs between two compilations: graphs, kernels, memory and source, from the data of ``describe``."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_MOST = 12  # lines of one kind


@dataclass(frozen=True)
class Difference:
    """One difference: where ("train_step kernels", for example), and what it is."""

    where: str
    what: str

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.where}: {self.what}"


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Difference]:
    """Return what is in one of two descriptions and not, or not so, in the other; empty if they are the same."""
    found = [
        Difference("module", f"{key} {a[key]!r} -> {b[key]!r}")
        for key in ("name", "dtype", "batch", "isa") if a[key] != b[key]
    ]  # fmt: skip
    found += _changed("parameters", _texts(a["parameters"]), _texts(b["parameters"]))
    found += _graph("written graph", a["written"], b["written"])
    for name in dict.fromkeys((*a["entries"], *b["entries"])):
        if name not in a["entries"] or name not in b["entries"]:
            found.append(
                Difference(name, "there is none" + (" any more" if name in a["entries"] else " before"))
            )
            continue
        one, two = a["entries"][name], b["entries"][name]
        found += _graph(f"{name} graph", one["graph"], two["graph"])
        found += _kernels(name, one["kernels"], two["kernels"])
        found += _memory(name, one["plan"], two["plan"])
    found += _source(a["source"], b["source"])
    return found


def _texts(parameters: Mapping[str, Any]) -> list[str]:
    return [f"{name} {tuple(shape)}" for name, shape in parameters.items()]


def _changed(where: str, a: list[str], b: list[str]) -> Iterator[Difference]:
    """Yield the lines that only one of two lists has."""
    gone, new = Counter(a) - Counter(b), Counter(b) - Counter(a)
    lines = [f"- {line}" for line in gone.elements()] + [f"+ {line}" for line in new.elements()]
    yield from _first(where, lines)


def _first(where: str, lines: Sequence[str]) -> Iterator[Difference]:
    """Yield the first lines, and how many are left out."""
    for line in lines[:_MOST]:
        yield Difference(where, line)
    if len(lines) > _MOST:
        yield Difference(where, f"... and {len(lines) - _MOST} more")


def _graph(where: str, a: list[dict[str, Any]], b: list[dict[str, Any]]) -> Iterator[Difference]:
    """Yield nodes by op and shape: numbers in names move with every node that is added."""

    def text(row: dict[str, Any]) -> str:
        attributes = f" {{{row['attributes']}}}" if row["attributes"] else ""
        return f"{row['op']} {row['dtype']}{row['shape']}{attributes}"

    if len(a) != len(b):
        yield Difference(where, f"{len(a)} -> {len(b)} nodes")
    yield from _changed(where, [text(row) for row in a], [text(row) for row in b])


def _kernels(name: str, a: list[dict[str, Any]], b: list[dict[str, Any]]) -> Iterator[Difference]:
    where = f"{name} kernels"
    if len(a) != len(b):
        yield Difference(where, f"{len(a)} -> {len(b)}")
    for key in ("flops", "bytes"):
        before, after = (sum(row[key] for row in rows) for rows in (a, b))
        if before != after:
            yield Difference(where, f"{before:,} -> {after:,} {key} in all")
    texts = [[f"{r['function']} ({r['template']}): {', '.join(r['nodes'])}" for r in rows] for rows in (a, b)]
    yield from _changed(where, *texts)
    yield from _costs(
        where, *(list(zip(text, rows, strict=True)) for text, rows in zip(texts, (a, b), strict=True))
    )
    if Counter(texts[0]) == Counter(texts[1]) and texts[0] != texts[1]:
        yield Difference(where, "run in another order")


def _costs(
    where: str, a: list[tuple[str, dict[str, Any]]], b: list[tuple[str, dict[str, Any]]]
) -> Iterator[Difference]:
    """Yield what kernels that both have, the n-th with the n-th of a text, cost more or less."""
    others: dict[str, list[dict[str, Any]]] = {}
    for text, row in b:
        others.setdefault(text, []).append(row)
    lines = []
    for text, before in a:
        if not others.get(text):
            continue
        after = others[text].pop(0)
        changes = [f"{before[k]:,} -> {after[k]:,} {k}" for k in ("flops", "bytes") if before[k] != after[k]]
        if changes:
            lines.append(f"{before['function']}: {', '.join(changes)}")
    yield from _first(where, lines)


def _memory(name: str, a: dict[str, Any], b: dict[str, Any]) -> Iterator[Difference]:
    where = f"{name} memory"
    for key in ("arena_bytes", "lower_bound_bytes", "kept_bytes"):
        if a[key] != b[key]:
            yield Difference(where, f"{key} {a[key]:,} -> {b[key]:,} ({b[key] - a[key]:+,})")
    sizes = [{f["name"]: f["bytes"] for f in plan["buffers"]} for plan in (a, b)]
    changed = [n for n in dict.fromkeys((*sizes[0], *sizes[1])) if sizes[0].get(n) != sizes[1].get(n)]
    shown = [[f"{size[n]:,}" if n in size else "none" for n in changed] for size in sizes]
    yield from _first(where, [f"{n} {one} -> {two}" for n, one, two in zip(changed, *shown, strict=True)])
    if not changed and a["arena_bytes"] == b["arena_bytes"] and a["buffers"] != b["buffers"]:
        yield Difference(where, "the same buffers at other places or times")


def _source(a: Mapping[str, str], b: Mapping[str, str]) -> Iterator[Difference]:
    for file in dict.fromkeys((*a, *b)):
        one, two = a.get(file, "").splitlines(), b.get(file, "").splitlines()
        if one == two:
            continue
        matcher = (
            difflib.SequenceMatcher(None, one, two, autojunk=False) if len(one) + len(two) < 4000 else None
        )
        if matcher is None:
            gone, new = Counter(one) - Counter(two), Counter(two) - Counter(one)
            yield Difference(f"source {file}", f"{gone.total()} lines less, {new.total()} more")
            continue
        codes = [c for c in matcher.get_opcodes() if c[0] != "equal"]
        less, more = sum(c[2] - c[1] for c in codes), sum(c[4] - c[3] for c in codes)
        yield Difference(f"source {file}", f"{less} lines less, {more} more, first at line {codes[0][3] + 1}")
