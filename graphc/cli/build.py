"""``graphc build``: writes a net as a folder of C that needs neither Python nor graphc."""

from __future__ import annotations

import argparse
from pathlib import Path

import graphc as gc
from graphc.cli import onnx_nets, places
from graphc.cli.nets import module_of
from graphc.errors import GraphError, RangeError
from graphc.export import TARGETS

NAME = "build"
SUMMARY = "export a net as C source, weights, build files and a self-check, or as an ONNX file"
DESCRIPTION = f"""\
Writes a folder that needs neither Python nor graphc: C source and header, a C++ wrapper, the weights, an
example, a Makefile (make check compares with what was recorded here), a CMake package and a README.
Inference alone by default, its weights folded; --train adds the training step.
An output that ends in .onnx is a file of the ONNX format instead: what the net predicts, or with --train a step
of training. Of the other options it takes --weights-from and --overwrite alone.

{places.SYNTAX}

A ready-made net is compiled with cross-entropy and SGD. An ONNX file brings its weights;
--loss, with SGD, makes one that can be trained. Other weights are random unless --weights-from names a file."""
EXAMPLES = """\
examples:
  graphc build model:lenet -o lenet/ && make -C lenet check
  graphc build model.py:module -o out/ --weights-from trained.safetensors --batch 1
  graphc build model:resnet_cifar -o resnet/ --train --name resnet
  graphc build model:lenet -o dist/ --wheel
  graphc build model:lenet -o arm/ --target aarch64 --weights c --single-file
  graphc build model:lenet -o x86/ --target x86-64,x86-64-v3,x86-64-v4
  graphc build model:lenet -o m4/ --target cortex-m4 && make -C m4 check
  graphc build model:lenet -o lenet.onnx
  graphc build net.onnx -o fixed/ --dim N=4
  graphc build net.onnx -o tuned/ --train --loss cross_entropy --freeze conv1.* --lr 0.001"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("net", metavar=places.METAVAR)
    add("-o", "--out", type=Path, required=True, metavar="FOLDER",
        help="must be empty or not there; or a file that ends in .onnx")  # fmt: skip
    add("--train", action="store_true", help="with the training step and the optimizer's state")
    add(
        "--weights-from",
        type=Path,
        metavar="FILE",
        help="a safetensors file, as module.save and graphc train write it",
    )
    add("--batch", type=int, help="the largest batch (default: the module's, or 1)")
    add("--name", help="prefix of files and functions (default: the net's)")
    add("--target", default="native", metavar="TARGET",
        help=f"native (default), {', '.join(TARGETS)}, or levels of x86-64 separated by commas")  # fmt: skip
    add("--weights", choices=("file", "c", "object"),
        help="a file that is read (default if there are files), an array in C, or a linked object")  # fmt: skip
    add("--single-file", action="store_true", help="all C in one file")
    add(
        "--wheel",
        action="store_true",
        help="a Python wheel of inference in the folder, instead of the sources",
    )
    add("--dtype", choices=("float32", "float64"), help="precision (default: the module's)")
    add("--threads", type=int, default=1, help="that a context starts with (default: 1)")
    add(
        "--no-libm",
        action="store_true",
        help="call nothing of the C library's mathematics, or refuse the net",
    )
    add("--overwrite", action="store_true", help="replace a bundle or file that is there")
    onnx_nets.add_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Write the folder and say what to do with it."""
    if options.out.suffix == ".onnx":
        _write_onnx(options)
        return
    module = _module(options)
    folder = module.export(
        options.out, train=options.train, target=options.target, weights=options.weights, name=options.name,
        batch=options.batch, single_file=options.single_file, wheel=options.wheel, overwrite=options.overwrite,
        libm=not options.no_libm, dtype=options.dtype, threads=options.threads,
    )  # fmt: skip
    if options.wheel:
        print(f"{folder}: {folder.stat().st_size:,} bytes; next: pip install {folder}")
        return
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    print(f"{folder}: {len(files)} files, {size:,} bytes; next: make -C {folder} check")


def _module(options: argparse.Namespace) -> gc.Module:
    """Return the net, compiled, with the weights that were chosen.

    Raises:
        GraphError: its training step is wanted, and nothing says what it learns.
    """
    more = onnx_nets.options_of(options)
    if options.train and more.loss is None and onnx_nets.is_onnx(options.net):
        losses = ", ".join(onnx_nets.LOSSES)
        raise GraphError(f"build: --train: {options.net} has no loss; choose one with --loss: {losses}")
    # A module that is compiled already keeps its own batch until it is exported.
    module = module_of(options.net, options=more)
    if options.weights_from is not None:
        module.load(options.weights_from)
    return module


def _write_onnx(options: argparse.Namespace) -> None:
    """Write an ONNX file and say how large it is."""
    defaults = {
        "batch": None, "name": None, "target": "native", "weights": None, "single_file": False, "wheel": False,
        "dtype": None, "threads": 1, "no_libm": False,
    }  # fmt: skip
    for name, default in defaults.items():
        if getattr(options, name) != default:
            raise RangeError(f"build: --{name.replace('_', '-')} says nothing of an ONNX file")
    if options.out.exists() and not options.overwrite:
        raise GraphError(f"build: {options.out} is there already; --overwrite replaces it")
    module = _module(options)
    path = module.to_onnx(options.out, train=options.train)
    print(f"{path}: {path.stat().st_size:,} bytes; any batch, opset 21")
