"""Models of the ONNX format as graphs: read, trained and written. Needs the ``onnx`` package (``graphc[onnx]``)."""

from graphc.onnx.load import Imported, load

__all__ = ["Imported", "load"]
