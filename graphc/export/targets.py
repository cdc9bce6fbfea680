"""What a bundle can be made for: the layout of weights and tiles, and the flags that its Makefile has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphc.errors import RangeError
from graphc.isa import isa_named

_CONTRACT = (
    "-ffp-contract=off"  # as in Python: the same bits wherever the code is built for the same processor
)


@dataclass(frozen=True)
class Target:
    """A processor: the instruction set that code is laid out for, compiler flags, and how programs are made and run.

    ``compiler``, ``runner``, ``archiver`` and ``link_flags`` are the defaults of a cross build on Debian; "" for the
    first two means those of the machine itself.
    """

    name: str
    isa: str
    flags: tuple[str, ...]
    compiler: str = ""
    runner: str = ""
    archiver: str = "ar"
    link_flags: str = ""
    optimise: str = "-O3"
    flash: str = ""  # of a processor without an operating system: what the linker may use, and of RAM
    ram: str = ""
    device: bool = False  # a GPU's, programmed in CUDA
    features: tuple[str, ...] | None = (
        None  # of a level that a processor may be asked for, beyond the first level's
    )

    @property
    def bare(self) -> bool:
        """Whether there is no operating system, and so no files."""
        return bool(self.flash)

    def __post_init__(self) -> None:
        """Refuse an instruction set that does not exist."""
        isa_named(self.isa)


TARGETS = {
    target.name: target
    for target in (
        Target("x86-64", "sse2", ("-march=x86-64", _CONTRACT), features=()),
        Target("x86-64-v3", "avx2", ("-march=x86-64-v3", _CONTRACT), features=("avx2", "fma", "bmi2")),
        Target(
            "x86-64-v4", "avx512", ("-march=x86-64-v4", "-mprefer-vector-width=512", _CONTRACT),
            features=("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
        ),
        Target("aarch64", "neon", (_CONTRACT,), "aarch64-linux-gnu-gcc", "qemu-aarch64 -L /usr/aarch64-linux-gnu"),
        Target(
            "armv7", "sse2", ("-march=armv7-a", "-mfpu=neon-vfpv4", "-mfloat-abi=hard", _CONTRACT),
            "arm-linux-gnueabihf-gcc", "qemu-arm -L /usr/arm-linux-gnueabihf",
        ),
        Target(
            "wasm32", "sse2", ("-msimd128", "-mno-atomics", _CONTRACT), "clang --target=wasm32-wasi --sysroot=/usr",
            "node --no-warnings run.mjs", "llvm-ar", "-Wl,-z,stack-size=262144",
        ),
        Target("riscv64", "sse2", (_CONTRACT,), "riscv64-linux-gnu-gcc", "qemu-riscv64 -L /usr/riscv64-linux-gnu"),
        Target("cuda", "simt", (), device=True),
        Target(
            "cortex-m4", "m4",
            ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16", "-ffunction-sections",
             "-fdata-sections", "-fno-math-errno", _CONTRACT),
            "arm-none-eabi-gcc",
            "qemu-system-arm -M mps2-an386 -display none -monitor none -serial none -chardev stdio,id=out "
            "-semihosting-config enable=on,target=native,chardev=out -kernel",
            "arm-none-eabi-ar", optimise="-O2", flash="256K", ram="64K",
        ),
    )
}  # fmt: skip


def target_named(name: str, native_isa: str) -> Target:
    """Return the target of that name; ``"native"`` is this machine, with the instruction set given.

    Raises:
        RangeError: there is none.
    """
    if name == "native":
        return Target("native", native_isa, ("-march=native", _CONTRACT))
    if name not in TARGETS:
        raise RangeError(f"export: target {name!r} is unknown; there are native, {', '.join(TARGETS)}")
    return TARGETS[name]


def targets_named(names: str, native_isa: str) -> tuple[Target, ...]:
    """Return the target, or the levels of one processor that are separated by commas, the best first.

    Raises:
        RangeError: a target is unknown, or several are no levels of one processor.
    """
    found = [target_named(name.strip(), native_isa) for name in names.split(",")]
    if len(found) > 1 and (any(t.features is None for t in found) or len(set(found)) < len(found)):
        levels = ", ".join(t.name for t in TARGETS.values() if t.features is not None)
        raise RangeError(f"export: targets {names!r}: only different ones of {levels} can be in one bundle")
    return tuple(sorted(found, key=lambda t: -len(t.features or ())))


def level_isas(targets: Sequence[Target]) -> list[str]:
    """Return the instruction set that each level's code is laid out for.

    All levels read the same weights: one whose own vectors are packed otherwise takes the code of the level above.
    """
    best = isa_named(targets[0].isa)
    found: list[str] = []
    for target in targets:
        same = isa_named(target.isa).packed_bytes == best.packed_bytes
        found.append(target.isa if same else found[-1])
    return found
