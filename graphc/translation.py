"""A net as the compiler leaves it before anything is built: graphs, kernels, memory plans and C."""

from __future__ import annotations

import numpy as np

from graphc.artifact import Artifact
from graphc.errors import RangeError
from graphc.memory import ArenaPlan
from graphc.pipeline import Compiled, Request, compile_program


class Translation:
    """What a request was translated to; no C compiler has seen it, and it has no weights."""

    def __init__(self, request: Request, artifact: Artifact):
        """Read the artifact's plans; the pipeline runs again only if ``compiled`` is asked for."""
        self.request, self.artifact = request, artifact
        self.manifest = artifact.manifest
        self.name: str = artifact.manifest["name"]
        self.batch: int = artifact.manifest["batch"]
        self.fingerprint: str = artifact.manifest["fingerprint"]
        self.dtype = np.dtype(artifact.manifest["dtype"])
        self._plans = {name: ArenaPlan.from_dict(plan) for name, plan in artifact.plans.items()}
        self._compiled: Compiled | None = None

    @property
    def source(self) -> dict[str, str]:
        """The generated C, by file name."""
        return dict(self.artifact.sources)

    @property
    def compiled(self) -> Compiled:
        """The intermediate results."""
        if self._compiled is None:
            self._compiled = compile_program(self.request)
        return self._compiled

    def plan(self, mode: str = "inference") -> ArenaPlan:
        """Return the memory plan of ``"inference"``, ``"train"`` or ``"evaluate"``.

        Raises:
            RangeError: there is no such entry point.
        """
        entry = {"inference": "predict", "train": "train_step"}.get(mode, mode)
        if entry not in self._plans:
            raise RangeError(f"no plan for {mode!r}; this module has {', '.join(self._plans)}")
        return self._plans[entry]
