"""Layers: functions of a tensor that make their own parameters, with PyTorch's names, shapes and defaults."""

from graphc.nn.convolution import conv2d
from graphc.nn.dense import embedding, flatten, linear
from graphc.nn.noise import dropout
from graphc.nn.normalisation import batch_norm, layer_norm
from graphc.nn.pooling import (
    adaptive_avg_pool2d,
    avg_pool2d,
    global_avg_pool2d,
    global_max_pool2d,
    max_pool2d,
)
from graphc.nn.response import local_response_norm

__all__ = [
    "adaptive_avg_pool2d", "avg_pool2d", "batch_norm", "conv2d", "dropout", "embedding", "flatten",
    "global_avg_pool2d", "global_max_pool2d", "layer_norm", "linear", "local_response_norm", "max_pool2d",
]  # fmt: skip
