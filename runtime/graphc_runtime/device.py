"""Memory of a device, which the compiled library gives out, as arrays that the host sees as well."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from graphc_runtime.errors import DeviceError


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
