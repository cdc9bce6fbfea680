"""Read compilers' assembly (x86 in AT&T's syntax, aarch64): do loops of multiply-adds keep their sums in registers?

A spill is a vector register that such a loop stores, as it only reads and sums, or that it loads from a fixed place
on the stack. What lies on the stack on purpose, a tile or a table of results, is read there with an index or by a
pointer, as the loop goes through it.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

_MULTIPLY_ADD = re.compile(r"vfmadd\d+p[sd]\s|fmla\s")
_VECTOR = re.compile(r"%[xyz]mm\d|(?<![\w.])[bhsdqv]\d+\b")
_LABEL = re.compile(r"([\w.$]+):")
_COMMENT = re.compile(r"^\s*#.*|\s#\s.*|\s*//.*")
_JUMP = re.compile(r"(?:j\w+|b|b\.?\w\w|cbn?z|tbn?z)\s+(?:\S+,\s*)*(\.L\w+)$")
_END = re.compile(r"(?:jmp|b|ret\w?|br|ud2|brk)(?:\s|$)")  # after which the next line is not reached
_FRAME = {"%rbp": r"movq\s+%rsp, %rbp", "x29": r"(?:mov\s+x29, sp|add\s+x29, sp,)"}


@dataclass(frozen=True)
class Loop:
    """An innermost loop of multiply-adds."""

    function: str
    instructions: tuple[str, ...]
    multiply_adds: int
    spills: tuple[str, ...]


def multiply_add_loops(assembly: str) -> list[Loop]:
    """Return all innermost loops that hold vector multiply-adds.

    Where compilers have unrolled every loop of a small kernel there is none: its code runs into what stores the sums.
    """
    found = []
    for function, lines in _functions(assembly):
        slot = _slot(lines)
        blocks, following = _blocks(lines)
        seen = set()
        for start, block in enumerate(blocks):
            if start in seen or not any(map(_MULTIPLY_ADD.match, block)):
                continue
            path = _way_back(following, start)
            if not 1 <= len(path) <= 2:  # more than a loop without branches, which compilers divide at times
                continue
            seen.update(path)
            code = [line for k in path for line in blocks[k]]
            count = sum(bool(_MULTIPLY_ADD.match(line)) for line in code)
            spills = [line for line in code if _VECTOR.search(line) and (_stores(line) or slot.search(line))]
            found.append(Loop(function, tuple(code), count, tuple(spills)))
    return found


def _functions(assembly: str) -> Iterator[tuple[str, list[str]]]:
    """Give each function's name with its labels (at the margin) and instructions."""
    names = set(re.findall(r"\.type\s+(\S+?),\s*[@%]function", assembly))
    name, body = "", []
    for raw in assembly.splitlines():
        line = _COMMENT.sub("", raw).rstrip()
        label = _LABEL.match(line)
        if label and label[1] in names:
            name, body = label[1], []
        elif label:
            body.append(line)
        elif re.match(r"\s+[a-z]", line):
            body.append(line.strip())
        elif re.match(r"\s+\.size\s", line) and name:
            yield name, body
            name = ""


def _blocks(lines: list[str]) -> tuple[list[list[str]], list[list[int]]]:
    """Divide a function at labels and jumps; return the blocks, and for each those that may follow it."""
    blocks: list[list[str]] = [[]]
    places: dict[str, int] = {}
    for line in lines:
        label = _LABEL.fullmatch(line)
        if blocks[-1] and (label or _JUMP.match(blocks[-1][-1]) or _END.match(blocks[-1][-1])):
            blocks.append([])
        if label:
            places[label[1]] = len(blocks) - 1
        else:
            blocks[-1].append(line)
    following: list[list[int]] = []
    for k, block in enumerate(blocks):
        last = block[-1] if block else ""
        jump = _JUMP.match(last)
        following.append([places[jump[1]]] if jump and jump[1] in places else [])
        if not _END.match(last) and k + 1 < len(blocks):
            following[-1].append(k + 1)
    return blocks, following


def _way_back(following: list[list[int]], start: int) -> list[int]:
    """Return the blocks on the shortest way from a block to itself, its innermost loop; [] if there is none."""
    before: dict[int, int] = {}
    waiting = deque([start])
    while waiting:
        block = waiting.popleft()
        for after in following[block]:
            if after == start:
                path = [block]
                while path[-1] != start:
                    path.append(before[path[-1]])
                return path[::-1]
            if after not in before:
                before[after] = block
                waiting.append(after)
    return []


def _stores(line: str) -> bool:
    """Whether the instruction writes memory: x86 names the target last, ARM has instructions of its own."""
    return line.endswith(")") if "%" in line else line.startswith("st")


def _slot(lines: list[str]) -> re.Pattern[str]:
    """Return what a fixed place in the function's frame looks like, without an index."""
    text = "\n".join(lines)
    frames = [name for name, sets in _FRAME.items() if re.search(sets, text)]
    x86 = "|".join(["%rsp", *(f for f in frames if f == "%rbp")])
    arm = "|".join(["sp", *(f for f in frames if f == "x29")])
    return re.compile(rf"(?:^|[\s,])-?\d*\((?:{x86})\)|\[(?:{arm})(?:, #?-?\d+)?\]")
