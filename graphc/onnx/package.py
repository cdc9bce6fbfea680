"""The ``onnx`` package, which is there only where somebody wants it."""

from __future__ import annotations

from types import ModuleType

from graphc.errors import GraphError


def onnx_package() -> ModuleType:
    """Return the package, with the modules that are used of it.

    Raises:
        GraphError: it is not installed.
    """
    try:
        import onnx
    except ImportError:
        raise GraphError("onnx: the onnx package is not installed: pip install 'graphc[onnx]'") from None
    import onnx.checker
    import onnx.defs
    import onnx.helper
    import onnx.numpy_helper
    import onnx.shape_inference

    return onnx
