"""Memory of a device, which the compiled library gives out, as arrays that the host sees as well."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np

from graphc_runtime.errors import DeviceError

BLOCKS = ("params", "grads", "slots", "state", "folded", "frozen")
"""A module's blocks of memory beside its arena."""


class Device:
    """The device of one library."""

    def __init__(self, ffi: Any, lib: Any, name: str):
        """Look for the device.

        Raises:
            DeviceError: there is none, or its driver does not fit.
        """
        self._ffi, self._lib, self._name = ffi, lib, name
        text = ffi.new("char[256]")
        if self._function("device_error")(text, 256):
            said = ffi.string(text).decode(errors="replace") or "no device"
            raise DeviceError(
                f"module {name!r}: no GPU can be used ({said}); target='cuda-emulated' runs the same source "
                "without one"
            )

    def _function(self, name: str) -> Any:
        return getattr(self._lib, f"{self._name}_{name}")

    def check_room(self, manifest: Mapping[str, Any]) -> None:
        """Compare what a module needs with what the device has free, before any of it is allocated.

        Managed memory could be more, but a step that moves its weights between host and device is of no use.

        Raises:
            DeviceError: it is too little; the message has the bytes of every block, and what makes them fewer.
        """
        sizes, item = manifest["sizes"], np.dtype(manifest["dtype"]).itemsize
        needed = {name: sizes[name] * item for name in BLOCKS if sizes[name]}
        needed["arena"] = sizes["arena_bytes"]
        whole = sum(needed.values())
        free, total = self._memory()
        if whole > free:
            gc.collect()  # modules that nobody uses any more may still have theirs
            free, total = self._memory()
        if whole > free:
            listed = ", ".join(f"{name} {size:,}" for name, size in needed.items())
            raise DeviceError(
                f"module {self._name!r}: {whole:,} bytes are needed ({listed}), and {free:,} of the device's "
                f"{total:,} are free; {_remedies(manifest, needed)}"
            )

    def _memory(self) -> tuple[float, float]:
        """Return how many bytes the device has free, and in all; infinitely many where it does not tell."""
        free, total = self._ffi.new("size_t *"), self._ffi.new("size_t *")
        if self._function("device_memory")(free, total):
            return math.inf, math.inf  # allocating will tell
        return free[0], total[0]

    def aligned(self, count: int, dtype: np.dtype[Any] | str) -> np.ndarray:
        """Return zeros in memory that the host and the device see, which is given back with the array.

        Raises:
            DeviceError: there is not enough.
        """
        whole = self._allocated(count * np.dtype(dtype).itemsize, managed=True)
        whole[:] = 0
        return whole.view(dtype)

    def arena(self, size: int) -> np.ndarray:
        """Return the place of bytes that the device alone may touch.

        Raises:
            DeviceError: there is not enough.
        """
        return self._allocated(size, managed=False)

    def _allocated(self, size: int, managed: bool) -> np.ndarray:
        memory = self._function("allocate")(size, int(managed))
        if memory == self._ffi.NULL:
            raise DeviceError(f"module {self._name!r}: the device has no {size:,} bytes left")
        whole = np.frombuffer(self._ffi.buffer(memory, max(size, 1)), np.uint8)
        weakref.finalize(whole, self._function("release"), memory)
        return whole[:size]

    def owns(self, module: object, context: Any, memory: np.ndarray) -> None:
        """Give back what the device keeps for a context when its module is gone."""
        weakref.finalize(module, _close, self._function("close"), context, memory)


def _close(close: Any, context: Any, memory: np.ndarray) -> None:
    del memory  # lives until here
    close(context)


def _remedies(manifest: Mapping[str, Any], needed: Mapping[str, int]) -> str:
    """Return what the user can do about a module that is too large."""
    found = ["a smaller batch makes the arena smaller"]
    if any(entry["name"] == "train_step" for entry in manifest["entries"]):
        found.append("memory_budget= that of training")
    learned = [slot for slot in manifest["params"] if slot["trainable"]]
    if "grads" in needed and manifest.get("lr") is not None and all(slot["gradient"] for slot in learned):
        found.append("keep_gradients=False leaves out large gradients")
    return ", ".join(found)
