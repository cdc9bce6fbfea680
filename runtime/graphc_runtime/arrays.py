"""Named views of a module's flat memory blocks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from graphc_runtime.errors import DTypeError, GraphcError, ShapeError, UnknownNameError

_ALIGNMENT = 64


def aligned(count: int, dtype: np.dtype[Any] | str) -> np.ndarray:
    """Return a zeroed array that starts at a multiple of 64 bytes."""
    kind = np.dtype(dtype)
    raw = np.zeros(count * kind.itemsize + _ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + count * kind.itemsize].view(kind)


class Arrays(MutableMapping[str, np.ndarray]):
    """Named views of one flat block: reading gives a read-only view, assignment checks and copies."""

    def __init__(self, what: str, block: np.ndarray, slots: list[dict[str, Any]], changed: Any = None):
        """Make the views; ``changed`` is called after an assignment."""
        self._what = what
        self._views: dict[str, np.ndarray] = {}
        self._drawn_later: dict[str, Callable[[], np.ndarray]] = {}
        self._changed = changed
        for slot in slots:
            shape = tuple(slot["shape"])
            size = int(np.prod(shape, dtype=np.int64))
            kind = np.dtype(slot.get("dtype", block.dtype))  # constants may be integers
            begin = slot["offset"] * block.itemsize
            held = block.view(np.uint8)[begin : begin + size * kind.itemsize].view(kind)
            self._views[slot["name"]] = held.reshape(shape)

    def _view(self, name: str) -> np.ndarray:
        if name not in self._views:
            known = ", ".join(list(self._views)[:8]) + (", ..." if len(self._views) > 8 else "")
            raise UnknownNameError(f"no {self._what} is called {name!r}; there are {known or 'none'}")
        return self._views[name]

    def draw_later(self, name: str, draw: Callable[[], np.ndarray]) -> None:
        """Postpone a first value until somebody reads it; one that is assigned before that is never drawn.

        Drawing the values of 138 million parameters takes seconds, which a net that loads its weights need
        not spend.
        """
        self._view(name)
        self._drawn_later[name] = draw

    def draw(self) -> None:
        """Give every element its value, the postponed ones too."""
        if self._drawn_later:
            # Filling arrays with random numbers releases Python's lock.
            with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
                list(pool.map(self._draw, list(self._drawn_later)))

    def _draw(self, name: str) -> None:
        draw = self._drawn_later.get(name)
        if draw is not None:
            self._views[name][...] = draw()
            del self._drawn_later[name]

    def __getitem__(self, name: str) -> np.ndarray:
        view = self._view(name).view()
        self._draw(name)
        view.flags.writeable = False
        return view

    def __setitem__(self, name: str, value: Any) -> None:
        view = self._view(name)
        array = np.asarray(value)
        if array.shape != view.shape:
            raise ShapeError(f"{self._what} {name!r}: expected shape {view.shape}, got {array.shape}")
        if array.dtype.kind not in "fiub" or (
            array.dtype.kind == "f" and array.dtype.itemsize > view.itemsize
        ):
            raise DTypeError(
                f"{self._what} {name!r}: expected {view.dtype}, got {array.dtype}; convert it first"
            )
        view[...] = array
        self._drawn_later.pop(name, None)
        if self._changed is not None:
            self._changed()

    def __delitem__(self, name: str) -> None:
        raise GraphcError(f"{self._what} {name!r}: a compiled module's arrays cannot be deleted")

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)
