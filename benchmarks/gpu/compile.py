"""Compile the emitted CUDA of the ready-made nets by nvcc, and look at what ptxas makes of every kernel.

Needs nvcc and no GPU. The source is that of a training step at batch 64 with momentum, beside inference. nvcc is
called with the flags of gc.compile, for all its architectures, and every warning is an error. A net fails where a
kernel puts anything into local memory: a stack frame or spilled registers. The exit status is 1 if one fails.

Examples:
    python benchmarks/gpu/compile.py                     all nets, some minutes
    python benchmarks/gpu/compile.py --quick             mlp alone
    python benchmarks/gpu/compile.py --nets resnet18 "vgg16,norm=True" --batch 256
"""

from __future__ import annotations

import datetime
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import session
import tables
from gpu import ptxas

import graphc as gc
from graphc.build.device import ARCHITECTURES, device_compiler
from graphc.cli.places import model_outputs
from graphc.emit.cuda import emit_cuda
from graphc.isa import SIMT
from graphc.pipeline import Request, compile_program

NETS = (
    "mlp", "lenet", "lenet_1998", "alexnet", "vgg16", "vgg16,norm=True", "googlenet", "googlenet_with_heads",
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet_cifar",
)  # fmt: skip
STRICT = ("-Xptxas", "-v", "-Werror", "all-warnings")
SHOWN = 3  # kernels named in a message


def emitted(net: str, batch: int) -> dict[str, str]:
    """Return the sources that ``gc.compile(..., target="cuda")`` would build, by file name."""
    outputs, y = model_outputs(f"model:{net}"), gc.input("y", ("N",), dtype="int32")
    losses = [gc.losses.cross_entropy(logits, y) for logits in outputs.values()]
    loss = losses[0] + 0.3 * (losses[1] + losses[2]) if len(losses) == 3 else losses[0]
    optimizer = gc.SGD(lr=0.05, momentum=0.9)
    request = Request("net", outputs, loss, {}, optimizer, batch, "float32", isa=SIMT, target="cuda")
    return dict(emit_cuda(compile_program(request).program, optimizer).sources)


def assemble(sources: Mapping[str, str]) -> tuple[int, str]:
    """Return nvcc's exit status and what it says, the kernels' registers among it."""
    nvcc = device_compiler("cuda", ())
    with tempfile.TemporaryDirectory(prefix="graphc-nvcc-") as folder:
        for file, text in sources.items():
            (Path(folder) / file).write_text(text)
        (unit,) = (file for file in sources if file.endswith(".cu"))
        command = [*nvcc.command, *nvcc.flags, *STRICT, "-c", unit, "-o", "net.o"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def nvcc_version() -> str:
    """Return ``nvcc release 13.0, V13.0.88``."""
    text = device_compiler("cuda", ()).version
    found = re.search(r"release [^\n]+", text)
    return f"nvcc {found[0]}" if found else text.strip()


def faults(status: int, said: str, kernels: list[ptxas.Assembled], declared: int) -> list[str]:
    """Return what is wrong with a net: errors, kernels in local memory, kernels that ptxas does not mention."""
    found = []
    if status:
        wrong = [line.strip() for line in said.splitlines() if re.search(r"\b(error|warning|fatal)\b", line)]
        found.append(f"nvcc ended with status {status}: {' | '.join(wrong[:SHOWN])}")
    spilling = [kernel for kernel in kernels if kernel.memory]
    if spilling:
        named = ", ".join(f"{kernel}: {kernel.memory} bytes" for kernel in spilling[:SHOWN])
        found.append(f"{tables.count(len(spilling), 'kernel')} in local memory: {named}")
    for architecture in ARCHITECTURES:
        seen = sum(kernel.architecture == architecture for kernel in kernels)
        if not status and seen != declared:
            found.append(f"{architecture}: ptxas tells of {seen} kernels, the source has {declared}")
    return found


def measure(net: str, batch: int) -> dict[str, Any]:
    """Return the row of a net."""
    began = time.perf_counter()
    sources = emitted(net, batch)
    translated = time.perf_counter()
    status, said = assemble(sources)
    done = time.perf_counter()
    kernels = ptxas.read(said)
    text = "\n".join(sources.values())
    row: dict[str, Any] = {
        "net": net, "batch": batch, "lines": text.count("\n"), "kernels": text.count("__global__"),
        "emit_s": round(translated - began, 2), "nvcc_s": round(done - translated, 2),
        "faults": faults(status, said, kernels, text.count("__global__")), "architectures": {},
    }  # fmt: skip
    for architecture in ARCHITECTURES:
        own = [kernel for kernel in kernels if kernel.architecture == architecture]
        if own:
            row["architectures"][architecture] = {
                "most_registers": max(k.registers for k in own),
                "median_registers": statistics.median(k.registers for k in own),
                "most_shared_bytes": max(k.shared for k in own),
                "local_bytes": max(k.memory for k in own),
                "heaviest": max(own, key=lambda k: k.registers).name,
            }
    return row


def text(rows: list[dict[str, Any]], *, markdown: bool) -> str:
    """Return the table, and what is wrong below it."""
    head = ["net", "lines", "kernels", "emitted, s", "nvcc, s"]
    head += [
        f"{part} {a}"
        for a in ARCHITECTURES
        for part in ("registers (median)", "shared, bytes", "local, bytes")
    ]
    lines = [head]
    for row in rows:
        line = [
            row["net"],
            f"{row['lines']:,}",
            str(row["kernels"]),
            f"{row['emit_s']:.1f}",
            f"{row['nvcc_s']:.1f}",
        ]
        for name in ARCHITECTURES:
            found = row["architectures"].get(name)
            line += [
                f"{found['most_registers']} ({found['median_registers']:.0f})",
                f"{found['most_shared_bytes']:,}",
                str(found["local_bytes"]),
            ] if found else ["-"] * 3  # fmt: skip
        lines.append(line)
    below = [f"{row['net']}: {fault}" for row in rows for fault in row["faults"]]
    return "\n\n".join([tables.lay_out(lines, markdown), "\n".join(below) or "No kernel uses local memory."])


def main() -> int:
    """Compile, and print the table."""
    parser = session.bare_parser(str(__doc__))
    parser.add_argument("--nets", nargs="+", metavar="NET", help=f"default {' '.join(NETS)}; with keywords as for "
                        "`graphc inspect`, such as resnet_cifar,depth=56")  # fmt: skip
    parser.add_argument("--batch", type=int, default=64, help="default 64")
    options = parser.parse_args()
    session.place(options, "cuda_compile")
    machine = {
        "nvcc": nvcc_version(),
        "cores": os.cpu_count(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    results: dict[str, Any] = {"machine": machine, "rows": []}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    for net in options.nets or (NETS[:1] if options.quick else NETS):
        session.say(f"{net}: compiling")
        results["rows"].append(measure(net, options.batch))
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{machine['nvcc']}, training at batch {options.batch}, {machine['date']}.\n")
    print(text(results["rows"], markdown=options.markdown))
    session.save(results, options)
    return int(any(row["faults"] for row in results["rows"]))


if __name__ == "__main__":
    sys.exit(main())
