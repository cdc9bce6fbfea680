"""Losses over classes, and dropout."""

from __future__ import annotations

from graphc.functional import log_softmax
from graphc.graph.node import Node
from graphc.losses.classification import cross_entropy, nll
from graphc.nn.noise import dropout
from graphc.onnx.site import Site, UnsupportedError, rule
from graphc.ops import elementwise as ew
from graphc.ops.control import mode_switch
from graphc.ops.leaves import RandomKey, RandomUniform, full


@rule("NegativeLogLikelihoodLoss")
def negative_log_likelihood(site: Site) -> Node:
    """Of log-probabilities; a label outside the classes that is not ignored is refused when the model is called."""
    weight = site.tensor(2) if site.has(2) else None
    return nll(
        site.tensor(0), site.tensor(1), weight=weight, ignore_index=site.get("ignore_index"),
        reduction=site.get("reduction", "mean"),
    )  # fmt: skip


@rule("SoftmaxCrossEntropyLoss")
def softmax_cross_entropy(site: Site) -> tuple[Node, ...]:
    """Of logits; the log-probabilities are an output too."""
    scores = site.tensor(0)
    weight = site.tensor(2) if site.has(2) else None
    loss = cross_entropy(
        scores, site.tensor(1), weight=weight, ignore_index=site.get("ignore_index"),
        reduction=site.get("reduction", "mean"),
    )  # fmt: skip
    return (loss,) if site.outputs == 1 else (loss, log_softmax(scores, 1))


@rule("Dropout")
def drop(site: Site) -> tuple[Node, ...]:
    """Graphc's dropout, which is the identity in inference; the mask says what was kept.

    A file in training form drops in inference too, which graphc does not: it is refused, unless the ratio is 0 or
    the model is loaded for training.
    """
    ratio = float(site.known(1, "ratio")) if site.has(1) else float(site.get("ratio", 0.5))
    training = bool(site.known(2, "training_mode")) if site.has(2) else False
    x = site.tensor(0)
    if not 0 <= ratio <= 1:
        raise UnsupportedError(f"a ratio of {ratio}")
    if training and ratio and not site.host.restore_batch_norm:
        raise UnsupportedError("random numbers in inference, as training_mode asks for")
    if site.outputs == 1:
        return (dropout(x, ratio),)
    everything = full(x.shape, 1.0, "bool")
    if ratio == 0:
        return x, everything
    kept = ew.greater_equal(RandomUniform(x.dtype, x.shape, RandomKey())(), ratio)
    scaled = ew.where(kept, x * (1 / (1 - ratio)) if ratio < 1 else x, 0.0)
    return mode_switch(scaled, x), mode_switch(kept, everything)
