"""How each ONNX operator is written in graphc: a function an operator, by family."""

from graphc.onnx.rules import arithmetic, layers, movement, shapes

__all__ = ["arithmetic", "layers", "movement", "shapes"]
