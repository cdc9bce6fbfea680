"""Which changes of a program, made to save memory, are allowed."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Rewrites:
    """The rewrites that save memory, each allowed unless it is switched off. A plan records which were used.

    Apart from ``order`` and ``in_place``, they save the time of passing bytes through memory as well; ``run_again``
    costs some.
    """

    in_place: bool = True
    """Loops write over an operand that is needed no more."""

    accumulate: bool = True
    """A convolution or product whose result is added to another tensor adds to it where it lies."""

    concat: bool = True
    """Kernels write their part of a concatenation into the whole."""

    pool: bool = True
    """A max pooling is computed by the convolution in front of it, whose result is never stored."""

    run_again: bool = True
    """Cheap kernels of the forward pass run again in the backward pass, so that less is kept between."""

    order: bool = True
    """Kernels run in the order with the least peak that was found; otherwise depth first."""

    def __str__(self) -> str:
        """Return the names of those that are allowed."""
        return ", ".join(f.name for f in fields(self) if getattr(self, f.name)) or "none"


ALL = Rewrites()
"""What is allowed by default."""
