"""Philox4x32-10 in numpy (Salmon et al., SC 2011), and the Gumbel noise that the kernels make of it."""

from __future__ import annotations

import numpy as np


def philox(counters: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """`[n, 4]` uint32 to `[n, 4]` uint32."""
    c0, c1, c2, c3 = (counters[:, i].astype(np.uint64) for i in range(4))
    low = np.uint64(0xFFFFFFFF)
    for number in range(10):
        k0, k1 = ((k + number * w) & 0xFFFFFFFF for k, w in zip(key, (0x9E3779B9, 0xBB67AE85), strict=True))
        left, right = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1 = (right >> np.uint64(32)) ^ c1 ^ np.uint64(k0), right & low
        c2, c3 = (left >> np.uint64(32)) ^ c3 ^ np.uint64(k1), left & low
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def words(seed: int, step: int, position: int, numbers: np.ndarray, purpose: int) -> np.ndarray:
    """`[n, 4]` uint32, one draw for each of `numbers` `[n]`."""
    counters = np.empty((len(numbers), 4), np.uint32)
    counters[:, 0] = numbers
    counters[:, 1:] = position, step, purpose
    return philox(counters, (seed & 0xFFFFFFFF, seed >> 32))


def gumbel_noise(seed: int, step: int, position: int, vocabulary: int) -> np.ndarray:
    """`[vocabulary]` float64: the n-th token takes a word of the draw n // 4."""
    drawn = words(seed, step, position, np.arange(-(-vocabulary // 4)), 0).reshape(-1)[:vocabulary]
    return -np.log(-np.log1p(-(drawn + 0.5) / 2.0**32))
