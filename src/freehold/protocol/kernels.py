"""Keccak-256 over many messages at once, compiled by numba. Imported by `hashing.py`, and only for large inputs.

Eight messages advance together: lane i of all eight lies side by side in the state, and the loop over the eight is
the innermost, so that LLVM makes one vector instruction of it, of whatever width the machine has. With 512 bits that
is ten to fifteen times the rate of one message at a time.

Compiled code is kept beside this file, or where NUMBA_CACHE_DIR or the user's cache is if that folder cannot be
written, or nowhere. Nothing here holds the interpreter's lock while it runs.

Invariant: the digests are those of `typed.keccak`. Source of the permutation: FIPS 202, section 3.2, in place of
whose padding stands Keccak's own (0x01, not 0x06), as on Ethereum. A little-endian machine is assumed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, types

WIDE = 8  # messages that advance together
BLOCK_BYTES = 136
BLOCK_WORDS = 17

_ROUND_CONSTANTS = np.array(
    [
        0x0000000000000001,
        0x0000000000008082,
        0x800000000000808A,
        0x8000000080008000,
        0x000000000000808B,
        0x0000000080000001,
        0x8000000080008081,
        0x8000000000008009,
        0x000000000000008A,
        0x0000000000000088,
        0x0000000080008009,
        0x000000008000000A,
        0x000000008000808B,
        0x800000000000008B,
        0x8000000000008089,
        0x8000000000008003,
        0x8000000000008002,
        0x8000000000000080,
        0x000000000000800A,
        0x800000008000000A,
        0x8000000080008081,
        0x8000000000008080,
        0x0000000080000001,
        0x8000000080008008,
    ],
    dtype=np.uint64,
)

_STATES = types.Array(types.uint64, 1, "C")
_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_ORDER = types.Array(types.int64, 1, "C", readonly=True)
_WORDS = types.Array(types.uint64, 2, "C", readonly=True)
_DIGESTS = types.Array(types.uint64, 2, "C")


def _compiled(signature: Any) -> Callable[[Any], Any]:
    """Compile a function for `signature`; its code is kept on disk where there is a place for it."""

    def compile_function(function: Any) -> Any:
        try:
            return njit(signature, nogil=True, cache=True)(function)
        except RuntimeError:  # numba finds no folder that it can write to
            return njit(signature, nogil=True)(function)

    return compile_function


@_compiled(types.uint64(types.uint64, types.uint64))
def turn(x, bits):  # type: ignore[no-untyped-def]
    """`x` rotated left."""
    return (x << bits) | (x >> (np.uint64(64) - bits))


@_compiled(types.void(_STATES))
def permute(s):  # type: ignore[no-untyped-def]
    """Keccak-f[1600] on eight states: word i of state w is s[i * WIDE + w]. Unrolled, or LLVM makes no vectors."""
    for r in range(24):
        constant = _ROUND_CONSTANTS[r]
        for w in range(WIDE):
            a0, a1, a2, a3, a4 = s[0 * WIDE + w], s[1 * WIDE + w], s[2 * WIDE + w], s[3 * WIDE + w], s[4 * WIDE + w]
            a5, a6, a7, a8, a9 = s[5 * WIDE + w], s[6 * WIDE + w], s[7 * WIDE + w], s[8 * WIDE + w], s[9 * WIDE + w]
            a10, a11, a12, a13, a14 = (
                s[10 * WIDE + w],
                s[11 * WIDE + w],
                s[12 * WIDE + w],
                s[13 * WIDE + w],
                s[14 * WIDE + w],
            )
            a15, a16, a17, a18, a19 = (
                s[15 * WIDE + w],
                s[16 * WIDE + w],
                s[17 * WIDE + w],
                s[18 * WIDE + w],
                s[19 * WIDE + w],
            )
            a20, a21, a22, a23, a24 = (
                s[20 * WIDE + w],
                s[21 * WIDE + w],
                s[22 * WIDE + w],
                s[23 * WIDE + w],
                s[24 * WIDE + w],
            )
            c0 = a0 ^ a5 ^ a10 ^ a15 ^ a20
            c1 = a1 ^ a6 ^ a11 ^ a16 ^ a21
            c2 = a2 ^ a7 ^ a12 ^ a17 ^ a22
            c3 = a3 ^ a8 ^ a13 ^ a18 ^ a23
            c4 = a4 ^ a9 ^ a14 ^ a19 ^ a24
            d0 = c4 ^ turn(c1, 1)
            d1 = c0 ^ turn(c2, 1)
            d2 = c1 ^ turn(c3, 1)
            d3 = c2 ^ turn(c4, 1)
            d4 = c3 ^ turn(c0, 1)
            b0 = a0 ^ d0
            b1 = turn(a6 ^ d1, 44)
            b2 = turn(a12 ^ d2, 43)
            b3 = turn(a18 ^ d3, 21)
            b4 = turn(a24 ^ d4, 14)
            b5 = turn(a3 ^ d3, 28)
            b6 = turn(a9 ^ d4, 20)
            b7 = turn(a10 ^ d0, 3)
            b8 = turn(a16 ^ d1, 45)
            b9 = turn(a22 ^ d2, 61)
            b10 = turn(a1 ^ d1, 1)
            b11 = turn(a7 ^ d2, 6)
            b12 = turn(a13 ^ d3, 25)
            b13 = turn(a19 ^ d4, 8)
            b14 = turn(a20 ^ d0, 18)
            b15 = turn(a4 ^ d4, 27)
            b16 = turn(a5 ^ d0, 36)
            b17 = turn(a11 ^ d1, 10)
            b18 = turn(a17 ^ d2, 15)
            b19 = turn(a23 ^ d3, 56)
            b20 = turn(a2 ^ d2, 62)
            b21 = turn(a8 ^ d3, 55)
            b22 = turn(a14 ^ d4, 39)
            b23 = turn(a15 ^ d0, 41)
            b24 = turn(a21 ^ d1, 2)
            s[0 * WIDE + w] = b0 ^ (~b1 & b2) ^ constant
            s[1 * WIDE + w] = b1 ^ (~b2 & b3)
            s[2 * WIDE + w] = b2 ^ (~b3 & b4)
            s[3 * WIDE + w] = b3 ^ (~b4 & b0)
            s[4 * WIDE + w] = b4 ^ (~b0 & b1)
            s[5 * WIDE + w] = b5 ^ (~b6 & b7)
            s[6 * WIDE + w] = b6 ^ (~b7 & b8)
            s[7 * WIDE + w] = b7 ^ (~b8 & b9)
            s[8 * WIDE + w] = b8 ^ (~b9 & b5)
            s[9 * WIDE + w] = b9 ^ (~b5 & b6)
            s[10 * WIDE + w] = b10 ^ (~b11 & b12)
            s[11 * WIDE + w] = b11 ^ (~b12 & b13)
            s[12 * WIDE + w] = b12 ^ (~b13 & b14)
            s[13 * WIDE + w] = b13 ^ (~b14 & b10)
            s[14 * WIDE + w] = b14 ^ (~b10 & b11)
            s[15 * WIDE + w] = b15 ^ (~b16 & b17)
            s[16 * WIDE + w] = b16 ^ (~b17 & b18)
            s[17 * WIDE + w] = b17 ^ (~b18 & b19)
            s[18 * WIDE + w] = b18 ^ (~b19 & b15)
            s[19 * WIDE + w] = b19 ^ (~b15 & b16)
            s[20 * WIDE + w] = b20 ^ (~b21 & b22)
            s[21 * WIDE + w] = b21 ^ (~b22 & b23)
            s[22 * WIDE + w] = b22 ^ (~b23 & b24)
            s[23 * WIDE + w] = b23 ^ (~b24 & b20)
            s[24 * WIDE + w] = b24 ^ (~b20 & b21)


@_compiled(types.void(_WORDS, _DIGESTS))
def absorb(words, digests):  # type: ignore[no-untyped-def]
    """The digests of padded messages of one length: row i of `words` is message i, 17 words a block."""
    count, blocks = words.shape[0], words.shape[1] // BLOCK_WORDS
    s = np.empty(25 * WIDE, np.uint64)
    for first in range(0, count, WIDE):
        here = min(WIDE, count - first)
        s[:] = 0
        for block in range(blocks):
            for w in range(here):
                for i in range(BLOCK_WORDS):
                    s[i * WIDE + w] ^= words[first + w, block * BLOCK_WORDS + i]
            permute(s)
        for w in range(here):
            for i in range(4):
                digests[first + w, i] = s[i * WIDE + w]


@_compiled(types.void(_BYTES, _ORDER, _ORDER, _ORDER, _DIGESTS))
def absorb_ragged(data, starts, sizes, order, digests):  # type: ignore[no-untyped-def]
    """The digests of messages of any length: message i is data[starts[i] : starts[i] + sizes[i]].

    `order` says which are taken together; it is quickest when neighbours have equally many blocks.
    """
    s = np.empty(25 * WIDE, np.uint64)
    padded = np.empty(BLOCK_BYTES, np.uint8)
    words = padded.view(np.uint64)
    for first in range(0, order.shape[0], WIDE):
        here = min(WIDE, order.shape[0] - first)
        s[:] = 0
        blocks = 0
        for w in range(here):
            blocks = max(blocks, sizes[order[first + w]] // BLOCK_BYTES + 1)
        for block in range(blocks):
            for w in range(here):
                message = order[first + w]
                left = sizes[message] - block * BLOCK_BYTES
                if left < 0:
                    continue
                start = starts[message] + block * BLOCK_BYTES
                taken = min(left, BLOCK_BYTES)
                for i in range(taken):
                    padded[i] = data[start + i]
                if taken < BLOCK_BYTES:
                    padded[taken:] = 0
                    padded[taken] = 1
                    padded[BLOCK_BYTES - 1] |= 0x80
                for i in range(BLOCK_WORDS):
                    s[i * WIDE + w] ^= words[i]
            permute(s)
            for w in range(here):
                message = order[first + w]
                if sizes[message] // BLOCK_BYTES == block:
                    for i in range(4):
                        digests[message, i] = s[i * WIDE + w]
