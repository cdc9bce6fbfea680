"""How each ONNX operator is written in graphc: a function an operator, by family."""

from graphc.onnx.rules import (
    arithmetic,
    control,
    convolution,
    gathering,
    losses,
    movement,
    normalisation,
    pooling,
    products,
    reductions,
    resizing,
    scans,
    shapes,
    slicing,
)

__all__ = [
    "arithmetic",
    "control",
    "convolution",
    "gathering",
    "losses",
    "movement",
    "normalisation",
    "pooling",
    "products",
    "reductions",
    "resizing",
    "scans",
    "shapes",
    "slicing",
]
