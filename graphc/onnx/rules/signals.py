"""Discrete Fourier transforms as products with constant matrices, and windows."""

from __future__ import annotations

import numpy as np

from graphc.graph.node import Node
from graphc.onnx.rules.gathering import looked_up
from graphc.onnx.site import Result, Site, UnsupportedError, axis_of, rule
from graphc.ops.leaves import constant
from graphc.ops.matmul import matmul
from graphc.ops.movement import reshape, transpose

_LARGEST = 2**22  # elements of a matrix, beyond which a transform is refused


def _matrix(given: int, parts: int, length: int, inverse: bool, onesided: bool) -> np.ndarray:
    """Return the matrix from ``given`` numbers of 1 or 2 parts to a transform, as (given*parts, results*parts)."""
    if given * parts * length * 2 > _LARGEST:
        raise UnsupportedError(f"a transform of length {length}, whose matrix would be too large")
    if inverse and onesided:
        return _real_inverse(given, length)
    results = length // 2 + 1 if onesided else length
    rows = min(given, length)
    angle = 2 * np.pi / length * (np.arange(rows)[:, None] * np.arange(results) % length)
    cosine, sine = np.cos(angle), np.sin(angle) * (1 if inverse else -1)
    full = np.zeros((given, 2, results, 2))
    full[:rows, 0, :, 0], full[:rows, 0, :, 1] = cosine, sine
    full[:rows, 1, :, 0], full[:rows, 1, :, 1] = -sine, cosine
    if inverse:
        full /= length
    return full[:, :parts].reshape(given * parts, results * 2)


def _real_inverse(given: int, length: int) -> np.ndarray:
    """Return the matrix from one half of a spectrum to the real signal that has it."""
    rows = min(given, length // 2 + 1)
    k = np.arange(rows)[:, None]
    angle = 2 * np.pi / length * (k * np.arange(length) % length)
    weight = np.where((k == 0) | (2 * k == length), 1.0, 2.0) / length
    full = np.zeros((given, 2, length))
    full[:rows, 0], full[:rows, 1] = weight * np.cos(angle), -weight * np.sin(angle)
    return full.reshape(given * 2, length)


def _transformed(x: Node, axis: int, length: int | None, inverse: bool, onesided: bool) -> Node:
    """Return the transform along an axis of a tensor whose last axis holds real and imaginary parts."""
    given, parts = x.shape[axis], x.shape[-1]
    if not isinstance(given, int) or parts not in (1, 2) or axis == x.rank - 1 or not x.type.is_float:
        raise UnsupportedError(f"a transform of {x.type} along axis {axis}")
    if inverse and onesided and parts != 2:
        raise UnsupportedError("half a spectrum without imaginary parts")
    if onesided and not inverse and parts != 1:
        raise UnsupportedError("half the spectrum of a complex signal")
    if length is None:
        length = 2 * (given - 1) if inverse and onesided else given
    if length < 1:
        raise UnsupportedError(f"a transform of length {length}")
    matrix = _matrix(given, parts, length, inverse, onesided)
    kept = [a for a in range(x.rank - 1) if a != axis]
    rows = transpose(x, (*kept, axis, x.rank - 1))
    lead = rows.shape[:-2]
    made = 1 if inverse and onesided else 2
    found = matmul(reshape(rows, (*lead, given * parts)), constant(matrix, x.dtype))
    spectrum = reshape(found, (*lead, matrix.shape[1] // made, made))
    order = list(range(len(kept)))
    order.insert(axis, len(kept))
    return transpose(spectrum, (*order, x.rank - 1))


@rule("DFT")
def dft(site: Site) -> Node:
    """The axis is an attribute up to version 19, and an input later."""
    length = site.ints(1, "length")[0] if site.has(1) else None
    axis = site.get("axis", 1) if site.version < 20 else -2
    if site.has(2):
        axis = site.ints(2, "axis")[0]
    x = site.tensor(0)
    return _transformed(
        x, axis_of(axis, x.rank), length, bool(site.get("inverse", 0)), bool(site.get("onesided", 0))
    )


@rule("STFT")
def stft(site: Site) -> Node:
    """Transforms of frames that follow each other by a known step."""
    step = site.ints(1, "frame step")[0]
    length = site.ints(3, "frame length")[0] if site.has(3) else site.shape(2)[0] if site.has(2) else None
    x = site.tensor(0)
    if x.rank == 2:
        x = reshape(x, (*x.shape, 1))
    extent = x.shape[1]
    if not isinstance(length, int) or not isinstance(extent, int) or not 0 < length <= extent or step < 1:
        raise UnsupportedError(f"frames of {length} by {step} of a signal of {extent}")
    count = (extent - length) // step + 1
    index = (np.arange(count)[:, None] * step + np.arange(length)).ravel()
    frames = reshape(looked_up(x, index, 1), (x.shape[0], count, length, x.shape[2]))
    if site.has(2):
        if site.shape(2) != (length,):
            raise UnsupportedError(f"a window of shape {site.shape(2)} for frames of {length}")
        frames = frames * reshape(site.tensor(2), (length, 1))
    return _transformed(frames, 2, None, False, bool(site.get("onesided", 1)))


@rule("HannWindow", "HammingWindow", "BlackmanWindow", "MelWeightMatrix")
def known_table(site: Site) -> Result:
    """Computed while importing, by the format's own reference, as soon as the sizes are known."""
    for k in range(len(site.values)):
        site.known(k, "sizes")
    raise UnsupportedError("it cannot be computed while importing")
