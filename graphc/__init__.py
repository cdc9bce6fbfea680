"""graphc: a small compiler that turns a neural network, written in Python as a graph, into readable C.

::

    import graphc as gc

    x = gc.input("x", ("N", 1, 32, 32))
    y = gc.input("y", ("N",), dtype="int32")
    h = gc.nn.max_pool2d(gc.relu(gc.nn.conv2d(x, 6, kernel=5, name="conv1")), 2)
    logits = gc.nn.linear(gc.flatten(h), 10, name="fc")
    module = gc.compile({"logits": logits}, loss=gc.losses.cross_entropy(logits, y),
                        optimizer=gc.SGD(lr=0.05, momentum=0.9), batch=64)
    module.train_step(x=images, y=labels)
"""

from graphc import initialisers, losses, metrics, models, nn, onnx, optim
from graphc.api import Module, compile
from graphc.build import BuildOptions
from graphc.differentiate import grad
from graphc.errors import GraphcError
from graphc.functional import log_softmax, logsumexp, one_hot, pick, softmax
from graphc.gradients import GradientCheck, GradientRow, check_gradients
from graphc.graph.node import Node as Tensor
from graphc.graph.text import print_graph
from graphc.inspection import report
from graphc.layers import LayerRow, layers, layers_table
from graphc.nn import flatten
from graphc.ops.control import bounded, mode_switch, stop_gradient, updating
from graphc.ops.elementwise import (
    abs,
    add,
    cast,
    clip,
    cos,
    div,
    elu,
    equal,
    erf,
    exp,
    expm1,
    gelu,
    greater,
    greater_equal,
    hard_sigmoid,
    hard_swish,
    leaky_relu,
    less,
    less_equal,
    log,
    log1p,
    maximum,
    minimum,
    mul,
    neg,
    not_equal,
    pow,
    reciprocal,
    relu,
    rsqrt,
    sigmoid,
    sign,
    silu,
    sin,
    softplus,
    sqrt,
    square,
    sub,
    tanh,
    where,
)
from graphc.ops.elementwise import user_function as elementwise
from graphc.ops.gather import take
from graphc.ops.leaves import constant, full, parameter
from graphc.ops.leaves import input_ as input
from graphc.ops.matmul import matmul
from graphc.ops.movement import concat, expand, pad, reshape, split, transpose
from graphc.ops.reduce import argmax, argmin, max, mean, min, sum
from graphc.ops.scatter import scatter
from graphc.optim import SGD, Adam, AdamW
from graphc.rewrites import Rewrites

__version__ = "0.1.0"

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "BuildOptions",
    "GradientCheck",
    "GradientRow",
    "GraphcError",
    "LayerRow",
    "Module",
    "Rewrites",
    "Tensor",
    "abs",
    "add",
    "argmax",
    "argmin",
    "bounded",
    "cast",
    "check_gradients",
    "clip",
    "compile",
    "concat",
    "constant",
    "cos",
    "div",
    "elementwise",
    "elu",
    "equal",
    "erf",
    "exp",
    "expand",
    "expm1",
    "flatten",
    "full",
    "gelu",
    "grad",
    "greater",
    "greater_equal",
    "hard_sigmoid",
    "hard_swish",
    "initialisers",
    "input",
    "layers",
    "layers_table",
    "leaky_relu",
    "less",
    "less_equal",
    "log",
    "log1p",
    "log_softmax",
    "logsumexp",
    "losses",
    "matmul",
    "max",
    "maximum",
    "mean",
    "metrics",
    "min",
    "minimum",
    "mode_switch",
    "models",
    "mul",
    "neg",
    "nn",
    "not_equal",
    "one_hot",
    "onnx",
    "optim",
    "pad",
    "parameter",
    "pick",
    "pow",
    "print_graph",
    "reciprocal",
    "relu",
    "report",
    "reshape",
    "rsqrt",
    "scatter",
    "sigmoid",
    "sign",
    "silu",
    "sin",
    "softmax",
    "softplus",
    "split",
    "sqrt",
    "square",
    "stop_gradient",
    "sub",
    "sum",
    "take",
    "tanh",
    "transpose",
    "updating",
    "where",
]
