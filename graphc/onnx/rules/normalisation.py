"""Normalisations and the softmax family."""

from __future__ import annotations

from graphc.functional import log_softmax, softmax
from graphc.graph.node import Node
from graphc.onnx.site import Site, rule
from graphc.ops import elementwise as ew
from graphc.ops.movement import reshape


@rule("BatchNormalization")
def batch_normalization(site: Site) -> Node:
    """Inference form: a scale and a shift per channel, from the statistics of the file."""
    site.refuse("training_mode", 0)
    shape = (-1, *[1] * (site.rank(0) - 2))
    weight, bias, average, variance = (reshape(site.tensor(k), shape) for k in range(1, 5))
    scale = weight * ew.rsqrt(variance + site.get("epsilon", 1e-5))
    return site.tensor(0) * scale + (bias - average * scale)


@rule("Softmax", "LogSoftmax")
def softmaxes(site: Site) -> Node:
    """Along one axis from version 13 on; before, over all axes from the given one on."""
    function = softmax if site.op == "Softmax" else log_softmax
    x = site.tensor(0)
    if site.version >= 13:
        return function(x, site.get("axis", -1))
    axis = site.get("axis", 1) % max(1, x.rank)
    return reshape(function(reshape(x, (*x.shape[:axis], -1)), -1), x.shape)
