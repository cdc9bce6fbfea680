"""What a machine has of what the stages need: a GPU, nvcc, PyTorch and ONNX Runtime with CUDA, compute-sanitizer."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_GPU = ("name", "driver_version", "memory.total", "memory.free", "clocks.sm", "clocks.mem", "clocks.max.sm",
        "clocks.max.mem", "power.limit", "compute_cap", "persistence_mode")  # fmt: skip
_CLOCKS = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw")
# In a process of its own: what it takes of the device goes with it.
_LIBRARIES = """
import importlib.util, json
found = {}
if importlib.util.find_spec("torch"):
    import torch
    found["torch"] = torch.__version__
    found["torch_cuda"] = torch.version.cuda if torch.cuda.is_available() else None
    found["cudnn"] = torch.backends.cudnn.version() if torch.cuda.is_available() else None
if importlib.util.find_spec("onnxruntime"):
    import onnxruntime
    found["onnxruntime"] = onnxruntime.__version__
    found["onnxruntime_cuda"] = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
found["onnx"] = importlib.util.find_spec("onnx") is not None
found["xdist"] = importlib.util.find_spec("xdist") is not None
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Equipment:
    """The facts of a machine, and for everything that it lacks the reason why that cannot be used."""

    facts: dict[str, Any]
    lacking: dict[str, str] = field(default_factory=dict)

    def why_not(self, needs: tuple[str, ...]) -> str:
        """Return why what needs all these cannot run, "" where it can."""
        return "; ".join(self.lacking[need] for need in needs if need in self.lacking)


def said(command: list[str], seconds: float = 120) -> str:
    """Return what a command prints, "" where there is none or where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def query(fields: tuple[str, ...]) -> dict[str, str]:
    """Return what nvidia-smi says of the first GPU, empty where there is none."""
    lines = said(["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader", "--id=0"], 30)
    values = [value.strip() for value in lines.strip().split("\n")[0].split(",")]
    return dict(zip(fields, values, strict=True)) if len(values) == len(fields) else {}


def clocks() -> dict[str, float]:
    """Return the GPU's clocks in MHz, its degrees and its watts, as they are now."""
    found = {name: re.match(r"[\d.]+", value) for name, value in query(_CLOCKS).items()}
    return {name: float(number[0]) for name, number in found.items() if number}


def memory_bytes(facts: dict[str, Any]) -> int:
    """Return the memory of the GPU that facts describe, 0 where there is none."""
    found = re.match(r"\d+", facts.get("gpu", {}).get("memory.total", ""))
    return int(found[0]) << 20 if found else 0


def look() -> Equipment:
    """Return what this machine has."""
    libraries: dict[str, Any] = json.loads(said([sys.executable, "-c", _LIBRARIES]) or "{}")
    release = re.search(r"release [^\n]+", said(["nvcc", "--version"]))
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None and Path("/usr/local/cuda/bin/compute-sanitizer").exists():
        sanitizer = "/usr/local/cuda/bin/compute-sanitizer"
    gpu = query(_GPU)
    facts = {"gpu": gpu, "nvcc": release[0] if release else None, "sanitizer": sanitizer, **libraries}
    lacking = {}
    if not gpu:
        lacking["gpu"] = "no GPU (nvidia-smi is missing or finds none)"
    if not release:
        lacking["nvcc"] = "no nvcc on PATH (install NVIDIA's CUDA toolkit)"
    if "torch" not in libraries:
        lacking["torch"] = lacking["torch with CUDA"] = "PyTorch is not installed"
    elif not libraries["torch_cuda"]:
        lacking["torch with CUDA"] = f"PyTorch {libraries['torch']} finds no CUDA device"
    if sanitizer is None:
        lacking["compute-sanitizer"] = "no compute-sanitizer on PATH (it comes with NVIDIA's CUDA toolkit)"
    if not libraries.get("onnxruntime_cuda"):
        known = (
            f"{libraries['onnxruntime']} has no CUDA provider"
            if "onnxruntime" in libraries
            else "is not installed"
        )
        lacking["onnxruntime with CUDA"] = f"ONNX Runtime {known} (pip install onnxruntime-gpu)"
    elif not libraries["onnx"]:
        lacking["onnxruntime with CUDA"] = (
            "onnx is not installed, by which PyTorch writes nets for ONNX Runtime"
        )
    return Equipment(facts, lacking)


def text(equipment: Equipment) -> str:
    """Return what was found, a line each."""
    facts, gpu = equipment.facts, equipment.facts["gpu"]
    lines = []
    if gpu:
        lines.append(
            f"GPU: {gpu['name']}, compute capability {gpu['compute_cap']}, driver {gpu['driver_version']}"
        )
        lines.append(f"memory: {gpu['memory.total']}, {gpu['memory.free']} of it free")
        lines.append(
            f"clocks: {gpu['clocks.sm']} of {gpu['clocks.max.sm']}, memory {gpu['clocks.mem']} of "
            f"{gpu['clocks.max.mem']}; power limit {gpu['power.limit']}; persistence mode {gpu['persistence_mode']}"
        )
    if facts["nvcc"]:
        lines.append(f"nvcc: {facts['nvcc']}")
    if "torch" in facts:
        lines.append(f"PyTorch: {facts['torch']}, CUDA {facts['torch_cuda']}, cuDNN {facts['cudnn']}")
    if "onnxruntime" in facts:
        lines.append(f"ONNX Runtime: {facts['onnxruntime']}")
    return "\n".join([*lines, *(f"missing: {why}" for why in dict.fromkeys(equipment.lacking.values()))])
