"""Large nets become several translation units, so that the C compiler can work on them in parallel."""

from __future__ import annotations

from collections.abc import Sequence

# Distinct kernels, or kernels with loops of their own, from which a module is split, and the lines of a unit:
# compiling one takes seconds.
SPLIT_FROM = 100
SPLIT_FROM_ANCHORS = 24
UNIT_LINES = 2000


def divide(texts: Sequence[str]) -> list[list[str]]:
    """Return the kernels' texts in order, cut into units of about equal length."""
    lines = [t.count("\n") + 1 for t in texts]
    count = max(1, -(-sum(lines) // UNIT_LINES))
    target = sum(lines) / count
    units: list[list[str]] = [[]]
    done = 0
    for text, length in zip(texts, lines, strict=True):
        if units[-1] and done >= target * len(units):
            units.append([])
        units[-1].append(text)
        done += length
    return units
