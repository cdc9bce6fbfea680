"""Three nets as products: their exported C does all of inference and training, in the memory that it is given."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from bundles import (
    ADDRESSES,
    MATHEMATICS,
    MEMORY_SYMBOLS,
    MESSAGES,
    OPENMP,
    RACES,
    attempt,
    build,
    require_tool,
    run,
    run_sanitized,
    undefined_symbols,
)

import graphc as gc
from graphc_runtime.weights import Weights, pack_weights, unpack_weights

BATCH, STEPS, LR, CLASSES = 3, 3, 0.05, 10
DRIVERS = Path(__file__).parent / "drivers"
# As Python builds it here, but quicker: the same compiler and flags give the same bits.
FLAGS = ("-O1", "-march=native")


@dataclass(frozen=True)
class Kind:
    """A net, its images, and the instruction set that it is laid out for: one that every compiler can do without."""

    make: Callable[[gc.Tensor], gc.Tensor]
    image: tuple[int, int, int]
    isa: str
    has_state: bool
    has_dropout: bool


def slim_vgg(x: gc.Tensor) -> gc.Tensor:
    """Return VGG-11 with batch norm and 4 to 32 channels."""
    return gc.models.vgg(x, CLASSES, depth=11, norm=True, width=4, hidden=32, drop=0.3)


KINDS = {
    "lenet": Kind(gc.models.lenet, (1, 32, 32), "avx512", has_state=False, has_dropout=False),
    "vgg": Kind(slim_vgg, (3, 32, 32), "avx2", has_state=True, has_dropout=True),
    "resnet": Kind(gc.models.resnet_cifar, (3, 16, 16), "sse2", has_state=True, has_dropout=False),
}


VARIANTS = {
    "openmp": ("gcc", (*FLAGS, "-ffp-contract=off", "-fopenmp")),
    "plain": ("gcc", (*FLAGS, "-ffp-contract=off", "-DGC_NO_STDIO")),
    "generic": ("gcc", ("-O1", "-DGC_NO_STDIO")),  # valgrind knows no AVX-512
    # Optimising what the sanitizers add takes ten times as long as running it as it is.
    "addresses": ("clang", ("-O0", "-g1", *ADDRESSES)),
    "races": ("clang", ("-O1", "-g1", *RACES)),
}


@dataclass(frozen=True)
class Product:
    """A net's two bundles, what Python computes from the same weights, and the programs built of them."""

    kind: Kind
    training: Path
    inference: Path
    losses: bytes
    trained: bytes
    planned: int  # bytes of the training step's arena
    programs: dict[tuple[bool, str], Path] = field(default_factory=dict)

    def program(self, train: bool, variant: str) -> Path:
        """Return the driver of a bundle in one of ``VARIANTS``, built once, in a copy of the bundle."""
        if (train, variant) not in self.programs:
            bundle = self.training if train else self.inference
            compiler, flags = VARIANTS[variant]
            require_tool(compiler)
            folder = shutil.copytree(bundle, bundle.parent / f"{bundle.name}-{variant}")
            main = DRIVERS / f"{bundle.name}.c"
            image = int(np.prod(self.kind.image))
            known = (f"-DIMAGE={image}", f"-DCLASSES={CLASSES}", f"-DSTEPS={STEPS}", f"-DLEARNING_RATE={LR}")
            self.programs[train, variant] = build(
                folder, main, "driver", *flags, "-pthread", *known, compiler=compiler
            )
        return self.programs[train, variant]


@pytest.fixture(scope="module", params=KINDS)
def product(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Product:
    """Each net, exported after a step, so that momentum and statistics are not what they begin with."""
    kind = KINDS[request.param]
    x, y = gc.input("x", ("N", *kind.image)), gc.input("y", ("N",), dtype="int32")
    logits = kind.make(x)
    loss, sgd = gc.losses.cross_entropy(logits, y), gc.SGD(lr=LR, momentum=0.9)
    options = gc.BuildOptions(compiler="gcc", optimisation=FLAGS)
    module = gc.compile(
        {"logits": logits}, loss, sgd, batch=BATCH, name="net", seed=5, isa=kind.isa, build=options
    )
    rng = np.random.default_rng(6)
    first = rng.normal(size=(BATCH, *kind.image)).astype("f")
    module.train_step(x=first, y=np.arange(BATCH, dtype="i4"))
    folder = tmp_path_factory.mktemp(request.param)
    training = module.export(folder / "training", train=True, build=options)
    inference = module.export(folder / "inference", build=options)
    images = np.fromfile(training / "check/train_step.in.x.bin", "f").reshape(BATCH, *kind.image)
    labels = np.fromfile(training / "check/train_step.in.y.bin", "i4")
    losses = []
    for step in range(STEPS):
        count = BATCH - step % 2
        losses.append(module.train_step(x=images[:count], y=labels[:count]))
    blocks = module.weight_blocks(("params", "slots", "state"))
    trained = pack_weights(Weights(module.manifest["fingerprint"], module.step, module.seed, blocks))
    planned = module.plan("train").arena_bytes
    return Product(kind, training, inference, np.array(losses, "f").tobytes(), trained, planned)


@pytest.mark.parametrize("variant", ["openmp", "plain"])
def test_training_gives_the_bits_of_python(variant: str, product: Product) -> None:
    """Losses of several steps and the weights file after them, with any number of threads."""
    program = product.program(True, variant)
    folder = program.parent
    for threads in ("1", "2", "3") if variant == "openmp" else ("1",):
        run(folder, program, "steps", threads)
        assert (folder / "losses.bin").read_bytes() == product.losses, threads
        assert (folder / "trained.weights").read_bytes() == product.trained, threads
    run(folder, program, "steps", "1", "99")
    others = (folder / "losses.bin").read_bytes()
    # Another seed drops other values, and matters to nothing else.
    assert (others != product.losses) == product.kind.has_dropout


def test_training_needs_the_c_library_alone(product: Product) -> None:
    """For copying memory, and for mathematics: nothing allocates, and stdio can be left out."""
    allowed = MEMORY_SYMBOLS | MATHEMATICS
    plain = undefined_symbols(product.program(True, "plain").parent)
    assert plain <= allowed, plain - allowed
    threaded = undefined_symbols(product.program(True, "openmp").parent)
    assert threaded <= allowed | MESSAGES | OPENMP, threaded - allowed - MESSAGES - OPENMP


def test_a_step_changes_all_that_training_has(product: Product) -> None:
    """Parameters, momentum and running statistics: otherwise equal files would say little."""
    graph = re.search(r'NET_GRAPH "(\w+)"', (product.training / "net.h").read_text())
    assert graph is not None
    before = unpack_weights((product.training / "net.weights").read_bytes(), graph[1])
    after = unpack_weights(product.trained, graph[1])
    assert (before.step, after.step) == (1, 1 + STEPS)
    for name in ("params", "slots", *(("state",) if product.kind.has_state else ())):
        old, new = before.blocks[name].view("f"), after.blocks[name].view("f")
        # All but a few: units that are never active have no gradient.
        assert np.mean(old != new) > 0.5, name


@pytest.mark.parametrize("train", [False, True])
def test_eight_contexts_give_the_bits_of_one(train: bool, product: Product) -> None:
    """In threads of their own, with one weights file in inference; ThreadSanitizer sees no race."""
    program = product.program(train, "races")
    run_sanitized(program.parent, program, "contexts")


@pytest.mark.parametrize("train", [False, True])
def test_an_arena_needs_exactly_the_stated_bytes(train: bool, product: Product) -> None:
    """Of every entry point: with a byte less it refuses, and in no more no byte outside is touched."""
    program = product.program(train, "addresses")
    header = (program.parent / "net.h").read_text()
    entries = ("TRAIN_STEP", "EVALUATE", "FOLD", "PREDICT") if train else ("PREDICT",)
    sizes = [int(re.findall(rf"NET_ARENA_{entry}_BYTES (\d+)", header)[0]) for entry in entries]
    assert sizes[0] > 0
    refusals = [f"memory block 'arena' needs {n} bytes, got {n - 1}" for n in sizes if n]
    shown = run_sanitized(program.parent, program, "arena").splitlines()
    assert shown == ([f"4 {text}" for text in refusals] if train else refusals)
    # The sanitizer would have seen a byte too many.
    overrun = attempt(program.parent, program, "overrun")
    assert overrun.returncode != 0
    assert "heap-buffer-overflow" in overrun.stderr


@pytest.mark.parametrize("train", [False, True])
def test_a_thousand_damaged_files_are_refused(train: bool, product: Product) -> None:
    """One byte is another each time: in the header every byte in turn, then any of the file."""
    program = product.program(train, "plain" if train else "generic")
    run(program.parent, program, "flips")


def test_sizes_are_told_by_macros_and_functions(product: Product) -> None:
    program = product.program(True, "plain")
    functions, macros = run(program.parent, program, "sizes").splitlines()
    assert functions == macros
    weights, *_, arena = map(int, functions.split())
    assert (weights, arena) == ((program.parent / "net.weights").stat().st_size, product.planned)


def test_valgrind_sees_no_error_and_no_allocation(product: Product) -> None:
    """In memory that counts as undefined until it is written, down to the logits that are written."""
    require_tool("valgrind")
    program = product.program(False, "generic")
    done = attempt(program.parent, "valgrind", "--error-exitcode=9", program, "predict")
    assert done.returncode == 0, done.stderr
    assert "total heap usage: 0 allocs" in done.stderr
    assert "ERROR SUMMARY: 0 errors" in done.stderr
    logits = np.fromfile(program.parent / "logits.bin", "f")
    want = np.fromfile(program.parent / "check/predict.out.logits.bin", "f")
    # The records were made with multiply-add instructions.
    np.testing.assert_allclose(logits, want, rtol=1e-4, atol=1e-5)
