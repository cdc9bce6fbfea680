"""Losses, dropout, and the optimizers that ONNX has as operators."""

from __future__ import annotations
