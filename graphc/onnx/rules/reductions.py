"""Reductions, running sums, and indices of extremes."""

from __future__ import annotations
