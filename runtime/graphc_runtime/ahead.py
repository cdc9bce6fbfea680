"""Batches that are copied to a device while it computes the ones before them."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from graphc_runtime.errors import GraphcError


@runtime_checkable
class Staging(Protocol):
    """What a module has that may stage batches."""

    @property
    def stages(self) -> bool:
        """Whether its target can."""
        ...

    @property
    def staged(self) -> tuple[str, ...]:
        """The entry points for which batches wait."""
        ...

    def stage(self, entry: str, /, **inputs: Any) -> None:
        """Begin to copy a batch for a later call."""
        ...

    def unstage(self) -> None:
        """Forget the batches that wait."""
        ...


def staged_ahead(
    module: object, entry: str, batches: Iterable[Mapping[str, Any]]
) -> Generator[tuple[Mapping[str, Any], int], None, None]:
    """Yield for every batch the inputs to call the entry point with, and its number of examples.

    On a device there are none: the batch is staged, and the one behind it too, whose copy goes on while the first
    is computed. A batch that cannot be staged (the device has no room for it, an input does not fit) or read is no
    error before its turn has come; none is staged from there on. Where the module's caller has staged batches,
    they stay, and none is staged here. Batches that wait when the iterator is closed are forgotten.
    """
    remaining, waiting = iter(batches), deque[int]()
    inputs: Mapping[str, Any] | None
    unread: Exception | None = None
    if isinstance(module, Staging) and module.stages and not module.staged:
        try:
            inputs, unread = _read(remaining)
            while inputs is not None and _stage(module, entry, inputs):
                waiting.append(_count(inputs))
                if len(waiting) == 2:
                    yield {}, waiting.popleft()
                inputs, unread = _read(remaining)
            while waiting:
                yield {}, waiting.popleft()
        finally:
            module.unstage()
    else:
        inputs = next(remaining, None)
    if unread is not None:
        raise unread
    while inputs is not None:
        yield inputs, _count(inputs)
        inputs = next(remaining, None)


def _read(batches: Iterator[Mapping[str, Any]]) -> tuple[Mapping[str, Any] | None, Exception | None]:
    """Return the next batch, or what was raised in its place; neither at the end."""
    try:
        return next(batches, None), None
    except Exception as error:
        return None, error


def _stage(module: Staging, entry: str, inputs: Mapping[str, Any]) -> bool:
    try:
        module.stage(entry, **inputs)
    except GraphcError:
        return False  # the call that is given the inputs will say why, if it cannot take them either
    return True


def _count(inputs: Mapping[str, Any]) -> int:
    return len(next(iter(inputs.values())))
