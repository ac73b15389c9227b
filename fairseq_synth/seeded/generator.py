"""Random numbers by position: every element of a tensor can be drawn alone, alike on every machine.

The stream of (seed, name) is Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") in
counter mode; it never changes. Integers only, up to one multiplication:

    key       the first 16 bytes of SHA-256("fairseq_synth.seeded/1", seed, name), joined by NUL bytes, the seed in
              decimal; little-endian: bytes 0-7 are the first key word
    block i   Philox of the counter (i, 0, 0, 0): four words of 64 bits
    lane j    32 bits, read as a signed integer; block i holds the lanes 8i .. 8i+7, of each word the low half first
    uniform   element j is k * (bound * 2**-24) with k = (lane j >> 7) | 1, odd, between -2**24 and 2**24
    normal    element j is k * (std / sqrt((2**43 - 2) * 4 / 3)) with k = 2 * sum(lane >> 11) + 8 over the lanes of
              block j: a sum of eight uniforms (no value beyond 4.9 standard deviations), as logarithms and cosines
              differ between machines

k is an integer of at most 24 bits, which float32 holds exactly; the factor is rounded to float32 once, so each element
is one correctly rounded IEEE product.

On the CPU numpy's Philox makes the words (its stream is covered by numpy's compatibility guarantee); on other devices
64-bit integer tensors do, which wrap around as unsigned integers would.
"""

import hashlib
import math
from typing import Iterator, Tuple

import numpy as np
import torch
from torch import Tensor

LANES = 8
# elements at a time: the CPU's cache; elsewhere few kernel launches for some 60 MB of intermediate results
CHUNK, DEVICE_CHUNK = 1 << 16, 1 << 22
MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
ROUNDS = 10
LOW, WORD = (1 << 32) - 1, 1 << 64


def stream_key(seed: int, name: str) -> Tuple[int, int]:
    """The two key words of a tensor's stream."""
    digest = hashlib.sha256(b"\0".join((b"fairseq_synth.seeded/1", str(int(seed)).encode(), name.encode()))).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")


def uniform(seed: int, name: str, bound: float, start: int, out: Tensor) -> Tensor:
    """Fill ``out`` (float32, one dimension) with the elements from ``start`` on; returns it."""
    scale = _float32(_float32(bound) * 2.0**-24)
    for part, first in _parts(out, start, LANES):
        skip = first % LANES
        lanes = _lanes(stream_key(seed, name), first // LANES, -(-(skip + part.numel()) // LANES), out.device)
        part.copy_(lanes.flatten()[skip : skip + part.numel()].bitwise_right_shift_(7).bitwise_or_(1))
        part.mul_(scale)
    return out


def normal(seed: int, name: str, std: float, start: int, out: Tensor) -> Tensor:
    """As :func:`uniform`, with mean 0 and this standard deviation."""
    scale = _float32(std / math.sqrt((2**43 - 2) * 4 / 3))
    for part, first in _parts(out, start, 1):
        lanes = _lanes(stream_key(seed, name), first, part.numel(), out.device)
        twice = torch.full((LANES,), 2.0, dtype=torch.float64, device=out.device)
        part.copy_((lanes.bitwise_right_shift_(11).double() @ twice).add_(8))  # exact, in any order
        part.mul_(scale)
    return out


def _parts(out: Tensor, start: int, lanes: int) -> Iterator[Tuple[Tensor, int]]:
    """(slice of out, number of its first element), ending where blocks end."""
    if out.dtype != torch.float32 or out.dim() != 1:
        raise ValueError(f"out must be float32 of one dimension, not {out.dtype} of {out.dim()}")
    chunk = (CHUNK if out.device.type == "cpu" else DEVICE_CHUNK) * lanes // LANES
    done = 0
    while done < out.numel():
        size = min(out.numel() - done, chunk - (start + done) % lanes)
        yield out[done : done + size], start + done
        done += size


def _float32(value: float) -> float:
    return float(np.float32(value))


def _lanes(key: Tuple[int, int], first: int, blocks: int, device: torch.device) -> Tensor:
    """blocks x 8 signed integers of 32 bits, a fresh tensor."""
    words = host_words(key, first, blocks) if device.type == "cpu" else device_words(key, first, blocks, device)
    return words.view(torch.int32).view(blocks, LANES)


# ---------------------------------------------------------------------- Philox4x64-10
def host_words(key: Tuple[int, int], first: int, blocks: int) -> Tensor:
    """Blocks ``first`` .. ``first + blocks - 1`` by numpy: 4 * blocks int64, whose halves view in lane order."""
    before = (first - 1) % (1 << 256)  # numpy counts up before it draws
    philox = np.random.Philox(key=np.array(key, dtype=np.uint64), counter=before)
    words = philox.random_raw(4 * blocks)
    return torch.from_numpy(_low_half_first(words).view(np.int64))


def _low_half_first(words: np.ndarray) -> np.ndarray:
    if words.dtype.newbyteorder("<") == words.dtype:
        return words
    return words.astype("<u8").view("<i4").astype(np.int32)  # a big-endian machine


def device_words(key: Tuple[int, int], first: int, blocks: int, device: torch.device) -> Tensor:
    """The same by integer tensors, on any device."""
    c0 = torch.arange(first, first + blocks, dtype=torch.int64, device=device)
    c1, c2, c3 = (torch.zeros_like(c0) for _ in range(3))
    k0, k1 = key
    for _ in range(ROUNDS):
        (high0, low0), (high1, low1) = _multiply(c0, MULTIPLIERS[0]), _multiply(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ _signed(k0), low1, high0 ^ c3 ^ _signed(k1), low0
        k0, k1 = (k0 + WEYL[0]) % WORD, (k1 + WEYL[1]) % WORD
    return torch.stack((c0, c1, c2, c3), dim=1).flatten()


def _multiply(a: Tensor, b: int) -> Tuple[Tensor, Tensor]:
    """The high and the low word of the 128-bit product of unsigned words."""
    a_high, a_low = (a >> 32) & LOW, a & LOW
    b_high, b_low = b >> 32, b & LOW
    low, cross, cross2 = a_low * b_low, a_low * b_high, a_high * b_low
    carry = ((low >> 32) & LOW) + (cross & LOW) + (cross2 & LOW)
    high = a_high * b_high + ((cross >> 32) & LOW) + ((cross2 >> 32) & LOW) + (carry >> 32)
    return high, a * _signed(b)


def _signed(word: int) -> int:
    return word - WORD if word >= WORD // 2 else word
