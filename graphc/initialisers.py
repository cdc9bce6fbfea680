"""How parameters get their first values: pure functions of a seed, a name and a shape.

Every parameter draws from a Philox stream of its own, keyed by the seed and its name, so that adding a
layer does not change the values of the others.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from graphc.errors import DTypeError, RangeError, ShapeError


def stream(seed: int, name: str) -> np.random.Generator:
    """Return the generator of one parameter."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (fan_in, fan_out) of a weight (out, in, *kernel), as PyTorch counts them."""
    if len(shape) < 2:
        size = shape[0] if shape else 1
        return size, size
    receptive = math.prod(shape[2:])
    return shape[1] * receptive, shape[0] * receptive


def _check_spread(what: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise RangeError(f"{what} must be finite and non-negative, got {value!r}")


class Initialiser(ABC):
    """A rule for first values."""

    @abstractmethod
    def __call__(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """Return float64 values of the shape."""


@dataclass(frozen=True)
class Constant(Initialiser):
    """Every element has the same value."""

    value: float = 0.0

    def __call__(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """Return the constant array."""
        return np.full(shape, self.value)


@dataclass(frozen=True)
class Uniform(Initialiser):
    """Uniform(-bound, bound); without a bound, 1/sqrt(fan_in), PyTorch's default for its layers.

    ``fan_in`` overrides the count, since a bias takes the fan-in of its weight.
    """

    bound: float | None = None
    fan_in: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            RangeError: the bound or the fan is negative or no number.
        """
        if self.bound is not None:
            _check_spread("Uniform: bound", self.bound)
        if self.fan_in is not None:
            _check_spread("Uniform: fan_in", self.fan_in)

    def __call__(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """Return uniform values."""
        bound = self.bound if self.bound is not None else 1 / math.sqrt(max(1, self.fan_in or fans(shape)[0]))
        return rng.uniform(-bound, bound, shape)


@dataclass(frozen=True)
class Normal(Initialiser):
    """Normal with the given mean and standard deviation."""

    std: float = 1.0
    mean: float = 0.0

    def __post_init__(self) -> None:
        """Check the standard deviation.

        Raises:
            RangeError: it is negative or no number.
        """
        _check_spread("Normal: std", self.std)

    def __call__(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """Return normal values."""
        return self.mean + self.std * rng.standard_normal(shape)


@dataclass(frozen=True)
class GlorotUniform(Initialiser):
    """Uniform(+-gain*sqrt(6/(fan_in+fan_out))). Source: Glorot and Bengio 2010, equation 16."""

    gain: float = 1.0

    def __call__(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """Return uniform values."""
        bound = self.gain * math.sqrt(6 / sum(fans(shape)))
        return rng.uniform(-bound, bound, shape)


@dataclass(frozen=True)
class GlorotNormal(Initialiser):
    """Normal(0, gain^2*2/(fan_in+fan_out)). Source: Glorot and Bengio 2010, equation 12."""

    gain: float = 1.0

    def __call__(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """Return normal values."""
        return self.gain * math.sqrt(2 / sum(fans(shape))) * rng.standard_normal(shape)


def _check_mode(mode: str) -> None:
    if mode not in ("fan_in", "fan_out"):
        raise RangeError(f"He initialisation: mode {mode!r} is neither 'fan_in' nor 'fan_out'")


def _he_fan(shape: tuple[int, ...], mode: str) -> int:
    return fans(shape)[mode == "fan_out"]


@dataclass(frozen=True)
class HeUniform(Initialiser):
    """Uniform(+-sqrt(6/fan)). Source: He et al. 2015, equation 10, for ReLU."""

    mode: str = "fan_in"

    def __post_init__(self) -> None:
        """Check the mode.

        Raises:
            RangeError: it is neither ``"fan_in"`` nor ``"fan_out"``.
        """
        _check_mode(self.mode)

    def __call__(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """Return uniform values."""
        bound = math.sqrt(6 / _he_fan(shape, self.mode))
        return rng.uniform(-bound, bound, shape)


@dataclass(frozen=True)
class HeNormal(Initialiser):
    """Normal(0, 2/fan). Source: He et al. 2015, equation 10, for ReLU."""

    mode: str = "fan_in"

    def __post_init__(self) -> None:
        """Check the mode.

        Raises:
            RangeError: it is neither ``"fan_in"`` nor ``"fan_out"``.
        """
        _check_mode(self.mode)

    def __call__(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """Return normal values."""
        return math.sqrt(2 / _he_fan(shape, self.mode)) * rng.standard_normal(shape)


@dataclass(frozen=True, eq=False)
class Array(Initialiser):
    """The values of an array."""

    values: np.ndarray

    def __call__(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """Return the array.

        Raises:
            ShapeError: its shape is not the parameter's.
        """
        if self.values.shape != shape:
            raise ShapeError(f"initial array: expected shape {shape}, got {self.values.shape}")
        whole = self.values.dtype.kind in "iub"  # as they are: float64 would round large ones
        return self.values if whole else np.asarray(self.values, dtype=np.float64)


def as_initialiser(value: Initialiser | float | np.ndarray) -> Initialiser:
    """Return an initialiser for a number, an array (which is copied), or itself.

    Raises:
        DTypeError: the value is none of these.
    """
    if isinstance(value, Initialiser):
        return value
    array = np.array(value)
    if array.dtype.kind not in "fiub":
        raise DTypeError(f"first values must be an initialiser, a number or an array, got {value!r}")
    return Array(array) if array.ndim else Constant(float(array))
