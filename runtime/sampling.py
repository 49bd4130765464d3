"""From rows of logits to tokens, and how sure the model is of each."""

from __future__ import annotations

import functools
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
        count = len(logits)
        for token in self._suppressed:
            logits[:, token] = -np.inf
        likeliest, others, weighted = np.empty(count, np.int64), np.empty(count), np.empty(count)
        parts = [slice(start, min(start + self._rows, count)) for start in range(0, count, self._rows)]

        def work(thread: int) -> None:
            for part in parts[thread :: self._threads]:
                likeliest[part] = logits[part].argmax(axis=1)
                others[part], weighted[part] = self._others(logits[part], likeliest[part], thread)

        if self._threads == 1 or len(parts) == 1:
            for thread in range(self._threads):
                work(thread)
        else:
            # numpy lets other threads run while it works on an array.
            for _ in _pool().map(work, range(self._threads)):
                pass
        total = 1.0 + others
        if self._temperature == 0:
            return Picks(likeliest, 1.0 / total, self._entropies(total, weighted))
        tokens = np.concatenate([self._sampled(logits[part]) for part in parts])
        rows = np.arange(count)
        behind = logits[rows, tokens].astype(np.float64) - logits[rows, likeliest]
        return Picks(tokens, np.exp(behind) / total, self._entropies(total, weighted))

    def _others(self, logits: np.ndarray, likeliest: np.ndarray, thread: int) -> tuple[np.ndarray, np.ndarray]:
        """Sums over all tokens but the likeliest `[n]`, relative to its exponential.

        Returns:
            Of the exponentials `[n]` float64, and of each times how far it lies below the likeliest one,
            0 where no entropies are wanted.
        """
        rows = self._numbers[: len(logits)]
        best = logits[rows, likeliest]
        exponentials = self._exponentials[thread, : len(logits)]
        own = exponentials[:, : logits.shape[1]]
        # Relative to 0 where that cannot overflow, which saves a pass over the rows.
        direct = np.abs(best).max() <= _DIRECT
        np.exp(logits if direct else np.subtract(logits, best[:, None], out=own), out=own)
        unit = np.exp(best.astype(np.float64)) if direct else 1.0
        own[rows, likeliest] = 0.0
        if self._rows == 1:
            # Many short sums side by side are faster than numpy's sum of a long row, and as exact.
            others = exponentials.reshape(1, -1, _LANES).sum(axis=1).sum(axis=1, dtype=np.float64) / unit
        else:
            others = own.sum(axis=1) / unit
        if not self._entropy:
            return others, np.zeros(len(logits))
        differences = self._differences[thread, : len(logits)]
        np.subtract(logits, best[:, None], out=differences)
        np.maximum(differences, _NOTHING, out=differences)
        return others, np.einsum("rv,rv->r", own, differences) / unit

    def _entropies(self, total: np.ndarray, weighted: np.ndarray) -> np.ndarray | None:
        """Entropy is log(total) minus the mean of what was exponentiated."""
        return np.log(total) - weighted / total if self._entropy else None

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
