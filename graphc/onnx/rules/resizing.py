"""Resizes: every axis by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphc.graph.node import Node
from graphc.onnx.rules.interpolation import Resampling, order_of_axes, resample, taps
from graphc.onnx.site import Site, UnsupportedError, rule
from graphc.types import Size


@dataclass(frozen=True)
class _Change:
    """The new extent of an axis, and what coordinates are divided by."""

    size: int
    out: int
    scale: float
    roi: tuple[float, float] = (0.0, 1.0)


@rule("Upsample")
def upsample(site: Site) -> Node:
    """Outputs lie at multiples of 1/scale; the scales are an attribute up to version 8 and an input later."""
    x = site.tensor(0)
    scales = site.known(1, "scales").tolist() if site.has(1) else site.get("scales", ())
    return _old(site, x, [float(s) for s in scales])


def _old(site: Site, x: Node, scales: Sequence[float]) -> Node:
    """Resize by the rules up to version 10."""
    mode = {"bilinear": "linear"}.get(site.get("mode", "nearest"), site.get("mode", "nearest"))
    changes = _by_scales(x, range(x.rank), scales)
    how = Resampling(mode, "asymmetric", "floor", False, -0.75, False)
    if mode == "nearest":
        ceil = Resampling(mode, "asymmetric", "ceil", False, -0.75, False)
        for c in changes.values():
            pair = [np.clip(taps(r, c.size, c.out, c.scale).index, 0, c.size - 1) for r in (how, ceil)]
            if c.scale < 1 and not np.array_equal(*pair):
                raise UnsupportedError(
                    f"version {site.version} does not say which neighbour a scale of {c.scale:g} takes"
                )
    return _apply(x, how, changes, 0.0)


@rule("Resize")
def resize(site: Site) -> Node:
    """By ``scales`` or to ``sizes``, along ``axes`` or all."""
    x = site.tensor(0)
    if site.version < 11:
        return _old(site, x, [float(s) for s in site.known(1, "scales")])
    axes = [a % x.rank for a in site.get("axes") or range(x.rank)]
    how = Resampling(
        site.get("mode", "nearest"), site.get("coordinate_transformation_mode", "half_pixel"),
        site.get("nearest_mode", "round_prefer_floor"), bool(site.get("antialias", 0)),
        float(site.get("cubic_coeff_a", -0.75)), bool(site.get("exclude_outside", 0)),
    )  # fmt: skip
    if how.antialias and how.mode == "nearest":
        raise UnsupportedError("antialias of nearest elements")
    if _given(site, 3):
        changes = _by_sizes(x, axes, site.sizes(3, "sizes"), site.get("keep_aspect_ratio_policy", "stretch"))
    elif _given(site, 2):
        changes = _by_scales(x, axes, [float(s) for s in site.known(2, "scales")])
    else:
        raise UnsupportedError("neither scales nor sizes are given")
    if how.transformation == "tf_crop_and_resize":
        changes = _cropped(x, changes, axes, site.known(1, "roi"))
    return _apply(x, how, changes, float(site.get("extrapolation_value", 0.0)))


def _given(site: Site, position: int) -> bool:
    """Whether an input is there and has elements."""
    return site.has(position) and all(d != 0 for d in site.shape(position))


def _fixed(x: Node, axis: int, unchanged: bool) -> int | None:
    """Return the extent of an axis that is to be resized, or None for an unchanged one of the run-time batch."""
    size = x.shape[axis]
    if isinstance(size, int):
        return size
    if not unchanged:
        raise UnsupportedError("the run-time batch is resized")
    return None


def _by_scales(x: Node, axes: Sequence[int], scales: Sequence[float]) -> dict[int, _Change]:
    if len(scales) != len(axes) or min(scales) <= 0:
        raise UnsupportedError(f"scales {list(scales)} for {len(axes)} axes")
    found = {}
    for a, s in zip(axes, scales, strict=True):
        size = _fixed(x, a, s == 1)
        if size is not None:
            found[a] = _Change(size, int(s * size), s)
    return found


def _by_sizes(x: Node, axes: Sequence[int], sizes: Sequence[Size], policy: str) -> dict[int, _Change]:
    if len(sizes) != len(axes):
        raise UnsupportedError(f"sizes {list(map(str, sizes))} for {len(axes)} axes")
    found = {}
    for a, out in zip(axes, sizes, strict=True):
        size = _fixed(x, a, x.shape[a] == out and policy == "stretch")
        if size is not None:
            if not isinstance(out, int):
                raise UnsupportedError(f"an extent of {out} of an axis that is resized")
            found[a] = _Change(size, out, out / size)
    if policy == "stretch":
        return found
    if policy not in ("not_larger", "not_smaller"):
        raise UnsupportedError(f"keep_aspect_ratio_policy={policy!r} is not supported")
    scales = [c.scale for c in found.values()]
    scale = min(scales) if policy == "not_larger" else max(scales)
    return {a: _Change(c.size, int(scale * c.size + 0.5), scale) for a, c in found.items()}


def _cropped(
    x: Node, changes: dict[int, _Change], axes: Sequence[int], roi: np.ndarray
) -> dict[int, _Change]:
    """Return the changes with the part of each axis that is resized."""
    if roi.size != 2 * len(axes):
        raise UnsupportedError(f"a region of {roi.size} numbers for {len(axes)} axes")
    found = {}
    for k, a in enumerate(axes):
        part = float(roi[k]), float(roi[len(axes) + k])
        if a in changes:
            c = changes[a]
            found[a] = _Change(c.size, c.out, c.scale, part)
        elif part != (0.0, 1.0):
            raise UnsupportedError("the run-time batch is cropped")
    return found


def _apply(x: Node, how: Resampling, changes: Mapping[int, _Change], fill: float) -> Node:
    """Resize axis after axis, those that shrink first."""
    if how.mode not in ("nearest", "linear", "cubic"):
        raise UnsupportedError(f"mode={how.mode!r} is not supported")
    if how.mode != "nearest" and not x.type.is_float:
        raise UnsupportedError(f"interpolation between elements of {x.dtype}")
    left = {
        a: c
        for a, c in changes.items()
        if not (math.isclose(c.scale, 1.0) and c.out == c.size and c.roi == (0.0, 1.0))
    }
    if any(c.out < 1 for c in left.values()):
        raise UnsupportedError(f"a result without elements: {[c.out for c in left.values()]}")
    listed = list(left)
    for k in order_of_axes([(c.size, c.out) for c in left.values()]):
        c = left[listed[k]]
        x = resample(x, listed[k], taps(how, c.size, c.out, c.scale, c.roi, fill))
    return x
