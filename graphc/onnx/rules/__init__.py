"""How each ONNX operator is written in graphc: a function an operator, by family."""

from graphc.onnx.rules import (
    arithmetic,
    batch_norm,
    control,
    convolution,
    gathering,
    losses,
    movement,
    normalisation,
    optimizers,
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
    "batch_norm",
    "control",
    "convolution",
    "gathering",
    "losses",
    "movement",
    "normalisation",
    "optimizers",
    "pooling",
    "products",
    "reductions",
    "resizing",
    "scans",
    "shapes",
    "slicing",
]
