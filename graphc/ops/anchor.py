"""Anchors: the ops with a loop nest and a template of their own, to which elementwise work is fused."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from graphc.graph.node import Op
from graphc.types import Shape, Size, TensorType


class Anchor(Op):
    """An op that one template prints: ``template`` names the file, :meth:`spec` gives what it needs.

    Inputs reach the kernel as contiguous arrays. Elementwise work on the result, of the result's shape,
    is fused as the kernel's epilogue.
    """

    template: ClassVar[str]
    operand_names: ClassVar[tuple[str, ...]]

    @abstractmethod
    def spec(self, out: TensorType, *types: TensorType) -> Any:
        """Return the frozen dataclass that describes the loops: extents, strides, padding."""

    @abstractmethod
    def flops(self, out: TensorType, *types: TensorType) -> Size:
        """Return the number of floating-point operations (a multiply-add counts as two)."""

    @property
    @abstractmethod
    def formula(self) -> str:
        """The sum that the kernel computes, as text for its comment."""

    def workspace(self, out: TensorType, *types: TensorType) -> Shape:
        """Return the shape of what the kernel keeps in the arena while it runs; () for nothing."""
        return ()

    def epilogue_axes(self, shape: Shape) -> tuple[str, ...]:
        """Return the C names of the loop indices of the result at the point where it is stored."""
        return tuple(f"i{a}" for a in range(len(shape)))
