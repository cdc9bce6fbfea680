"""Products of a device: a module with an entry point for each tile that is worth measuring, and its clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from graphc.artifact import make_manifest
from graphc.build import BuildOptions, build_extension
from graphc.emit.c import cdef_of
from graphc.emit.cuda import emit_cuda, emulator
from graphc.emit.products import tiles_of
from graphc.emit.templates import as_it_stands
from graphc.errors import DeviceError
from graphc.layout import padded
from graphc.passes.variants import ProductTask, Variant
from graphc.pipeline import Request
from graphc.program.ir import Buffer, Call, Entry, Kernel, Operand, Program, Space
from graphc.tuning.bench import fill
from graphc.tuning.candidates import Trial
from graphc.types import Precision, at, product
from graphc_runtime.loader import load_extension
from graphc_runtime.module import Module

_NAME = "tuning"
_SWEPT = (
    2**16,
    2**26,
)  # bytes, at the least and at the most: the second are more than a device's cache holds


def product_trials(request: Request, tasks: Sequence[ProductTask], moved: int) -> tuple[list[Trial], Program]:
    """Return what is to be measured for each task, and one module with all of it.

    All operands are parameters. An entry point first clears as many bytes as a net moves between two calls of a
    kernel (``moved``): the caches are then as far from the operands as they will be, and the kernel's launch
    waits in the stream while they are cleared, so that the time of launching is not the kernel's.
    """
    sweep = _sweep(request, moved)
    entries: list[Entry] = []
    found, end = [], 0
    for number, task in enumerate(tasks):
        buffers: list[Buffer] = []
        for operand in task.kernel.operands:
            size = product(operand.shape)
            buffers.append(Buffer(f"{operand.name}_{number}", operand.dtype, size, Space.PARAMS, end))
            end += padded(at(size, task.batch), operand.dtype, request.dtype)
        tiles = tiles_of(task.kernel, task.batch, task.precision)
        names = tuple(f"kernel{number}_{k}" for k in range(len(tiles)))
        for name, tile in zip(names, tiles, strict=True):
            call = Call(replace(task.kernel, tile=tile), tuple(buffers), ("product",), (), "")
            entries.append(Entry(name, (), (), (sweep, call)))
        # What the cost model chooses is no choice of the tuner's.
        variants = (Variant(), *(Variant.of_tile(tile) for tile in tiles[1:]))
        found.append(Trial(task, variants, names))
    arena = sweep.kernel.bytes
    assert isinstance(arena, int)
    offsets = {entry.name: {sweep.buffers[0].name: 0, "": arena} for entry in entries}
    program = Program(
        _NAME, request.dtype, request.batch, request.isa, 1e3 * request.fork_us, tuple(entries), (), (), 0, end,
        0, 0, 0, arena, offsets,
    )  # fmt: skip
    return found, program


def _sweep(request: Request, moved: int) -> Call:
    """Return the call that clears so many bytes of the arena, within bounds."""
    least, most = _SWEPT
    size = min(max(moved, least), most) // 64 * 64
    count = size // 8
    operand = Operand("out", "int64", True, (count,))
    kernel = Kernel("loops", None, (operand,), None, "out = 0", 0, size, request.dtype, False)
    return Call(kernel, (Buffer("swept", "int64", count, Space.ARENA),), ("sweep",), (), "")


class DeviceBench(Module):
    """A module of candidates for a device. Its operands are random numbers, whole numbers among them 0."""

    def __init__(self, program: Program, options: BuildOptions, target: str, precision: Precision):
        """Emit, build and load the module.

        Raises:
            DeviceError: there is no device, or it has not enough memory.
        """
        emitted = emit_cuda(program, precision=precision, profile=True)
        library = build_extension(
            program.name, _sources(emitted.sources, target), emitted.cdef, options, target
        )
        super().__init__(make_manifest(program, emitted, None), library, {})
        operands = fill(self._blocks["params"])
        for buffer in {b for entry in program.entries for b in entry.calls[-1].buffers}:
            if not buffer.dtype.startswith("float"):
                size = padded(at(buffer.size, program.batch), buffer.dtype, program.dtype)
                operands[buffer.offset : buffer.offset + size] = 0

    def timer(self, batch: int, moved: int) -> Callable[[str], float]:
        """Return what tells the seconds that the kernel of an entry point takes on the device, in one call of it."""
        del moved  # the entry points sweep the caches
        called: set[str] = set()

        def seconds(name: str) -> float:
            for _ in range(1 if name in called else 2):  # the first call may wait for operands, or for code
                code = self._function(name)(self._context, batch)
                assert code == 0, self.ffi.string(self._function("message")(self._context))
            called.add(name)
            return float(self._function("laps")(self._context)[1]) * 1e-9

        return seconds


def device_name(options: BuildOptions, target: str) -> str:
    """Return what the device is called, and how many multiprocessors it has.

    Raises:
        DeviceError: there is none.
        BuildError: there is no compiler.
    """
    texts = {name: as_it_stands("cuda", name) for name in ("probe.h", "probe.cu")}
    cdef = cdef_of(texts["probe.h"])
    ffi, lib = load_extension(build_extension("probe", _sources(texts, target), cdef, options, target))
    text = ffi.new("char[400]")
    refused = lib.probe_device(text, 400)
    said: str = ffi.string(text).decode(errors="replace")
    if refused:
        raise DeviceError(f"compile: tune=True measures on a GPU, and none can be used ({said})")
    return said


def _sources(texts: dict[str, str], target: str) -> dict[str, str]:
    return {**texts, **(emulator() if target == "cuda-emulated" else {})}
