"""From rows of logits to tokens, and how sure the model is of each."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from lladav.runtime.template import Restriction

# Rows are worked on in parts of about this many logits, so that a part stays in a core's cache.
_PART = 1 << 17
# Sums are taken of so many interleaved parts.
_LANES = 1024
# float32 holds the sum of as many exponentials of this as a vocabulary has, and their inverse.
_DIRECT = 64.0
# The exponential of less is 0 in float32, and an infinite difference times 0 would not be.
_NOTHING = np.float32(-104.0)


class Picks(NamedTuple):
    """What R rows of logits say.

    Attributes:
        tokens: `[R]` int64.
        confidences: `[R]` float64, probability of each, free of noise.
        entropies: `[R]` float64 nats, or None where they were not asked for.
    """

    tokens: np.ndarray
    confidences: np.ndarray
    entropies: np.ndarray | None


class _Read(NamedTuple):
    """What n rows say of their likeliest token, with sums over all others relative to its exponential.

    Attributes:
        likeliest: `[n]` int64.
        others: `[n]` float64, of the exponentials.
        weighted: `[n]` float64, of each times how far it lies below the likeliest one; without a meaning where
            no entropies are wanted.
    """

    likeliest: np.ndarray
    others: np.ndarray
    weighted: np.ndarray


def room_for(vocab_rows: int, threads: int = 1) -> np.ndarray:
    """Room for the exponentials of a part of the rows per thread, `[threads, rows, V + padding]` float32.

    What fills the last lanes of a long row up is 0 and stays so.
    """
    rows = max(1, _PART // vocab_rows)
    padding = -vocab_rows % _LANES if rows == 1 else 0
    return np.zeros((threads, rows, vocab_rows + padding), np.float32)


class Sampler:
    """Picks tokens by the authors' rule, on buffers that are allocated once.

    Args:
        vocab_rows: length V of a row of logits.
        suppressed: ids that are never picked; their probability is 0.
        temperature: 0 for the likeliest token, else Gumbel-max sampling.
        rng: draws V uniform numbers per row when the temperature is not 0.
        entropy: whether entropies are wanted.
        room: from `room_for`, which samplers that take turns may share; else the sampler has its own,
            for one thread. Where noise has to be drawn in order, one thread of it is used.
    """

    def __init__(
        self,
        vocab_rows: int,
        suppressed: tuple[int, ...],
        temperature: float,
        rng: np.random.Generator,
        *,
        entropy: bool = False,
        room: np.ndarray | None = None,
    ) -> None:
        self._suppressed = suppressed
        self._temperature = temperature
        self._rng = rng
        self._entropy = entropy
        self._exponentials = room if room is not None else room_for(vocab_rows)
        self._rows = self._exponentials.shape[1]
        self._threads = len(self._exponentials) if temperature == 0 else 1
        shape = (self._threads, self._rows if entropy else 0, vocab_rows)
        self._differences = np.empty(shape, np.float32)
        self._numbers = np.arange(self._rows)
        self._noise = np.empty((self._rows if temperature > 0 else 0, vocab_rows), np.float64)

    def pick(self, logits: np.ndarray) -> Picks:
        """Token, probability and entropy of every row.

        The reference takes the softmax in float64. Here exponentials are float32, but that of the
        largest logit is added last and in float64: so a confidence next to 1 keeps the small
        difference that ranks it.

        Args:
            logits: `[R, V]` float32; suppressed entries are overwritten.
        """
        for token in self._suppressed:
            logits[:, token] = -np.inf
        parts = [logits[start : start + self._rows] for start in range(0, len(logits), self._rows)]
        read = self._read_all(parts)
        likeliest, others, weighted = read[0] if len(read) == 1 else map(np.concatenate, zip(*read, strict=True))
        total = 1.0 + others
        entropies = np.log(total) - weighted / total if self._entropy else None
        if self._temperature == 0:
            return Picks(likeliest, 1.0 / total, entropies)
        tokens = np.concatenate([self._sampled(part) for part in parts])
        rows = np.arange(len(logits))
        behind = logits[rows, tokens].astype(np.float64) - logits[rows, likeliest]
        return Picks(tokens, np.exp(behind) / total, entropies)

    def _read_all(self, parts: Sequence[np.ndarray]) -> list[_Read]:
        """`_read` of every part, by as many threads as there is room for."""
        if self._threads == 1 or len(parts) == 1:
            return [self._read(part, 0) for part in parts]

        def work(thread: int) -> list[_Read]:
            return [self._read(part, thread) for part in parts[thread :: self._threads]]

        # numpy lets other threads run while it works on an array.
        by_thread = list(_pool().map(work, range(self._threads)))
        return [by_thread[number % self._threads][number // self._threads] for number in range(len(parts))]

    def _read(self, logits: np.ndarray, thread: int) -> _Read:
        rows = self._numbers[: len(logits)]
        likeliest = logits.argmax(axis=1)
        best = logits[rows, likeliest]
        exponentials = self._exponentials[thread, : len(logits)]
        own = exponentials[:, : logits.shape[1]]
        # Relative to 0 where that cannot overflow, which saves a pass over the rows.
        direct = max(map(abs, best.tolist())) <= _DIRECT
        np.exp(logits if direct else np.subtract(logits, best[:, None], out=own), out=own)
        # An infinite logit has no distance to itself, so that a confidence in it is no number.
        unit = np.exp((best if direct else best - best).astype(np.float64))
        own[rows, likeliest] = 0.0
        if self._rows == 1:
            # Many short sums side by side are faster than numpy's sum of a long row, and as exact.
            others = exponentials.reshape(1, -1, _LANES).sum(axis=1).sum(axis=1, dtype=np.float64) / unit
        else:
            others = np.add.reduce(own, axis=1) / unit
        if not self._entropy:
            return _Read(likeliest, others, others)
        differences = self._differences[thread, : len(logits)]
        np.subtract(logits, best[:, None], out=differences)
        np.maximum(differences, _NOTHING, out=differences)
        return _Read(likeliest, others, np.einsum("rv,rv->r", own, differences) / unit)

    def _sampled(self, logits: np.ndarray) -> np.ndarray:
        """`argmax(exp(logits) / (-log u) ** T)`, taken in logarithms."""
        noise = self._noise[: len(logits)]
        self._rng.random(out=noise)
        with np.errstate(divide="ignore"):
            np.log(noise, out=noise)
            np.negative(noise, out=noise)
            np.log(noise, out=noise)
        noise *= -self._temperature
        noise += logits
        picked: np.ndarray = noise.argmax(axis=1)
        return picked


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="lladav-sampling")


def guide(conditional: np.ndarray, unconditional: np.ndarray, scale: float) -> None:
    """Classifier-free guidance `un + (scale + 1) (cond - un)`, written into `conditional`."""
    np.subtract(conditional, unconditional, out=conditional)
    conditional *= np.float32(scale + 1)
    conditional += unconditional


def restrict(logits: np.ndarray, restriction: Restriction) -> None:
    """Lets only what may stand at a position compete, in its row of logits `[V]`."""
    if restriction.allowed:
        competing = logits[restriction.ids]
        logits.fill(-np.inf)
        logits[restriction.ids] = competing
    else:
        logits[restriction.ids] = -np.inf
