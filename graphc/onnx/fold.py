"""Computes a node whose inputs are all known, through the reference implementation of the ``onnx`` package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graphc.onnx.package import onnx_package
from graphc.onnx.site import UnsupportedError
from graphc.onnx.values import Known


def fold(node: Any, arrays: Sequence[np.ndarray | None], opsets: Mapping[str, int]) -> list[Known]:
    """Return the results of a node.

    Raises:
        UnsupportedError: the reference implementation does not take it.
    """
    onnx = onnx_package()
    from onnx.reference import ReferenceEvaluator

    del onnx
    feeds = {name: array for name, array in zip(node.input, arrays, strict=True) if array is not None}
    try:
        results = ReferenceEvaluator(node, opsets=dict(opsets)).run(None, feeds)
    except Exception as error:  # whatever an implementation of some operator may raise
        raise UnsupportedError(f"it cannot be computed while importing: {error}") from error
    if not all(isinstance(r, (np.ndarray, np.generic)) for r in results):
        raise UnsupportedError("its result is no tensor")
    return [Known(np.asarray(r)) for r in results]
