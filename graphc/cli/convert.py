"""``graphc convert``: turns PyTorch's weights into a safetensors file that ``Module.load`` reads.

The only place where PyTorch is imported, and only when a file of its own format is to be read.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from graphc.cli import places
from graphc.errors import CheckpointError, GraphcError
from graphc_runtime.checkpoint import check_fit, is_batch_count, save_state
from graphc_runtime.data import Array

NAME = "convert"
SUMMARY = "turn PyTorch's weights into a safetensors file"
DESCRIPTION = f"""\
Reads a PyTorch state dict (bare, or under "state_dict", "model_state_dict" or "model" in a checkpoint) and
writes it as safetensors under the same names, for module.load. Nothing in the file is run. The prefix
"module." of DataParallel and the counters num_batches_tracked are left out, and 16-bit floats become
float32. PyTorch is needed for its own format only; WEIGHTS may be a safetensors file, too. With --for, all
names and shapes must be those of a net.

{places.SYNTAX}"""
EXAMPLES = """\
examples:
  graphc convert resnet18.pt
  graphc convert resnet18.pt --for model:resnet18 -o weights/resnet18.safetensors"""

_SUFFIX = ".safetensors"
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_SHOWN = 8  # entries of a foreign file that an error names
_BFLOAT16 = "BF16"  # the upper half of a float32, which NumPy does not have
_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?", _BFLOAT16: "<u2",
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add(
        "weights", type=Path, metavar="WEIGHTS", help=f"a file of torch.save, or one that ends with {_SUFFIX}"
    )
    add("-o", "--out", type=Path, metavar="FILE", help=f"default: the name of WEIGHTS, with {_SUFFIX}")
    add("--for", dest="net", metavar=places.METAVAR, help="check names and shapes against this net first")
    add("--force", action="store_true", help="overwrite FILE if it exists")


def run(options: argparse.Namespace) -> None:
    """Read, check and write."""
    if find_spec("safetensors") is None:
        raise GraphcError("graphc convert needs safetensors: pip install 'graphc[train]'")
    out = options.out or options.weights.with_suffix(_SUFFIX)
    if out.exists() and not options.force:
        raise CheckpointError(f"{out} exists: choose another name with -o, or overwrite it with --force")
    shapes = None if options.net is None else places.shapes_of(places.find(options.net))
    read = _read_safetensors if options.weights.suffix == _SUFFIX else _read_torch
    try:
        found = _without_prefix(read(options.weights))
    except OSError as error:
        raise CheckpointError(f"cannot read {options.weights}: {error.strerror or error}") from error
    tensors = {name: array for name, array in found.items() if not is_batch_count(name)}
    if shapes is not None:
        check_fit(options.net, tensors, shapes, {})
    save_state(out, tensors)
    count, size = sum(a.size for a in tensors.values()), sum(a.nbytes for a in tensors.values())
    left_out = len(found) - len(tensors)
    counters = f", {left_out} batch counters left out" if left_out else ""
    print(f"written {out}: {len(tensors)} tensors, {count:,} numbers, {size / 2**20:.1f} MiB{counters}")


def _without_prefix(tensors: dict[str, Array]) -> dict[str, Array]:
    """Return the tensors without the name under which DataParallel holds its net.

    Raises: CheckpointError where a name would do something to the terminal that prints it.
    """
    for name in tensors:
        if not name.isprintable():
            raise CheckpointError(f"expected names that can be printed, got {name!r}")
    prefix = "module."
    if all(name.startswith(prefix) for name in tensors):
        return {name.removeprefix(prefix): array for name, array in tensors.items()}
    return tensors


def _read_safetensors(path: Path) -> dict[str, Array]:
    """Return the tensors of a safetensors file, 16-bit floats as float32.

    Raises: CheckpointError where the file is damaged or has a dtype that NumPy lacks.
    """
    from safetensors import SafetensorError, deserialize

    try:
        content = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]  # its stub has no types
    except SafetensorError as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    tensors = {}
    for name, stored in content:
        if stored["dtype"] not in _DTYPES:
            raise CheckpointError(f"{path}: tensor {name!r} has dtype {stored['dtype']}, which NumPy lacks")
        array = np.frombuffer(stored["data"], _DTYPES[stored["dtype"]]).reshape(stored["shape"])
        if stored["dtype"] == _BFLOAT16:
            array = (array.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = array.astype(np.float32) if array.dtype == np.float16 else array
    return tensors


def _read_torch(path: Path) -> dict[str, Array]:
    """Return the tensors of a file that ``torch.save`` wrote, 16-bit floats as float32.

    Raises: CheckpointError where the file is damaged or holds anything else; GraphcError without PyTorch.
    """
    try:
        import torch
    except ImportError as error:
        raise GraphcError(
            f"reading {path} needs PyTorch, which is not installed: pip install 'graphc[torch]'; "
            f"files that end with {_SUFFIX} are read without it"
        ) from error
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on old formats; what matters raises
        try:
            # weights_only: unpickling makes tensors and plain containers, and calls nothing that the file names.
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # what damage does to a reader of pickles has no common class
            raise CheckpointError(_complaint(path, error)) from error
    tensors = {}
    for name, value in _state_dict(path, content, torch.Tensor).items():
        try:
            wide = value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
            tensors[name] = wide.detach().numpy()
        except (TypeError, RuntimeError) as error:
            kind = f"{value.dtype}, {value.layout}"
            raise CheckpointError(f"{path}: tensor {name!r} ({kind}) cannot be an array") from error
    return tensors


def _complaint(path: Path, error: Exception) -> str:
    # Not PyTorch's whole text, which advises to read the file in a way that runs what is in it.
    refused = re.search(r"GLOBAL ([\w.]+)", str(error))
    if refused:
        return (
            f"{path} holds more than tensors: {refused[1]}, which was not run. Save the state dict alone: "
            "torch.save(net.state_dict(), path)"
        )
    reason = str(error).split(". ")[0].splitlines()[:1]
    return (
        f"{path} is damaged, or was not written by torch.save: {': '.join([type(error).__name__, *reason])}"
    )


def _state_dict(path: Path, content: Any, tensor: type) -> dict[str, Any]:
    """Return the names and tensors of a state dict, out of the checkpoint that holds it.

    Raises: CheckpointError where there is anything else in it.
    """
    wrapped = [k for k in _WRAPPERS if isinstance(content, Mapping) and isinstance(content.get(k), Mapping)]
    found = content[wrapped[0]] if wrapped else content
    if not isinstance(found, Mapping) or not found:
        got = "an empty one" if isinstance(found, Mapping) else type(found).__name__
        raise CheckpointError(f"{path}: expected a dict of names and tensors, got {got}")
    foreign = [
        f"{name!r} ({type(value).__name__})"
        for name, value in found.items()
        if not isinstance(value, tensor) or not isinstance(name, str)
    ]
    if foreign:
        more = f" and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else ""
        raise CheckpointError(
            f"{path}: expected nothing but names and tensors, bare or under one of {', '.join(_WRAPPERS)}; "
            f"got {', '.join(foreign[:_SHOWN])}{more}"
        )
    return dict(found)
