"""How much answers repeat themselves, on tokens up to the end of the answer.

ARR is the share of tokens equal to the one before, SRR the share of answers that have such a token
(arXiv 2601.20520); seq-rep-n is the share of n-grams of an answer that occurred in it before (Welleck
et al. 2019).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np


def repetition(answers: Iterable[Sequence[int]]) -> tuple[float, float, tuple[float, float, float]]:
    """ARR, SRR and seq-rep-2, -3, -4 of answers as token ids."""
    adjacent, pairs, repeating, total = 0, 0, 0, 0
    shares: dict[int, list[float]] = {2: [], 3: [], 4: []}
    for ids in answers:
        equal = sum(a == b for a, b in itertools.pairwise(ids))
        adjacent, pairs, repeating, total = adjacent + equal, pairs + len(ids), repeating + (equal > 0), total + 1
        for n, found in shares.items():
            grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
            found.append(1 - len(set(grams)) / len(grams) if grams else 0.0)
    means = tuple(float(np.mean(found)) if found else 0.0 for found in shares.values())
    return adjacent / max(pairs, 1), repeating / max(total, 1), (means[0], means[1], means[2])
