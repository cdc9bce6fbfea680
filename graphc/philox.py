"""Philox-4x32-10 in NumPy: the reference for the generator that the emitted code contains.

Source: Salmon, Moraes, Dror and Shaw, Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011.
"""

from __future__ import annotations

import numpy as np

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)


def philox(counter: list[np.ndarray], key: tuple[int, int]) -> list[np.ndarray]:
    """Return four words a counter: ten rounds over 32-bit words held in uint64 arrays."""
    c0, c1, c2, c3 = (np.asarray(c, dtype=np.uint64) for c in counter)
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


def uniform(count: int, seed: int, step: int, stream: int) -> np.ndarray:
    """Return ``count`` numbers in [0, 1): element i is word i%4 of block i//4, its upper 24 bits.

    Counter: (block, stream, low word of step, high word of step); key: the two words of the seed.
    """
    block = np.arange((count + 3) // 4, dtype=np.uint64)
    fixed = [np.full_like(block, w) for w in (stream, step & 0xFFFFFFFF, (step >> 32) & 0xFFFFFFFF)]
    words = philox([block, *fixed], (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
    bits = np.stack(words, -1).reshape(-1)[:count]
    return (bits >> np.uint64(8)).astype(np.float64) * 2.0**-24
