"""Timing the entry points of a module of candidates, with caches as a net would leave them."""

from __future__ import annotations

import math
from collections.abc import Callable
from time import perf_counter, thread_time
from typing import Any

import numpy as np

from graphc.artifact import make_manifest
from graphc.build import BuildOptions, build_extension
from graphc.emit.c import emit_c
from graphc.program.ir import Program
from graphc_runtime.arrays import aligned
from graphc_runtime.module import Module

_LEAST_SECONDS = 1e-4  # shorter calls are repeated, for the clock's sake
_SWEPT_BYTES = 2**26  # at the most: more than the caches of a core hold
_DRAWN = 2**16  # random numbers; longer arrays repeat them


class Bench(Module):
    """A module of candidates. Its parameters are random; arguments are made for one candidate at a time."""

    def __init__(self, program: Program, options: BuildOptions, threads: int):
        """Emit, build and load the module, and run its fold step."""
        emitted = emit_c(program)
        library = build_extension(program.name, emitted.sources, emitted.cdef, options)
        self._clock = _clock(threads)
        super().__init__(make_manifest(program, emitted, None), library, {})
        self.threads = threads
        fill(self._blocks["params"])
        self._fold()

    def timer(self, batch: int, moved: int) -> Callable[[str], float]:
        """Return what times a call of an entry point at a batch, in seconds.

        ``moved`` is how many bytes a net moves from one call of a kernel to the next: before each timing so many
        are written, and then the inputs, as the preceding kernel would. Weights and results are then as far away
        as they will be in the net.
        """
        swept = np.zeros(min(moved, _SWEPT_BYTES), dtype=np.uint8)
        arrays: dict[str, np.ndarray] = {}
        arguments: dict[str, list[Any]] = {}
        repeats: dict[str, int] = {}
        clock = self._clock

        def seconds(name: str) -> float:
            entry = self._entries[name]
            call = self._function(name)
            if name not in arguments:
                given: list[Any] = []
                for argument in (*entry.inputs, *entry.outputs):
                    wanted = argument.at(batch)
                    if argument.name not in arrays:
                        arrays[argument.name] = fill(aligned(math.prod(wanted.shape), wanted.dtype))
                    given += (self.ffi.from_buffer(wanted.pointer, arrays[argument.name]), wanted.size)
                arguments[name] = given
                begin = perf_counter()
                self._checked(call(self._context, batch, *given))
                repeats[name] = max(1, int(_LEAST_SECONDS / (perf_counter() - begin)))
            given, times = arguments[name], repeats[name]
            swept.fill(1)
            for argument in entry.inputs:
                array = arrays[argument.name]
                np.copyto(array, array)
            begin = clock()
            for _ in range(times):
                call(self._context, batch, *given)
            return (clock() - begin) / times

        return seconds

    def _checked(self, code: int) -> None:
        assert code == 0, self.ffi.string(self._function("message")(self._context))


def _clock(threads: int) -> Callable[[], float]:
    """Return the clock to time with: a thread that works alone need not count what others take from it.

    Where the thread's own clock only advances in long steps, it is no use.
    """
    begin, until = thread_time(), perf_counter() + 0.1 * _LEAST_SECONDS
    while perf_counter() < until:
        pass
    return thread_time if threads == 1 and 0 < thread_time() - begin < _LEAST_SECONDS else perf_counter


def fill(array: np.ndarray) -> np.ndarray:
    """Return the array with random numbers in it: zeros would all lie in one page of memory."""
    if array.dtype.kind == "f":
        drawn = np.random.default_rng(0).standard_normal(min(array.size, _DRAWN)).astype(array.dtype)
        for start in range(0, array.size, _DRAWN):
            array[start : start + _DRAWN] = drawn[: array.size - start]
    else:
        array.fill(0)
    return array
