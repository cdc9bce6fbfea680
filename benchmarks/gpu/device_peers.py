"""The peers on a GPU, each in a process of its own: ``python device_peers.py NAME``, driven over its pipes.

They answer as those of benchmarks/peers.py do, but each has up to two ways to be called: from "host", where images
come as NumPy arrays and results return to the host, and on the "device", where images lie there already and the call
ends when the device is done. A request names the way, or asks for the time of the kernels alone. "build" only fills
the cache. A case with device "cpu" is the dry run.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpu import equipment
from nets import inputs, net_of, torch_nets
from peers import (
    COMPARED_STEPS,
    LEARNING_RATE,
    MOMENTUM,
    Case,
    Step,
    _load,
    answering,
    failure,
    onnx_path,
    stored,
    timed,
)

Ways = dict[str, Step]
# Ways to call, the logits in inference, and facts of the net ("work") or of the peer.
Ready = tuple[Ways, np.ndarray, dict[str, Any]]

PRECISIONS = ("fp32", "tf32", "bf16")
KERNELS = 12  # of a call, named in the results


def module_of(case: Case) -> tuple[Any, Any]:
    """Return what graphc compiles of a case, and its logits."""
    import graphc as gc

    net, training = net_of(case), case["mode"] == "training"
    x, y = gc.input("x", ("N", *net.shape)), gc.input("y", ("N",), dtype="int32")
    logits = net.graph(gc, x)
    module = gc.compile(
        {"logits": logits},
        loss=gc.losses.cross_entropy(logits, y) if training else None,
        optimizer=gc.SGD(lr=LEARNING_RATE, momentum=MOMENTUM) if training else None,
        batch=case["batch"],
        target=case["target"],
        precision=case["precision"],
    )
    return module, logits


def build(case: Case) -> Ready:
    """Compile into the cache; a process that sees no GPU gets no further than that, and takes none of its memory."""
    from graphc.errors import GraphcError

    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        module_of(case)
    except GraphcError as error:
        if type(error).__name__ != "DeviceError":
            raise
    return {}, np.zeros(0), {}


def graphc(case: Case) -> Ready:
    """Run graphc, whose calls start and end on the host.

    Raises:
        MemoryError: the device has less memory than the module's blocks, which would be paged in and out.
    """
    import graphc as gc

    module, logits = module_of(case)
    sizes = module.manifest["sizes"]
    blocks = sum(memory.nbytes for memory in module._blocks.values())
    whole = equipment.memory_bytes({"gpu": equipment.query(("memory.total",))})
    if case["device"] == "cuda" and blocks > 0.95 * whole:
        raise MemoryError(
            f"out of memory: {blocks / 2**30:.1f} GiB of {whole / 2**30:.1f} GiB would be paged"
        )
    if (Path(case["folder"]) / "weights.npz").exists():  # without PyTorch there are none to share
        for name, value in stored(case).items():
            (module.params if name in module.params else module.state)[name] = value
    data = inputs(case)
    macs = sum(row.macs for row in gc.layers({"logits": logits}))
    work = {"flops": 2 * macs * case["batch"] * (3 if case["mode"] == "training" else 1)}
    facts = {"work": work, "device_bytes": blocks, "arena_bytes": sizes["arena_bytes"]}
    output = module.predict(x=data["x"])["logits"]
    if case["mode"] == "training":
        return {"host": lambda: float(module.train_step(x=data["x"], y=data["y"]))}, output, facts
    return {"host": lambda: module.predict(x=data["x"])}, output, facts


class TorchCalls:
    """A PyTorch net that is called from the host or on the device."""

    def __init__(self, case: Case, compiled: bool):
        """The net has the weights of the case, and lies where it runs."""
        import torch
        from gpu.ceilings import set_precision

        self.torch, self.case, self.device = torch, case, case["device"]
        set_precision(case["precision"])
        torch.backends.cudnn.benchmark = True  # as whoever cares for speed has it
        net = net_of(case).torch(torch_nets())
        _load(net, stored(case))
        self.net = net.to(self.device)
        self.training = case["mode"] == "training"
        self.net.train(self.training)
        self.run = torch.compile(self.net, mode="max-autotune") if compiled else self.net
        data = inputs(case)
        self.host = {"x": torch.from_numpy(data["x"]), "y": torch.from_numpy(data["y"])}
        self.given = {name: self.moved(name) for name in self.host}
        fused = True if self.device == "cuda" else None
        self.optimizer = torch.optim.SGD(
            self.net.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, fused=fused
        )

    def moved(self, name: str) -> Any:
        """Return an input on the device; labels as PyTorch wants them."""
        value = self.host[name].to(self.device)
        return value.long() if name == "y" else value

    def _cast(self) -> Any:
        enabled = self.case["precision"] == "bf16"
        return self.torch.autocast(self.device, dtype=self.torch.bfloat16, enabled=enabled)

    def infer(self, x: Any) -> Any:
        """Return the logits, on the device."""
        self.torch.compiler.cudagraph_mark_step_begin()
        with self.torch.inference_mode(), self._cast():
            return self.run(x)

    def train(self, x: Any, y: Any) -> Any:
        """Make a step, and return the loss on the device."""
        self.torch.compiler.cudagraph_mark_step_begin()
        self.optimizer.zero_grad()
        with self._cast():
            loss = self.torch.nn.functional.cross_entropy(self.run(x).float(), y)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def output(self) -> np.ndarray:
        """Return the logits in inference mode; where a training step is timed, of the net as it is written."""
        if not self.training:
            return np.array(self.infer(self.given["x"]).float().cpu())
        self.net.eval()
        with self.torch.no_grad(), self._cast():
            found = np.array(self.net(self.given["x"]).float().cpu())
        self.net.train()
        return found

    def wait(self) -> None:
        """The device is done."""
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def ways(self) -> Ways:
        """Return both ways to call."""

        def on_device() -> None:
            self.train(self.given["x"], self.given["y"]) if self.training else self.infer(self.given["x"])
            self.wait()

        def from_host() -> Any:
            if self.training:
                return self.train(self.moved("x"), self.moved("y")).item()
            return self.infer(self.moved("x")).float().cpu()

        return {"host": from_host, "device": on_device}


def eager(case: Case, compiled: bool = False) -> Ready:
    """Run PyTorch by its own kernels."""
    calls = TorchCalls(case, compiled)
    output = calls.output()
    return calls.ways(), output, {}


def compile_(case: Case) -> Ready:
    """Run PyTorch by the kernels that torch.compile finds best, in CUDA graphs."""
    return eager(case, compiled=True)


def onnxruntime(case: Case) -> Ready:
    """Run ONNX Runtime on what PyTorch exported."""
    import onnxruntime as ort

    options = {
        "use_tf32": "1" if case["precision"] == "tf32" else "0",
        "cudnn_conv_algo_search": "EXHAUSTIVE",
    }
    session = ort.InferenceSession(onnx_path(case), providers=[("CUDAExecutionProvider", options)])
    # Without its libraries it falls back to the processor, and only warns.
    if "CUDAExecutionProvider" not in session.get_providers():
        raise RuntimeError("ONNX Runtime could not load its CUDA provider")
    feed = {"x": inputs(case)["x"]}
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(feed["x"], "cuda", 0))
    binding.bind_output("logits", "cuda")

    def on_device() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return {"host": lambda: session.run(None, feed), "device": on_device}, session.run(None, feed)[0], {}


PEERS: dict[str, Callable[[Case], Ready]] = {
    "graphc": graphc, "eager": eager, "compile": compile_, "onnxruntime": onnxruntime, "build": build,
}  # fmt: skip


def kernel_times(events: Iterable[Any], calls: int) -> dict[str, float]:
    """Return milliseconds a call by kernel, the longest first; copies from and to the host are left out."""
    found: dict[str, float] = {}
    for event in events:
        on_device = str(event.device_type).endswith("CUDA") and event.self_device_time_total > 0
        if on_device and not event.key.startswith(("Memcpy HtoD", "Memcpy DtoH")):
            found[event.key] = found.get(event.key, 0.0) + event.self_device_time_total / 1e3 / calls
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def profiled(step: Step, calls: int) -> dict[str, Any]:
    """Return the time of a call's kernels, all together and each of the longest, by PyTorch's profiler of CUDA."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.init()
    step()
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        for _ in range(calls):
            step()
        torch.cuda.synchronize()
    times = kernel_times(recorded.key_averages(), calls)
    if not times:
        raise RuntimeError("PyTorch's profiler saw no kernel")
    return {"kernels_ms": sum(times.values()), "kernels": dict(list(times.items())[:KERNELS])}


def start(name: str, case: Case) -> tuple[Ways, dict[str, Any]]:
    """Return the ways to call a peer and what the parent compares; each way has run at least once."""
    began = time.perf_counter()
    ways, output, facts = PEERS[name](case)
    work, training = facts.pop("work", {}), case["mode"] == "training"
    path = Path(case["folder"]) / f"{case.get('label', name)}.npy"
    np.save(path, output)
    losses = [float(ways["host"]()) for _ in range(COMPARED_STEPS)] if training and ways else []
    for step in ways.values():
        step()
    seconds = time.perf_counter() - began
    return ways, {"work": work, "more": facts, "output": str(path), "losses": losses, "start_s": seconds}


def main() -> None:
    """Serve one peer until standard input ends."""
    answer = answering()
    try:
        ways, facts = start(sys.argv[1], json.loads(sys.stdin.readline()))
        answer({**facts, "ways": list(ways)})
        last: dict[str, float] = {}
        for line in sys.stdin:
            request = json.loads(line)
            way = request["way"]
            if "profile" in request:
                answer(profiled(ways[way], request["profile"]))
                continue
            result = timed(ways[way], request["seconds"], last.get(way, 0.0))
            last[way] = result["median"]
            answer(result)
    except Exception as error:
        answer(failure(error))


if __name__ == "__main__":
    main()
