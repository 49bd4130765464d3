"""From one row of logits to a token and the confidence in it."""

from __future__ import annotations

import numpy as np


class Sampler:
    """Picks tokens by the authors' rule, on buffers that are allocated once.

    Args:
        vocab_rows: length V of a row of logits.
        suppressed: ids that are never picked; their probability is 0.
        temperature: 0 for the likeliest token, else Gumbel-max sampling.
        rng: draws V uniform numbers per row when the temperature is not 0.
    """

    def __init__(
        self, vocab_rows: int, suppressed: tuple[int, ...], temperature: float, rng: np.random.Generator
    ) -> None:
        self._suppressed = np.array(suppressed, np.int64)
        self._temperature = temperature
        self._rng = rng
        self._exponentials = np.empty(vocab_rows, np.float32)
        self._noise = np.empty(vocab_rows if temperature > 0 else 0, np.float64)

    def pick(self, logits: np.ndarray) -> tuple[int, float]:
        """Token and its probability, free of noise.

        The reference takes the softmax in float64. Here exponentials are float32, relative to
        the largest logit, whose own 1 is added last and in float64: so a confidence next to
        1 keeps the small difference that ranks it.

        Args:
            logits: `[V]` float32; suppressed entries are overwritten.
        """
        logits[self._suppressed] = -np.inf
        likeliest = int(logits.argmax())
        token = likeliest if self._temperature == 0 else self._sampled(logits)
        np.subtract(logits, logits[likeliest], out=self._exponentials)
        np.exp(self._exponentials, out=self._exponentials)
        share = float(self._exponentials[token])
        self._exponentials[likeliest] = 0.0
        return token, share / (1.0 + float(self._exponentials.sum()))

    def _sampled(self, logits: np.ndarray) -> int:
        """`argmax(exp(logits) / (-log u) ** T)`, taken in logarithms."""
        noise = self._noise
        self._rng.random(out=noise)
        with np.errstate(divide="ignore"):
            np.log(noise, out=noise)
            np.negative(noise, out=noise)
            np.log(noise, out=noise)
        noise *= -self._temperature
        noise += logits
        return int(noise.argmax())


def guide(conditional: np.ndarray, unconditional: np.ndarray, scale: float) -> None:
    """Classifier-free guidance `un + (scale + 1) (cond - un)`, written into `conditional`."""
    np.subtract(conditional, unconditional, out=conditional)
    conditional *= np.float32(scale + 1)
    conditional += unconditional
