"""The parent's side of a peer: its process, its answers, and the limit on how long it may take."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).resolve().with_name("peers.py")

# The packages and programs that each peer needs; pytest because PyTorch's side of the nets is shared with the tests.
NEEDS = {
    "graphc": ("graphc",),
    "eager": ("torch", "pytest"),
    "compile": ("torch", "pytest"),
    "onnxruntime": ("onnxruntime", "onnx", "torch", "pytest"),
    "openvino": ("openvino", "onnx", "torch", "pytest"),
    "jax": ("jax", "jaxlib"),
    "emx": ("emx_onnx_cgen", "onnx", "torch", "pytest"),
    "onnx2c": ("onnx2c", "onnx", "torch", "pytest"),
    "kernel": ("graphc",),
    "runtime": ("graphc",),
}
PROGRAMS = ("onnx2c",)
TITLES = {
    "graphc": "graphc", "eager": "PyTorch eager", "compile": "torch.compile",
    "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "jax": "JAX",
    "emx": "emx-onnx-cgen", "onnx2c": "onnx2c",
}  # fmt: skip
# What emits C for one thread, in plain loops: these are no peers in the table of all threads.
EMITTERS = ("emx", "onnx2c")


def missing(peer: str) -> list[str]:
    """Return the packages and programs that the peer needs and that are not installed."""

    def found(name: str) -> bool:
        return bool(shutil.which(name) if name in PROGRAMS else importlib.util.find_spec(name))

    return [name for name in NEEDS[peer] if not found(name)]


ALL = ("graphc", "torch", "onnx", "onnxruntime", "openvino", "jax", "jaxlib", "numpy")


def versions(packages: tuple[str, ...] = ALL) -> dict[str, str]:
    """Return the versions of those packages that are installed, by default of graphc, the peers and NumPy."""
    present = (p for p in packages if importlib.util.find_spec(p) is not None)
    return {package: importlib.metadata.version(package) for package in present}


class WorkerError(Exception):
    """A peer stopped, took too long or reported an error."""


class Worker:
    """A peer in a process of its own, which waits in ``read`` whenever it is not asked."""

    def __init__(self, peer: str, case: dict[str, Any], limit: float, script: Path = SCRIPT):
        """Start the process and wait until it has computed its outputs; ``limit`` in seconds holds for each answer.

        Another ``script`` than peers.py may answer something else first.

        Raises:
            WorkerError: the peer cannot compute this case.
        """
        self.peer, self.limit = peer, limit
        environment = {**os.environ, "OMP_NUM_THREADS": str(case["threads"])}
        environment.pop("OMP_WAIT_POLICY", None)
        if case.get("wait_policy"):
            environment["OMP_WAIT_POLICY"] = case["wait_policy"]
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in kill
        self.process = subprocess.Popen(
            [sys.executable, str(script), peer], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.log, env=environment, start_new_session=True, bufsize=0,
        )  # fmt: skip
        try:
            self.facts = self.ask(case)
        except BaseException:
            self.kill()
            raise

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to one request.

        Raises:
            WorkerError: the peer stopped, took too long or reported an error.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        until, answer = time.monotonic() + self.limit, b""
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
        except BrokenPipeError:
            raise WorkerError(self._stopped()) from None
        while not answer.endswith(b"\n"):
            left = until - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                raise WorkerError(f"no answer within {self.limit:g} s")
            part = os.read(self.process.stdout.fileno(), 1 << 16)
            if not part:
                raise WorkerError(self._stopped())
            answer += part
        result: dict[str, Any] = json.loads(answer)
        if "error" in result:
            raise WorkerError(result["error"])
        return result

    def _stopped(self) -> str:
        """Return how the process ended, and the last line that it wrote."""
        status = self.process.wait()
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        return f"stopped with {how}" + (f": {lines[-1][:200]}" if lines else "")

    def stop(self) -> None:
        """End the process by the end of its input, and by force if it does not follow."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self.kill()

    def kill(self) -> None:
        """The process and those it started are gone."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.log):
            if pipe is not None:
                pipe.close()
