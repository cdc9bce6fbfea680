"""The registry of operations, and the samples that the contract tests run every one of them on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from graphc.errors import GraphcError
from graphc.graph.node import Node, Op
from graphc.types import TensorType

Values = Callable[[np.random.Generator, Sequence[tuple[int, ...]]], Sequence[np.ndarray]]


def normal_values(rng: np.random.Generator, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """Return standard normal arrays: the values of a sample that asks for nothing else."""
    return [rng.standard_normal(shape) for shape in shapes]


@dataclass(frozen=True)
class Sample:
    """One way to call an operation, with what the result must be.

    ``build`` makes the node from input nodes of the given types; ``reference`` computes the same from
    float64 (or integer) arrays (None: the interpreter, that is the references of the ops in the built
    graph); ``values`` draws inputs for concrete shapes. ``smooth`` is False where
    central differences say nothing (the op is not differentiable, or its derivative is a convention).
    """

    build: Callable[..., Node]
    types: tuple[TensorType, ...]
    reference: Callable[..., np.ndarray] | None = None
    values: Values = normal_values
    smooth: bool = True
    label: str = ""


REGISTRY: dict[str, Callable[[], Sequence[Sample]]] = {}
OpClass = TypeVar("OpClass", bound=type[Op])


def register(name: str, samples: Callable[[], Sequence[Sample]]) -> None:
    """Enter an operation with its samples, which are made when a test asks for them.

    Raises:
        GraphcError: the name is taken.
    """
    if name in REGISTRY:
        raise GraphcError(f"operation {name!r} is registered twice")
    REGISTRY[name] = samples


def float_type(*shape: int | object) -> TensorType:
    """Return the float32 type of a sample input."""
    return TensorType("float32", tuple(shape))  # type: ignore[arg-type]  # sizes, checked by use


def op(
    samples: Callable[..., Sequence[tuple[Op, tuple[TensorType, ...]] | Sample]],
) -> Callable[[OpClass], OpClass]:
    """Register an op class together with its samples; refuse one that is only half defined.

    ``samples`` gets the class. A sample may be given as ``(op, input types)``.
    """

    def decorate(cls: OpClass) -> OpClass:
        for part in ("infer", "vjp", "reference"):
            if part not in {name for base in cls.__mro__[:-1] if base is not Op for name in vars(base)}:
                raise GraphcError(f"op {cls.__name__} defines no {part}")
        register(
            cls.label,
            lambda: [
                s if isinstance(s, Sample) else Sample(s[0], s[1], label=s[0].attributes)
                for s in samples(cls)
            ],
        )
        return cls

    return decorate
