"""Operators on shapes, which are known while a model is read though they may hold the run-time batch."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphc.onnx.site import Result, Site, UnsupportedError, folded, rule
from graphc.onnx.values import Known, known_sizes
from graphc.types import product


@rule("Shape")
@folded("Shape")
def shape(site: Site) -> Known:
    """The extents, or those from ``start`` up to ``end``."""
    return known_sizes(site.shape(0)[site.get("start", 0) : site.get("end")])


@rule("Size")
@folded("Size")
def size(site: Site) -> Known:
    """The number of elements."""
    return Known(known_sizes((product(site.shape(0)),)).array.reshape(()))


@rule("Constant")
@folded("Constant")
def constant(site: Site) -> Known:
    """The value that the node carries."""
    for name, dtype in (("value_float", np.float32), ("value_floats", np.float32), ("value_int", np.int64),
                        ("value_ints", np.int64)):  # fmt: skip
        if name in site.attributes:
            return Known(np.asarray(site.get(name), dtype))
    if "value" not in site.attributes:
        raise UnsupportedError("only numbers and dense tensors of numbers")
    return Known(site.get("value"))


def _arrays(site: Site) -> list[np.ndarray]:
    return [v.array for v in site.values if isinstance(v, Known)]


def _tidy(found: Any) -> Known:
    """Return an array of objects as int64 again where no element depends on the batch."""
    array = np.empty((), object) if not isinstance(found, np.ndarray) else found
    if array is not found:  # an element by itself
        array[()] = found
    whole = array.dtype == object and all(isinstance(d, (int, np.integer)) for d in array.ravel())
    return Known(array.astype(np.int64) if whole else array)


@folded("Gather")
def gather(site: Site) -> Known:
    """Elements along an axis."""
    data, index = _arrays(site)
    return _tidy(np.take(data, index, axis=site.get("axis", 0)))


@folded("Concat")
def concat(site: Site) -> Known:
    """One array after the other."""
    return _tidy(np.concatenate(_arrays(site), axis=site.get("axis", 1)))


@folded("Unsqueeze")
def unsqueeze(site: Site) -> Known:
    """Insert axes of extent 1."""
    axes = site.ints(1, "axes") if site.has(1) else site.get("axes")
    return Known(np.expand_dims(_arrays(site)[0], tuple(axes)))


@folded("Squeeze")
def squeeze(site: Site) -> Known:
    """Drop axes of extent 1."""
    axes = site.ints(1, "axes") if site.has(1) else site.get("axes")
    return Known(np.squeeze(_arrays(site)[0], None if axes is None else tuple(axes)))


@folded("Identity")
def identity(site: Site) -> Result:
    """The array itself."""
    return site.value(0)
