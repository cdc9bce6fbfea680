"""How every op is written in ONNX: a module for each family, whose writers enter themselves."""

from graphc.onnx.writers import elementwise, generated, images, movement, pooling, products

__all__ = ["elementwise", "generated", "images", "movement", "pooling", "products"]
