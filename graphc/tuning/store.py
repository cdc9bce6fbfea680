"""The winners found on this machine, as JSON notes in the build cache: one for each machine and compiler."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from graphc.artifact import compiler_digest
from graphc.build import BuildOptions, Cache, cpu_identity, toolchain_identity
from graphc.passes.variants import AnyTask, Variant


class Store:
    """Variants by task, for one processor or device, compiler, version of graphc, and number of threads.

    What is damaged, or was written by another version, is as good as absent: it is measured again.
    """

    def __init__(self, cache: Cache, machine: Mapping[str, Any]):
        """Name the note; nothing is read yet."""
        self._cache = cache
        self._machine = json.loads(json.dumps(machine))
        self.digest = hashlib.sha256(json.dumps(machine, sort_keys=True).encode()).hexdigest()[:32]
        self._note = f"tuned-{self.digest}.json"

    def read(self) -> dict[str, Variant]:
        """Return the winners by the text of their tasks."""
        return {text: variant for text, (variant, _) in self._entries(self._cache.note(self._note)).items()}

    def add(self, found: Mapping[AnyTask, tuple[Variant, Mapping[str, Any]]]) -> None:
        """Keep winners, each with what was measured, beside those of other nets."""

        def merged(text: str | None) -> str:
            kept = {task: facts for task, (_, facts) in self._entries(text).items()}
            kept |= {str(task): {"variant": v.to_dict(), **facts} for task, (v, facts) in found.items()}
            return json.dumps({"machine": self._machine, "kernels": kept}, indent=1)

        self._cache.change_note(self._note, merged)

    def _entries(self, text: str | None) -> dict[str, tuple[Variant, dict[str, Any]]]:
        try:
            data = json.loads(text or "{}")
            kernels = data["kernels"] if data["machine"] == self._machine else {}
            read = {task: (Variant.from_dict(facts["variant"]), facts) for task, facts in kernels.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            return {}
        return {task: (variant, facts) for task, (variant, facts) in read.items() if variant is not None}


def machine_of(options: BuildOptions, isa: str, threads: int, fork_us: float) -> dict[str, Any]:
    """Return what winners hold for: processor, compiler and flags, this version of graphc, and threads.

    Raises:
        BuildError: there is no compiler.
    """
    return {
        "cpu": cpu_identity(),
        "toolchain": toolchain_identity(options),
        "graphc": compiler_digest(),
        "isa": isa,
        "threads": threads,
        "fork_us": fork_us,
    }


def device_machine(options: BuildOptions, target: str, device: str) -> dict[str, Any]:
    """Return the same for a device: its name, and compilers. The emulator's speed is the processor's.

    Raises:
        BuildError: there is no compiler.
    """
    return {
        "device": device,
        "cpu": cpu_identity() if target == "cuda-emulated" else "",
        "toolchain": toolchain_identity(options, target),
        "graphc": compiler_digest(),
    }
