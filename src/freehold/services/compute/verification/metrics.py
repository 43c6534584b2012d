"""How far two results are apart, by the metric that a task declares: an integer, the same on every machine.

    bytes     differing bytes, in millionths of the longer
    text      lines to take out and to put in, in millionths of all lines
    numbers   the largest relative difference of numbers that stand at the same place of a text, in billionths
    pixels    images (PGM, PPM): the worst tile's root mean square difference, in millionths of the full range

Equal bytes are 0 apart; malformed bytes are INFINITE apart from anything else. Images may be off by one pixel either
way (renderers round differently), as Golem's verifier allowed: golem-verificator tried the same nine alignments. The
worst tile counts, not the mean, so that a forged corner is not lost in a large picture.

Invariant: distance(m, a, b) = distance(m, b, a) >= 0, for any bytes, without an exception, in bounded work.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import zip_longest
from math import isqrt
from typing import Any

import numpy as np

from freehold.services.compute.tasks import OutputFile, Result

INFINITE = 2**63 - 1
MILLION, BILLION = 10**6, 10**9

TEXT_STEPS = 1_000_000  # of the search for an edit path, after which two texts count as wholly different
NUMBERS_LIMIT = 1_000_000  # of a file that differ as text; more are too many to compare
NUMBER_LENGTH = 64
EXPONENT_LIMIT = 400
NEAR_ZERO = -9  # numbers below 1e-9 are measured against that
IMAGE_LIMIT = 2**27  # samples
TILE = 32  # pixels

_NUMBER = re.compile(
    r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\b(?:nan|inf(?:inity)?)\b", re.IGNORECASE
)
_HEADER = re.compile(rb"P([56])" + rb"(?:\s|#[^\n]*\n)+([0-9]{1,9})" * 3 + rb"\s")

Samples = np.ndarray[Any, np.dtype[Any]]


def distance(metric: str, first: bytes, second: bytes) -> int:
    """How far two files are apart; INFINITE where they cannot be compared. KeyError for an unknown metric."""
    measure = METRICS[metric]
    if first == second:
        return 0
    low, high = sorted((first, second))
    return min(measure(low, high), INFINITE)


def result_distance(metric: str, first: Result, second: Result, read: Callable[[str], bytes]) -> int:
    """How far two results are apart: the worst of their files and standard outputs.

    INFINITE where they ended differently or have other files. `read` gives the bytes behind a SHA-256; it is asked only
    for files that differ.
    """
    if (first.ended, first.status) != (second.ended, second.status):
        return INFINITE
    pairs = [(first.stdout, second.stdout), *zip(first.files, second.files, strict=False)]
    if len(first.files) != len(second.files) or any(one.path != other.path for one, other in pairs):
        return INFINITE
    return max(_file_distance(metric, one, other, read) for one, other in pairs)


def _file_distance(metric: str, first: OutputFile, second: OutputFile, read: Callable[[str], bytes]) -> int:
    if first.sha256 == second.sha256:
        return 0
    return distance(metric, read(first.sha256), read(second.sha256))


def _up(part: int, whole: int, unit: int) -> int:
    """part / whole in units, rounded up: what differs is never 0 apart."""
    return -(-part * unit // whole)


def bytes_distance(first: bytes, second: bytes) -> int:
    """Bytes that differ at their place, or that only the longer has."""
    shared = min(len(first), len(second))
    one, other = (np.frombuffer(data, np.uint8, shared) for data in (first, second))
    differing = int(np.count_nonzero(one != other)) + max(len(first), len(second)) - shared
    return _up(differing, max(len(first), len(second), 1), MILLION)


def text_distance(first: bytes, second: bytes) -> int:
    """Myers' shortest edit path over lines (O(ND)); UTF-8 only."""
    try:
        one, other = (data.decode().splitlines(keepends=True) for data in (first, second))
    except UnicodeDecodeError:
        return INFINITE
    edits = _count_edits(one, other)
    return MILLION if edits is None else _up(edits, max(len(one) + len(other), 1), MILLION)


def _count_edits(one: list[str], other: list[str]) -> int | None:
    """Lines to take out of `one` and put in to have `other`; None where that takes too long to find out."""
    furthest, steps = {1: 0}, 0
    for edits in range(len(one) + len(other) + 1):
        for diagonal in range(-edits, edits + 1, 2):
            left, right = furthest.get(diagonal - 1, -1), furthest.get(diagonal + 1, -1)
            at = right if diagonal == -edits or (diagonal != edits and left < right) else left + 1
            start = at
            while at < len(one) and at - diagonal < len(other) and one[at] == other[at - diagonal]:
                at += 1
            furthest[diagonal] = at
            if at >= len(one) and at - diagonal >= len(other):
                return edits
            steps += 1 + at - start
            if steps > TEXT_STEPS:
                return None
    return None


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    """Each number, after what stands before it; last what stands behind all of them, with an empty number."""
    at = 0
    for found in _NUMBER.finditer(text):
        yield text[at : found.start()], found[0]
        at = found.end()
    yield text[at:], ""


def numbers_distance(first: bytes, second: bytes) -> int:
    """The largest relative difference of numbers; what stands between them must be the same but for white space.

    |a - b| / max(|a|, |b|, 1e-9). "nan" is 0 from "nan" and an infinity from the same infinity; any other pair with one
    of them is INFINITE apart, as is a number of over 64 characters or an exponent beyond 400 from anything else.
    """
    try:
        one, other = (_pieces(data.decode()) for data in (first, second))
    except UnicodeDecodeError:
        return INFINITE
    worst, differing = 0, 0
    for left, right in zip_longest(one, other):
        if left is None or right is None:
            return INFINITE
        if left[0] != right[0] and left[0].split() != right[0].split():
            return INFINITE
        if left[1] == right[1]:
            continue
        differing += 1
        apart = _relative(left[1], right[1])
        if apart is None or differing > NUMBERS_LIMIT:
            return INFINITE
        worst = max(worst, apart)
    return worst


def _relative(first: str, second: str) -> int | None:
    one, other = _read_number(first), _read_number(second)
    if isinstance(one, str) or isinstance(other, str):
        return 0 if one == other else None
    if one is None or other is None:
        return None
    scale = min(one[1], other[1], NEAR_ZERO)
    left, right = (digits * 10 ** (exponent - scale) for digits, exponent in (one, other))
    return _up(abs(left - right), max(abs(left), abs(right), 10 ** (NEAR_ZERO - scale)), BILLION)


def _read_number(token: str) -> tuple[int, int] | str | None:
    """(digits, exponent of ten); the name of what is no number; None for what is not measured."""
    lower = token.lower()
    if lower[-1:] in ("n", "f", "y", ""):
        name = lower.lstrip("+")
        return "nan" if name.endswith("nan") else name.replace("infinity", "inf")
    mantissa, _, exponent = lower.partition("e")
    if len(token) > NUMBER_LENGTH or abs(int(exponent or "0")) > EXPONENT_LIMIT:
        return None
    whole, _, decimals = mantissa.partition(".")
    return int(whole + decimals), int(exponent or "0") - len(decimals)


def _read_image(data: bytes) -> tuple[Samples, int] | None:
    """(rows, columns, channels), and the full range, of a binary PGM or PPM."""
    found = _HEADER.match(data)
    if found is None:
        return None
    channels = 1 if found[1] == b"5" else 3
    width, height, top = (int(found[i]) for i in (2, 3, 4))
    kind = np.dtype(np.uint8 if top < 256 else ">u2")
    count = width * height * channels
    if not 0 < top < 65536 or not 0 < count <= IMAGE_LIMIT or len(data) - found.end() != count * kind.itemsize:
        return None
    return np.frombuffer(data, kind, count, found.end()).reshape(height, width, channels), top


def pixels_distance(first: bytes, second: bytes) -> int:
    """The best of nine alignments by one pixel, of each its worst tile."""
    one, other = _read_image(first), _read_image(second)
    if one is None or other is None or one[0].shape != other[0].shape or one[1] != other[1]:
        return INFINITE
    shifts = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    pairs = [(_shifted(one[0], *shift), _shifted(other[0], -shift[0], -shift[1])) for shift in shifts]
    return min(_worst_tile(left, right, one[1]) for left, right in pairs if left.size)


def _shifted(image: Samples, down: int, right: int) -> Samples:
    rows = slice(max(down, 0), image.shape[0] + min(down, 0))
    columns = slice(max(right, 0), image.shape[1] + min(right, 0))
    return image[rows, columns]


def _worst_tile(one: Samples, other: Samples, top: int) -> int:
    """In millionths of the range. Strip by strip, so that large images take little memory."""
    worst = Fraction(0)
    starts = np.arange(0, one.shape[1], TILE)
    widths = np.diff(np.append(starts, one.shape[1]))
    for row in range(0, one.shape[0], TILE):
        left, right = (image[row : row + TILE].astype(np.int64) for image in (one, other))
        sums = np.add.reduceat(((left - right) ** 2).sum(axis=(0, 2)), starts)
        counts = widths * left.shape[0] * left.shape[2]
        worst = max(worst, *(Fraction(int(s), int(n) * top**2) for s, n in zip(sums, counts, strict=True)))
    return isqrt(_up(worst.numerator, worst.denominator, MILLION**2) - 1) + 1 if worst else 0


METRICS: dict[str, Callable[[bytes, bytes], int]] = {
    "bytes": bytes_distance,
    "text": text_distance,
    "numbers": numbers_distance,
    "pixels": pixels_distance,
}
