"""From a pass to picks: what every row of logits says, wherever the logits lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lladav.runtime.sampling import Picks, Sampler, guide, restrict
from lladav.runtime.template import Restriction


@dataclass(frozen=True)
class Sampling:
    """How tokens are picked in every pass of an answer.

    Attributes:
        suppressed: ids that are never picked.
        temperature: 0 for the likeliest token, else of Gumbel-max sampling.
        cfg_scale: of classifier-free guidance, where the second half of the sequences is the
            unconditional one of the first; 0 is off.
        seed: of every sequence's noise.
        entropy: whether entropies are wanted.
    """

    suppressed: tuple[int, ...]
    temperature: float = 0.0
    cfg_scale: float = 0.0
    seed: int = 0
    entropy: bool = False


class Evaluator(Protocol):
    """Reads the logits of a pass; made by the window whose passes it reads."""

    def pick(self, logits: Any, sequence: int, rows: np.ndarray, rules: Mapping[int, Restriction]) -> Picks:
        """Token, probability and entropy of some rows of one sequence.

        Args:
            logits: what the window's last pass returned.
            sequence: its number.
            rows: `[m]` int64, in order, among the rows that were computed.
            rules: what may stand in some of these rows, by index into `rows`.
        """

    def pick_again(self, index: int, rule: Restriction) -> tuple[int, float]:
        """The likeliest token of one row of the last `pick` that fits a narrower rule, and its probability."""


class HostEvaluator:
    """Logits in host memory.

    Args:
        sampling: of every pass.
        vocabulary: length V of a row.
        draws: one generator per answer, so that none depends on what it is computed beside.
        room: see `Sampler`.
    """

    def __init__(
        self, sampling: Sampling, vocabulary: int, draws: Sequence[np.random.Generator], room: np.ndarray
    ) -> None:
        self._scale = sampling.cfg_scale
        self._samplers = [
            Sampler(
                vocabulary,
                sampling.suppressed,
                sampling.temperature,
                draw,
                entropy=sampling.entropy,
                room=room,
            )
            for draw in draws
        ]
        self._own = np.zeros((0, vocabulary), np.float32)

    def pick(self, logits: np.ndarray, sequence: int, rows: np.ndarray, rules: Mapping[int, Restriction]) -> Picks:
        """See `Evaluator`; `logits` are `[B, R, V]` float32 and are written into."""
        own = logits[sequence]
        if self._scale > 0:
            guide(own, logits[len(self._samplers) + sequence], self._scale)
        if len(rows) < len(own):
            own = own[rows]
        for index, rule in rules.items():
            restrict(own[index], rule)
        self._own = own
        return self._samplers[sequence].pick(own)

    def pick_again(self, index: int, rule: Restriction) -> tuple[int, float]:
        """See `Evaluator`."""
        own = self._own[index]
        restrict(own, rule)
        return int(own.argmax()), float(1 / np.exp(own - own.max()).sum(dtype=np.float64))
