"""Batch normalisation: for inference, in training, and put back into what can be trained."""

from __future__ import annotations

from graphc.graph.node import Node
from graphc.nn.normalisation import batch_norm, moments
from graphc.onnx.site import Site, UnsupportedError, rule
from graphc.onnx.values import Known
from graphc.ops import elementwise as ew
from graphc.ops.movement import reshape
from graphc.ops.reduce import mean


@rule("BatchNormalization")
def batch_normalization(site: Site) -> tuple[Node, ...]:
    """Training is an attribute from version 14 on; before, a node with more outputs than one is in training."""
    x = site.tensor(0)
    site.refuse("spatial", 1)
    if x.rank < 2 or not isinstance(x.shape[1], int):
        raise UnsupportedError(f"expected (N, C, ...), got {x.type}")
    training = bool(site.get("training_mode", 0)) if site.version >= 14 else site.outputs > 1
    if site.outputs > 1 and not training:
        raise UnsupportedError("running statistics are outputs in training mode only")
    if site.host.restore_batch_norm and all(
        isinstance(v, Known) and v.weight for v in (site.value(3), site.value(4))
    ):
        return _restored(site, x)
    return _in_training(site, x) if training else (_in_inference(site, x),)


def _in_inference(site: Site, x: Node) -> Node:
    """A scale and a shift per channel, from the statistics of the file, which are never learned."""
    shape = (-1, *[1] * (x.rank - 2))
    weight, bias = (reshape(site.tensor(k), shape) for k in (1, 2))
    average, variance = (reshape(site.fixed(k), shape) for k in (3, 4))
    scale = weight * ew.rsqrt(variance + site.get("epsilon", 1e-5))
    return x * scale + (bias - average * scale)


def _in_training(site: Site, x: Node) -> tuple[Node, ...]:
    """By the batch's own statistics; the running ones move towards them, as outputs."""
    axes, shape = (0, *range(2, x.rank)), (-1, *[1] * (x.rank - 2))
    deviation, variance = moments(x, axes)
    out = deviation * ew.rsqrt(variance + site.get("epsilon", 1e-5))
    out = out * reshape(site.tensor(1), shape) + reshape(site.tensor(2), shape)
    if site.outputs == 1:
        return (out,)
    kept = site.get("momentum", 0.9)
    batch = reshape(mean(x, axes, keepdims=True), (-1,)), reshape(variance, (-1,))
    moved = [
        ew.mul(site.fixed(k), kept) + ew.mul(towards, 1 - kept)
        for k, towards in zip((3, 4), batch, strict=True)
    ]
    return (out, *moved, *batch)[: site.outputs]


def _restored(site: Site, x: Node) -> tuple[Node, ...]:
    """A layer of graphc's, whose states start at the file's statistics. ONNX's momentum is what is kept of these."""
    if site.outputs > 1 and site.version < 14:
        raise UnsupportedError("running statistics as outputs cannot be restored as states")
    states = [site.host.state(v) for v in (site.value(3), site.value(4)) if isinstance(v, Known)]
    out = batch_norm(
        x, eps=site.get("epsilon", 1e-5), momentum=1 - site.get("momentum", 0.9), name=site.label,
        weight=site.tensor(1), bias=site.tensor(2), running_mean=states[0], running_var=states[1],
    )  # fmt: skip
    return (out, *states)[: site.outputs]
