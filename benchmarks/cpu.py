"""Time graphc beside PyTorch eager on small nets: same weights, same inputs, same threads, same run.

    python benchmarks/cpu.py --threads 2 --rounds 7 --json benchmarks/results/cpu.json

Each peer runs in a process of its own, since two OpenMP pools that spin in one process slow each other down.
Rounds alternate between the peers. Outputs are compared before anything is timed. Prints the median and the
minimum of the rounds, and the ratio of the minima.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve()
CASES = [
    (net, mode, batch)
    for net in ("mlp", "lenet")
    for mode, batch in (("inference", 1), ("inference", 64), ("training", 64))
]


def inputs(net: str, batch: int) -> dict[str, np.ndarray]:
    """Return the same inputs for every peer."""
    rng = np.random.default_rng(0)
    shape = (batch, 1, 28, 28) if net == "mlp" else (batch, 1, 32, 32)
    return {
        "x": rng.standard_normal(shape).astype(np.float32),
        "y": rng.integers(0, 10, batch).astype(np.int32),
    }


def graphc_step(net: str, mode: str, batch: int, threads: int) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Return a step of graphc, and what it computed and needs."""
    import graphc as gc

    data = inputs(net, batch)
    x = gc.input("x", ("N", *data["x"].shape[1:]))
    y = gc.input("y", ("N",), dtype="int32")
    logits = gc.models.mlp(x) if net == "mlp" else gc.models.lenet(x)
    training = mode == "training"
    module = gc.compile(
        {"logits": logits},
        loss=gc.losses.cross_entropy(logits, y) if training else None,
        optimizer=gc.SGD(lr=0.01, momentum=0.9) if training else None,
        batch=batch,
        name=net,
    )
    module.threads = 1 if not training and batch == 1 else threads
    facts = {
        "weights": {k: v.copy() for k, v in module.params.items()},
        "output": module.predict(x=data["x"])["logits"],
        "arena_bytes": module.plan("train" if training else "inference").arena_bytes,
    }
    if training:
        return (lambda: module.train_step(x=data["x"], y=data["y"])), facts
    return (lambda: module.predict(x=data["x"])), facts


def torch_step(
    net: str, mode: str, batch: int, threads: int, weights: dict[str, np.ndarray]
) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Return a step of PyTorch eager with the given weights."""
    import torch
    from torch import nn

    torch.set_num_threads(threads)
    data = {k: torch.from_numpy(v) for k, v in inputs(net, batch).items()}
    labels = data["y"].long()
    if net == "mlp":
        layers: list[nn.Module] = [
            nn.Flatten(),
            nn.Linear(784, 512),
            nn.ReLU(),
            nn.Linear(512, 512),
            nn.ReLU(),
        ]
        model = nn.Sequential(*layers, nn.Linear(512, 10))
        order = ["fc1", "fc2", "fc3"]
    else:
        model = nn.Sequential(
            nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
        )  # fmt: skip
        order = ["conv1", "conv2", "fc1", "fc2", "fc3"]
    with torch.no_grad():
        for name, layer in zip(order, [m for m in model if hasattr(m, "weight")], strict=True):
            layer.weight.copy_(torch.from_numpy(weights[f"{name}.weight"]))
            layer.bias.copy_(torch.from_numpy(weights[f"{name}.bias"]))
        output = model(data["x"]).numpy()
    if mode == "inference":
        model.eval()

        def infer() -> Any:
            with torch.inference_mode():
                return model(data["x"])

        return infer, {"output": output}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def train() -> Any:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(data["x"]), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return train, {"output": output}


def serve(peer: str) -> None:
    """Run one peer: read a case from standard input, answer each request for a round with seconds a step."""
    case = json.loads(sys.stdin.readline())
    arguments = (case["net"], case["mode"], case["batch"], case["threads"])
    if peer == "graphc":
        step, facts = graphc_step(*arguments)
    else:
        weights = {k: np.asarray(v, np.float32) for k, v in case["weights"].items()}
        step, facts = torch_step(*arguments, weights)
    listed = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in facts.items()}
    if "weights" in listed:
        listed["weights"] = {k: v.tolist() for k, v in listed["weights"].items()}
    print(json.dumps(listed), flush=True)
    for _ in range(10):
        step()
    for _ in sys.stdin:
        repeats, start = 0, time.perf_counter()
        while repeats < 5 or time.perf_counter() - start < 0.2:
            step()
            repeats += 1
        print((time.perf_counter() - start) / repeats, flush=True)


class Peer:
    """A peer in its own process."""

    def __init__(self, name: str, case: dict[str, Any]):
        """Start the process and read what it computed."""
        environment = dict(os.environ, OMP_NUM_THREADS=str(case["threads"]), OMP_WAIT_POLICY="passive")
        self.process = subprocess.Popen(
            [sys.executable, str(HERE), "--serve", name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.facts = json.loads(self._ask(json.dumps(case)))

    def _ask(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"a peer stopped: {self.process.args}")
        return answer

    def round(self) -> float:
        """Return the seconds of a step in one round."""
        return float(self._ask("go"))

    def stop(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(net: str, mode: str, batch: int, threads: int, rounds: int) -> dict[str, Any]:
    """Return the times of one case."""
    case: dict[str, Any] = {"net": net, "mode": mode, "batch": batch, "threads": threads}
    ours = Peer("graphc", case)
    theirs = Peer("torch", {**case, "weights": ours.facts["weights"]})
    difference = np.abs(np.subtract(ours.facts["output"], theirs.facts["output"])).max()
    if not difference < 1e-4:
        raise SystemExit(f"{net} {mode}: outputs differ by {difference}")
    times: dict[str, list[float]] = {"graphc": [], "torch": []}
    for _ in range(rounds):
        times["graphc"].append(ours.round())
        times["torch"].append(theirs.round())
    ours.stop()
    theirs.stop()
    result = {
        name: {"median_ms": statistics.median(t) * 1e3, "min_ms": min(t) * 1e3} for name, t in times.items()
    }
    ratio = min(times["torch"]) / min(times["graphc"])
    return {**case, **result, "ratio_of_minima": ratio, "arena_bytes": ours.facts["arena_bytes"]}


def machine() -> dict[str, Any]:
    """Return what the numbers were measured on."""
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), model)
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version()}


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--serve", choices=("graphc", "torch"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    rows = []
    print(f"threads {options.threads}, {options.rounds} rounds, milliseconds a step: minimum (median)\n")
    print("| net | mode | batch | graphc | PyTorch eager | PyTorch / graphc | arena |")
    print("|---|---|---|---|---|---|---|")
    for net, mode, batch in CASES:
        row = measure(net, mode, batch, options.threads, options.rounds)
        rows.append(row)
        cells = [f"{row[p]['min_ms']:.3f} ({row[p]['median_ms']:.3f})" for p in ("graphc", "torch")]
        size = f"{row['arena_bytes'] / 1024:.0f} KiB"
        print(
            f"| {net} | {mode} | {batch} | {cells[0]} | {cells[1]} | {row['ratio_of_minima']:.1f} | {size} |",
            flush=True,
        )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
