"""The weights file of an exported module: one flat block after another, to be mapped and used where it lies.

The file is little-endian. 128 bytes of header are followed by the blocks, each of them padded with zeros to a
multiple of 64 bytes:

====== ===== ======================================================================
offset bytes what
====== ===== ======================================================================
0      8     ``GRAPHCW1``
8      4     version of the format, 1
12     4     bytes of the header, 128
16     32    SHA-256 of the graph that the weights belong to
48     8     bytes of the whole file
56     16    step of the training, seed of random layers
72     32    bytes of the blocks params, slots, state and folded, with their padding
104    16    the two sums of all other bytes, as 32-bit words: of w[k], and of (k + 1) w[k], modulo 2^64
120    8     bytes of the block frozen, which comes last
====== ===== ======================================================================

The sums are those of Fletcher 1982, "An arithmetic checksum for serial transmissions", with 64 bits and no modulus
of their own: one wrong byte always changes the first, two exchanged words the second. They guard against damage, not
against malice.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from graphc_runtime.errors import CheckpointError

BLOCKS = ("params", "slots", "state", "folded", "frozen")
HEADER_BYTES = 128
_ALIGN = 64
_MAGIC = b"GRAPHCW1"
_FORMAT = struct.Struct("<8sII32sQQQ4Q2QQ")
_SUMS = slice(104 // 4, 120 // 4)  # words of the header


@dataclass(frozen=True)
class Weights:
    """What a weights file holds: the digest of its graph (64 hexadecimal digits), the step, the seed, the blocks."""

    graph: str
    step: int
    seed: int
    blocks: Mapping[str, np.ndarray]


def pack_weights(weights: Weights) -> bytes:
    """Return the bytes of a weights file."""
    bodies = []
    for name in BLOCKS:
        body = np.ascontiguousarray(weights.blocks.get(name, np.empty(0, np.uint8))).tobytes()
        bodies.append(body + bytes(-len(body) % _ALIGN))
    size = HEADER_BYTES + sum(map(len, bodies))

    def header(*sums: int) -> bytes:
        *sizes, frozen = map(len, bodies)
        return _FORMAT.pack(
            _MAGIC, 1, HEADER_BYTES, bytes.fromhex(weights.graph), size, weights.step, weights.seed % 2**64,
            *sizes, *sums, frozen,
        )  # fmt: skip

    rest = b"".join(bodies)
    return header(*_sums(header(0, 0) + rest)) + rest


def unpack_weights(data: bytes, graph: str, what: str = "weights file") -> Weights:
    """Return what a weights file holds, the blocks as bytes.

    Raises:
        CheckpointError: the file is no weights file, is damaged, or belongs to another graph.
    """
    if len(data) < HEADER_BYTES or data[:8] != _MAGIC:
        raise CheckpointError(
            f"{what}: {len(data):,} bytes that do not begin as a weights file of graphc does"
        )
    _, version, header_bytes, digest, size, step, seed, *rest = _FORMAT.unpack_from(data)
    sizes, sums = (*rest[:4], rest[6]), rest[4:6]
    if (version, header_bytes) != (1, HEADER_BYTES):
        raise CheckpointError(f"{what}: format {version}, and this runtime reads format 1")
    if size != len(data) or size != HEADER_BYTES + sum(sizes):
        raise CheckpointError(f"{what}: the header says {size:,} bytes, there are {len(data):,}")
    if tuple(sums) != _sums(data):
        raise CheckpointError(f"{what}: the checksum is wrong, the file is damaged")
    if digest.hex() != graph:
        raise CheckpointError(f"{what}: belongs to graph {digest.hex()[:12]}, not to {graph[:12]}")
    blocks, begin = {}, HEADER_BYTES
    for name, count in zip(BLOCKS, sizes, strict=True):
        blocks[name] = np.frombuffer(data, np.uint8, count, begin)
        begin += count
    return Weights(graph, step, seed, blocks)


def _sums(data: bytes) -> tuple[int, int]:
    words = np.frombuffer(data, "<u4").astype(np.uint64)
    words[_SUMS] = 0
    with np.errstate(over="ignore"):
        weighted = words * np.arange(1, len(words) + 1, dtype=np.uint64)
        return int(words.sum(dtype=np.uint64)), int(weighted.sum(dtype=np.uint64))
