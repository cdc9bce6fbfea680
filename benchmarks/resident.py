"""One peer, whose process memory.py measures from outside: ``python resident.py NAME``, driven by worker.py.

The first line of standard input is a case as JSON. The process imports what the peer needs, answers, and waits, so
that the parent can read what this took. At the next line it makes the net and runs it, answers with what is known
of it, and waits until standard input ends.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peers
from nets import inputs, net_of, torch_nets

Case = dict[str, Any]

# What is loaded before there is a net; torch.compile loads its compiler at the first call.
IMPORTS = {
    "graphc": ("graphc",),
    "runtime": ("graphc_runtime",),
    "eager": ("torch", "torch.optim"),
    "compile": ("torch", "torch.optim", "torch._dynamo", "torch._inductor.compile_fx"),
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
}


def graphc(case: Case) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Compile by graphc, or load what was compiled before; the module's description is in the case's folder."""
    module, _ = peers.graphc_module(case)
    _describe(case).write_text(json.dumps({"manifest": module.manifest, "library": str(module.library)}))
    plan = module.plan("train" if case["mode"] == "training" else "inference")
    weights = sum(array.nbytes for array in (*module.params.values(), *module.state.values()))
    facts = {"arena_bytes": plan.arena_bytes, "kept_bytes": plan.kept_bytes, "weights_bytes": weights}
    return _step(module, case), facts


def runtime(case: Case) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Load what graphc compiled by its runtime, which imports no compiler; weights are 1/fan_in."""
    from graphc_runtime import Module

    found = json.loads(_describe(case).read_text())
    module = Module(found["manifest"], Path(found["library"]), {})
    module.threads = case["threads"]
    for arrays in (module.params, module.state):
        for name, array in arrays.items():
            one = np.float32(1 / np.prod(array.shape[1:]) if array.ndim else 1)
            arrays[name] = np.broadcast_to(one, array.shape)
    return _step(module, case), {}


def _describe(case: Case) -> Path:
    return Path(case["folder"]) / "described.json"


def _step(module: Any, case: Case) -> Callable[[], Any]:
    data = inputs(case)
    if case["mode"] == "training":
        return lambda: module.train_step(x=data["x"], y=data["y"])
    return lambda: module.predict(x=data["x"])


def kept(case: Case, compiled: bool = False) -> int:
    """Return the bytes that PyTorch keeps for the backward pass, each storage once.

    The net's parameters, its buffers, its input and the labels are there anyway, and not counted.
    """
    import torch

    torch.set_num_threads(case["threads"])
    net = net_of(case).torch(torch_nets()).train()
    data = {name: torch.from_numpy(value) for name, value in inputs(case).items()}
    given = [data["x"], data["y"].long()]
    run = torch.compile(net) if compiled else net
    found: dict[int, Any] = {}  # the storages stay, so that no address is given away twice

    def loss() -> Any:
        return torch.nn.functional.cross_entropy(run(given[0]), given[1])

    def pack(tensor: Any) -> Any:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    loss().backward()  # torch.compile compiles before anybody listens
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = loss()
    del value
    others = {t.untyped_storage().data_ptr() for t in (*net.parameters(), *net.buffers(), *given)}
    return sum(storage.nbytes() for address, storage in found.items() if address not in others)


def ready(name: str, case: Case) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Return the step of a peer, and what is known of its net."""
    if name in ("graphc", "runtime"):
        return (graphc if name == "graphc" else runtime)(case)
    if case["mode"] == "kept":
        size = kept(case, compiled=name == "compile")
        return (lambda: None), {"kept_bytes": size}
    return peers.PEERS[name](case)[0], {}


def main() -> None:
    """Import, answer, run, answer, and wait."""
    answer = peers.answering()
    try:
        case = json.loads(sys.stdin.readline())
        for module in IMPORTS[sys.argv[1]]:
            importlib.import_module(module)
        answer({})
        if not sys.stdin.readline():
            return
        step, facts = ready(sys.argv[1], case)
        seconds = []
        for _ in range(case["steps"]):
            begin = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - begin)
        answer(facts | ({"seconds": min(seconds)} if seconds else {}))
        sys.stdin.readline()
    except Exception as error:
        answer(peers.failure(error))


if __name__ == "__main__":
    main()
