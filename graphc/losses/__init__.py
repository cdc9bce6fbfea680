"""Losses, with PyTorch's reductions and edge cases, and the objective that contains several of them.

All are composed of the public ops: gradients of any order, fusion and C follow from these.
"""

from graphc.losses.classification import cross_entropy, nll
from graphc.losses.margin import hinge, hinge_embedding, multi_margin
from graphc.losses.pointwise import bce, bce_with_logits, huber, kl_div, l1, mse, smooth_l1
from graphc.losses.soft_margin import binary_labels, binary_scores, l2, soft_margin, weights_of

__all__ = [
    "bce",
    "bce_with_logits",
    "binary_labels",
    "binary_scores",
    "cross_entropy",
    "hinge",
    "hinge_embedding",
    "huber",
    "kl_div",
    "l1",
    "l2",
    "mse",
    "multi_margin",
    "nll",
    "smooth_l1",
    "soft_margin",
    "weights_of",
]
