"""Entry points as functions of NumPy arrays: what a call needs is made once, and checked on every call."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from graphc_runtime.errors import DTypeError, GraphcError, RangeError, ShapeError, UnknownNameError

# In the number of an array's flags: its elements follow each other, at addresses that suit their type.
_ORDERLY = 0x101
_WRITABLE = 0x400 | _ORDERLY
_POINTERS = {
    "float32": "float[]",
    "float64": "double[]",
    "int32": "int32_t[]",
    "int64": "int64_t[]",
    "uint8": "uint8_t[]",
    "bool": "uint8_t[]",
    "int8": "int8_t[]",
    "int16": "int16_t[]",
    "uint16": "uint16_t[]",
    "uint32": "uint32_t[]",
    "uint64": "uint64_t[]",
}
Shape = tuple[int, ...]


def _extent_text(extent: int | list[int]) -> str:
    """Return an extent as it is declared: ``3``, ``N``, ``2*N``."""
    if isinstance(extent, int):
        return str(extent)
    terms = ["*".join(([str(c)] if c != 1 or not k else []) + ["N"] * k) for k, c in enumerate(extent) if c]
    return " + ".join(terms)


def extent_at(extent: int | list[int], batch: int) -> int:
    """Return an extent of the manifest: an int, or coefficients of powers of the batch."""
    return extent if isinstance(extent, int) else sum(c * batch**k for k, c in enumerate(extent))


class _Array(NamedTuple):
    """An argument at one batch; ``size`` is in bytes."""

    name: str
    dtype: np.dtype[Any]
    shape: Shape
    size: int
    pointer: Any


@dataclass(frozen=True)
class Argument:
    """An array that an entry point reads or writes: an extent is an int or a polynomial in the batch."""

    name: str
    dtype: np.dtype[Any]
    extents: list[int | list[int]]
    pointer: Any  # cffi's type

    def at(self, batch: int) -> _Array:
        """Return what the array is at a batch."""
        shape = tuple(extent_at(extent, batch) for extent in self.extents)
        size = math.prod(shape) * self.dtype.itemsize
        return _Array(self.name, self.dtype, shape, size, self.pointer)

    def declared(self) -> str:
        """Return the shape as text, with N for the batch."""
        text = ", ".join(map(_extent_text, self.extents))
        return text + ("," if len(self.extents) == 1 else "")


class Entry:
    """One public C function, with the checks that make a call from Python safe and its errors clear.

    A call whose arrays are as declared costs less than three microseconds beside the C work; only where something
    differs is it looked for, converted where that is harmless, and named in an error where it is not.
    """

    def __init__(
        self,
        description: Mapping[str, Any],
        function: Any,
        largest: int,
        ffi: Any,
        staging: tuple[Any, Any] | None = None,
    ):
        """Prepare the entry point of a module that was compiled for batches up to ``largest``.

        ``staging`` are the C functions that stage a batch for it, and that tell which is staged.
        """
        self.name: str = description["name"]
        self.calls = description["calls"]
        self.before_commit: int = description[
            "before_commit"
        ]  # calls ahead of those that change parameters or state
        self.inputs = [self._argument(a, ffi) for a in description["inputs"]]
        self.outputs = [self._argument(a, ffi) for a in description["outputs"]]
        self._output_names = frozenset(a.name for a in self.outputs)
        self._function, self._largest, self._view = function, largest, ffi.from_buffer
        self._staging, self._nothing = staging, [ffi.NULL, 0] * len(self.inputs)
        self._batched = next((a for a in self.inputs if any(not isinstance(e, int) for e in a.extents)), None)
        self._arrays: dict[int, tuple[list[_Array], list[_Array]]] = {}

    @staticmethod
    def _argument(description: Mapping[str, Any], ffi: Any) -> Argument:
        pointer = ffi.typeof(_POINTERS[description["dtype"]])
        return Argument(
            description["name"], np.dtype(description["dtype"]), list(description["shape"]), pointer
        )

    def call(
        self, context: Any, given: Mapping[str, Any], out: Mapping[str, np.ndarray] | None, *more: Any
    ) -> tuple[int, list[np.ndarray], dict[str, np.ndarray]]:
        """Call the C function; return its error code, the arrays for its inputs and the outputs by name.

        Without inputs the oldest batch that is staged is taken, of which there are no arrays.

        Raises:
            UnknownNameError, ShapeError, DTypeError: an input is missing, unknown, or not as declared.
            UnknownNameError, DTypeError, ShapeError, RangeError: an array of ``out`` cannot be written to.
        """
        if not given and self._staging is not None:
            batch, arrays, arguments = self._staged(context)
        else:
            batch, arrays, arguments = self._as_declared(given) or self._converted(given)
        if out is None:
            out = {}
        elif not self._output_names.issuperset(out):
            unknown = ", ".join(sorted(map(str, set(out) - self._output_names)))
            raise UnknownNameError(f"{self.name}: no output is called {unknown}")
        outputs: dict[str, np.ndarray] = {}
        others = [*arrays]
        view = self._view
        for wanted in self._at(batch)[1]:
            name, dtype, shape, size, pointer = wanted
            array = out.get(name)
            if array is None:
                array = np.empty(shape, dtype)
            else:
                self._check_output(wanted, array, others)
                others.append(array)
            outputs[name] = array
            arguments.append(view(pointer, array))
            arguments.append(size)
        code: int = self._function(context, batch, *arguments, *more)
        return code, arrays, outputs

    def stage(self, context: Any, given: Mapping[str, Any]) -> int:
        """Begin to copy a batch for a later call; return the error code.

        Raises:
            GraphcError: an input is missing, unknown, or not as declared; nothing can be staged for this entry point.
        """
        if self._staging is None:
            raise GraphcError(f"stage: {self.name} has no inputs")
        batch, _, arguments = self._as_declared(given) or self._converted(given)
        code: int = self._staging[0](context, batch, *arguments)
        return code

    def has_staged(self, context: Any) -> bool:
        """Whether a batch waits for this entry point."""
        return self._staging is not None and self._staging[1](context) != 0

    def _staged(self, context: Any) -> tuple[int, list[np.ndarray], list[Any]]:
        """Return the batch that is staged, and what a call is given in place of inputs."""
        assert self._staging is not None
        batch: int = self._staging[1](context)
        if batch == 0:
            names = ", ".join(a.name for a in self.inputs)
            raise UnknownNameError(
                f"{self.name}: expected the inputs {names}; none is given, and no batch is staged"
            )
        return batch, [], [*self._nothing]

    def batch_of(self, given: Mapping[str, Any]) -> int:
        """Return the batch of the inputs, after the checks of a call."""
        return (self._as_declared(given) or self._converted(given))[0]

    def run_alone(self, context: Any) -> int:
        """Call a C function that takes no arrays and no batch; return its error code."""
        code: int = self._function(context)
        return code

    def _at(self, batch: int) -> tuple[list[_Array], list[_Array]]:
        """Return inputs and outputs, which are computed once for each batch."""
        arrays = self._arrays.get(batch)
        if arrays is None:
            arrays = [a.at(batch) for a in self.inputs], [a.at(batch) for a in self.outputs]
            self._arrays[batch] = arrays
        return arrays

    def _as_declared(self, given: Mapping[str, Any]) -> tuple[int, list[np.ndarray], list[Any]] | None:
        """Return batch, arrays, and pointers with sizes where everything is as declared, else None."""
        if len(given) != len(self.inputs):
            return None
        arrays: list[np.ndarray] = []
        arguments: list[Any] = []
        view = self._view
        try:
            batch = given[self._batched.name].shape[0] if self._batched is not None else 1
            if not 1 <= batch <= self._largest:
                return None
            for name, dtype, shape, size, pointer in self._at(batch)[0]:
                array = given[name]
                if (
                    type(array) is not np.ndarray
                    or array.shape != shape
                    or array.dtype != dtype
                    or array.flags.num & _ORDERLY != _ORDERLY
                ):
                    return None
                arrays.append(array)
                arguments.append(view(pointer, array))
                arguments.append(size)
        except (KeyError, AttributeError, IndexError, TypeError):
            return None
        return batch, arrays, arguments

    def _converted(self, given: Mapping[str, Any]) -> tuple[int, list[np.ndarray], list[Any]]:
        """Return the same of inputs that are made contiguous, or say what differs from the declaration."""
        names = [a.name for a in self.inputs]
        if set(given) != set(names):
            missing, unknown = [n for n in names if n not in given], [n for n in given if n not in names]
            raise UnknownNameError(
                f"{self.name}: expected the inputs {', '.join(names) or '(none)'}"
                + (f"; missing {', '.join(missing)}" if missing else "")
                + (f"; unknown {', '.join(map(str, unknown))}" if unknown else "")
            )
        batch = 1
        if self._batched is not None:
            first = self._as_array(self._batched.name, given[self._batched.name])
            batch = first.shape[0] if first.ndim else 0
            if not 1 <= batch <= self._largest:
                raise ShapeError(
                    f"{self.name}: input {self._batched.name!r} has batch {batch} (shape {first.shape}); "
                    f"this module was compiled for 1 to {self._largest}"
                )
        wanted = zip(self.inputs, self._at(batch)[0], strict=True)
        arrays = [self._convert(a, given[a.name], array.shape, batch) for a, array in wanted]
        arguments: list[Any] = []
        for array, (_, _, _, size, pointer) in zip(arrays, self._at(batch)[0], strict=True):
            arguments += (self._view(pointer, array), size)
        return batch, arrays, arguments

    def _as_array(self, name: str, value: Any) -> np.ndarray:
        try:
            return np.asarray(value)
        except (TypeError, ValueError) as error:
            raise ShapeError(f"{self.name}: input {name!r} is no array: {error}") from None

    def _convert(self, argument: Argument, value: Any, shape: Shape, batch: int) -> np.ndarray:
        array = self._as_array(argument.name, value)
        if array.shape != shape:
            raise ShapeError(
                f"{self.name}: input {argument.name!r} expected shape ({argument.declared()})"
                f"{f' with N = {batch}' if self._batched is not None else ''}, got {array.shape}"
            )
        if array.dtype != argument.dtype:
            raise DTypeError(
                f"{self.name}: input {argument.name!r} expected {argument.dtype}, got {array.dtype}; "
                f"convert it with .astype({str(argument.dtype)!r})"
            )
        return np.require(array, requirements=("C", "A"))

    def _check_output(self, wanted: _Array, array: Any, others: list[np.ndarray]) -> None:
        """Refuse an array that is not as declared, or overlaps another of the call."""
        if (
            type(array) is not np.ndarray
            or array.shape != wanted.shape
            or array.dtype != wanted.dtype
            or array.flags.num & _WRITABLE != _WRITABLE
        ):
            self._explain_output(wanted, array)
        for other in others:
            if np.may_share_memory(array, other):
                raise RangeError(
                    f"{self.name}: out[{wanted.name!r}] shares memory with another array of the call"
                )

    def _explain_output(self, wanted: _Array, array: Any) -> None:
        name = f"{self.name}: out[{wanted.name!r}]"
        if not isinstance(array, np.ndarray):
            raise DTypeError(f"{name} must be an array, got {type(array).__name__}")
        fits = array.shape == wanted.shape and array.dtype == wanted.dtype
        if not fits or array.flags.num & _ORDERLY != _ORDERLY:
            raise ShapeError(
                f"{name} must be a contiguous {wanted.dtype} array of shape {wanted.shape}, got {array.dtype} "
                f"{array.shape}"
            )
        if not array.flags.writeable:
            raise RangeError(f"{name} is read-only")
