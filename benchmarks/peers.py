"""The peers, each run in a process of its own: ``python peers.py NAME``, driven over its pipes by worker.py.

The first line of standard input is a case as JSON; the answer says what the peer computed for it. Every further
line asks for a round of timed calls. Between lines the process waits in ``read``. What a library prints to
standard output goes to standard error, so that answers stay apart.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import c_peers
import numpy as np
from nets import inputs, kernel_of, net_of, torch_nets

Case = dict[str, Any]
Step = Callable[[], Any]  # a training step returns the loss before the update
# A case that is run "alone" has each peer's own first weights, and nothing that is compared with another's.
# The step, the logits in inference, and further facts: those of the "work" are the row's, all others the peer's.
Ready = tuple[Step, np.ndarray, dict[str, Any]]

# Small enough that rounding, which the steps of deep nets at random weights magnify, stays below what is compared.
LEARNING_RATE, MOMENTUM = 3e-4, 0.9
COMPARED_STEPS = 2  # training steps whose losses are compared: the second depends on the gradient


def stored(case: Case) -> dict[str, np.ndarray]:
    """Return the weights and running statistics that all peers start from."""
    with np.load(Path(case["folder"]) / "weights.npz") as file:
        return {name: file[name] for name in file.files}


def _save(case: Case, values: dict[str, np.ndarray]) -> None:
    """The weights are in the folder of the case, whole or not at all."""
    path = Path(case["folder"]) / "weights.npz"
    np.savez(path.with_name("unfinished.npz"), **values)
    path.with_name("unfinished.npz").replace(path)


def onnx_path(case: Case) -> str:
    """Return where the net in ONNX's format lies, for this batch."""
    return str(Path(case["folder"]) / f"batch{case['batch']}.onnx")


def prepare(case: Case) -> Ready:
    """Write the weights, with running statistics near those of the images, and the ONNX file if asked for."""
    import torch

    peers = torch_nets()
    weights = Path(case["folder"]) / "weights.npz"
    net = net_of(case).torch(peers)
    if weights.exists():
        _load(net, stored(case))
    else:
        peers.randomise(net, torch.from_numpy(inputs(case, 4)["x"]), seed=0)
        _save(case, peers.weights(net))
    if case["onnx"] and not Path(onnx_path(case)).exists():
        images = torch.from_numpy(inputs(case)["x"])
        with torch.no_grad():
            torch.onnx.export(
                net.eval(), (images,), onnx_path(case), dynamo=False,
                input_names=["x"], output_names=["logits"],
            )  # fmt: skip
    return (lambda: None), np.zeros(0), {}


def _load(net: Any, values: dict[str, np.ndarray]) -> None:
    """Copy the weights and running statistics into the PyTorch module, by name."""
    views = torch_nets().weights(net)
    assert set(views) == set(values), set(views) ^ set(values)
    for name, view in views.items():
        view[...] = values[name]


def graphc_module(case: Case) -> tuple[Any, Any]:
    """Return what graphc compiles of a case, and the logits that it was given.

    A ``lean`` case keeps no gradients; its ``budget`` is a part of the arena that the training step has without one.
    """
    import graphc as gc

    net, training = net_of(case), case["mode"] == "training"
    x, y = gc.input("x", ("N", *net.shape)), gc.input("y", ("N",), dtype="int32")
    logits = net.graph(gc, x)

    def compiled(budget: int | None) -> Any:
        return gc.compile(
            {"logits": logits},
            loss=gc.losses.cross_entropy(logits, y) if training else None,
            optimizer=gc.SGD(lr=LEARNING_RATE, momentum=MOMENTUM) if training else None,
            batch=case["batch"],
            keep_gradients=not case.get("lean", False),
            memory_budget=budget,
        )

    module = compiled(None)
    if case.get("budget"):
        module = compiled(int(case["budget"] * module.plan("train").arena_bytes))
    module.threads = case["threads"]
    return module, logits


def graphc(case: Case) -> Ready:
    """Compile by graphc; without PyTorch, its own first weights are written for the others."""
    import graphc as gc

    data, training = inputs(case), case["mode"] == "training"
    module, logits = graphc_module(case)
    own = {**module.params, **module.state}
    if (Path(case["folder"]) / "weights.npz").exists():
        values = stored(case)
        assert set(values) == set(own), set(values) ^ set(own)
        for name, value in values.items():
            (module.params if name in module.params else module.state)[name] = value
    else:
        _save(case, own)
    macs = sum(row.macs for row in gc.layers({"logits": logits}))
    work = {
        "flops": 2 * macs * case["batch"] * (3 if training else 1),
        "arena_bytes": module.plan("train" if training else "inference").arena_bytes,
    }
    facts = {"work": work, "lines": sum(map(c_peers.lines_of_code, module.source.values()))}
    output = module.predict(x=data["x"])["logits"]
    if training:
        return (lambda: module.train_step(x=data["x"], y=data["y"])), output, facts
    return (lambda: module.predict(x=data["x"])), output, facts


def kernel(case: Case) -> Ready:
    """Compile one kernel by graphc, which multiplies directly; the output array is the same in every call."""
    import graphc as gc

    result = kernel_of(gc, case)
    module = gc.compile({"out": result}, batch=case["batch"], winograd=False)
    module.threads = case["threads"]
    rng = np.random.default_rng(0)
    data = {
        name: rng.standard_normal([extent or case["batch"] for extent in shape], dtype=np.float32)
        for name, (_, shape) in module.input_types.items()
    }
    out = module.predict(**data)
    flops = result.op.flops(result.type, *(node.type for node in result.inputs))
    arrays = [*data.values(), *out.values(), *module.params.values()]
    work = {"flops": flops.at(case["batch"]), "bytes": sum(array.nbytes for array in arrays)}
    (entry,) = (e for e in module.manifest["entries"] if e["name"] == "predict")
    work["kernels"] = [call["kernel"] for call in entry["calls"]]
    return (lambda: module.predict(out=out, **data)), out["out"].copy(), {"work": work}


def eager(case: Case, compiled: bool = False) -> Ready:
    """Run PyTorch, by its own kernels or by those that torch.compile makes."""
    import torch

    torch.set_num_threads(case["threads"])
    net = net_of(case).torch(torch_nets())
    if not case.get("alone"):
        _load(net, stored(case))
    data = {name: torch.from_numpy(value) for name, value in inputs(case).items()}
    labels = data["y"].long()
    run = torch.compile(net) if compiled else net

    def infer() -> Any:
        with torch.inference_mode():
            return run(data["x"])

    net.eval()
    if case["mode"] == "inference":
        return infer, infer().numpy(), {}
    with torch.no_grad():
        output = np.zeros(0) if case.get("alone") else net(data["x"]).numpy()
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)

    def train() -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(run(data["x"]), labels)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return train, output, {}


def compile_(case: Case) -> Ready:
    """Run PyTorch by the kernels that torch.compile makes."""
    return eager(case, compiled=True)


def onnxruntime(case: Case) -> Ready:
    """Run ONNX Runtime on what PyTorch exported."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = case["threads"]
    session = ort.InferenceSession(onnx_path(case), options, providers=["CPUExecutionProvider"])
    feed = {"x": inputs(case)["x"]}
    return (lambda: session.run(None, feed)), session.run(None, feed)[0], {}


def openvino(case: Case) -> Ready:
    """Run OpenVINO on what PyTorch exported, in float32 as all others."""
    import openvino as ov

    settings = {
        "INFERENCE_NUM_THREADS": case["threads"],
        "INFERENCE_PRECISION_HINT": "f32",  # some processors would get bfloat16
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = ov.Core().compile_model(onnx_path(case), "CPU", settings).create_infer_request()
    images = [inputs(case)["x"]]

    def infer() -> Any:
        return request.infer(images, share_inputs=True, share_outputs=True)

    return infer, np.array(infer()[0]), {}


def emx(case: Case) -> Ready:
    """Run the C that emx-onnx-cgen makes of what PyTorch exported."""
    return c_peers.emx(case, onnx_path(case))


def onnx2c(case: Case) -> Ready:
    """Run the C that onnx2c makes of what PyTorch exported."""
    return c_peers.onnx2c(case, onnx_path(case))


def jax(case: Case) -> Ready:
    """Run JAX with jit, for mlp and lenet."""
    import jax
    from jax import numpy as jnp

    data = {name: jnp.asarray(value) for name, value in inputs(case).items()}
    weights = {name: jnp.asarray(value) for name, value in stored(case).items()}

    def linear(w: Any, h: Any, name: str) -> Any:
        return h @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def stage(w: Any, h: Any, name: str) -> Any:
        h = jax.lax.conv_general_dilated(h, w[f"{name}.weight"], (1, 1), "VALID")  # NCHW, OIHW
        h = jax.nn.relu(h + w[f"{name}.bias"][:, None, None])
        return jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")

    def logits(w: Any, x: Any) -> Any:
        h = x if case["net"] == "mlp" else stage(w, stage(w, x, "conv1"), "conv2")
        h = h.reshape(len(h), -1)
        return linear(w, jax.nn.relu(linear(w, jax.nn.relu(linear(w, h, "fc1")), "fc2")), "fc3")

    def loss(w: Any, x: Any, y: Any) -> Any:
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits(w, x)), y[:, None], 1))

    def update(w: Any, velocity: Any, x: Any, y: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(w, x, y)
        velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, grads)
        return jax.tree.map(lambda p, v: p - LEARNING_RATE * v, w, velocity), velocity, value

    predict = jax.jit(logits)
    output = np.array(predict(weights, data["x"]))
    if case["mode"] == "inference":
        return (lambda: predict(weights, data["x"]).block_until_ready()), output, {}
    step = jax.jit(update, donate_argnums=(0, 1))
    state = [weights, jax.tree.map(jnp.zeros_like, weights)]

    def train() -> float:
        *state[:], value = step(*state, data["x"], data["y"])
        jax.block_until_ready(state)
        return float(value)

    return train, output, {}


PEERS: dict[str, Callable[[Case], Ready]] = {
    "graphc": graphc, "eager": eager, "compile": compile_, "onnxruntime": onnxruntime,
    "openvino": openvino, "jax": jax, "emx": emx, "onnx2c": onnx2c, "kernel": kernel,
}  # fmt: skip


def timed(step: Step, seconds: float, last: float) -> dict[str, float]:
    """Return median and best seconds of single calls; calls shorter than a tenth of the round warm up first."""
    warm = time.perf_counter() + seconds / 4
    while last < seconds / 10 and time.perf_counter() < warm:
        step()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return {"median": statistics.median(times), "best": min(times), "calls": len(times)}


def start(name: str, case: Case) -> tuple[Step, dict[str, Any]]:
    """Return the step of a peer and what the parent compares; the step has run at least once."""
    began = time.perf_counter()
    step, output, facts = (prepare if name == "prepare" else PEERS[name])(case)
    work = facts.pop("work", {})
    path = Path(case["folder"]) / f"{case.get('label', name)}.npy"
    np.save(path, output)
    count = COMPARED_STEPS if case["mode"] == "training" else 1
    results = [step() for _ in range(count)]
    losses = [float(loss) for loss in results] if case["mode"] == "training" and name != "prepare" else []
    seconds = time.perf_counter() - began
    return step, {"work": work, "more": facts, "output": str(path), "losses": losses, "start_s": seconds}


def answering() -> Callable[[dict[str, Any]], None]:
    """Return what answers the parent; whatever else is printed goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    return answer


def failure(error: Exception) -> dict[str, str]:
    """Return the answer that tells of an error, which is on standard error in full."""
    traceback.print_exception(error)
    return {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}


def main() -> None:
    """Serve one peer until standard input ends."""
    answer = answering()
    try:
        step, facts = start(sys.argv[1], json.loads(sys.stdin.readline()))
        answer(facts)
        last = 0.0
        for line in sys.stdin:
            result = timed(step, json.loads(line)["seconds"], last)
            last = result["median"]
            answer(result)
    except Exception as error:
        answer(failure(error))


if __name__ == "__main__":
    main()
