"""Which masked positions a step commits.

A selector sees one number per position that may be committed, n of them, and gives the indices
of those that the step commits. The fixed schedule commits as many as the step's quota; the
others look at how sure the model is and need no schedule.

Every rule is a sort and a count. The counts are written so that rounding cannot break what
holds on paper: what passes is always a prefix of the sorted positions, and a bolder parameter
passes at least as much.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol

import numpy as np

from lladav.errors import OptionError

SelectorName = Literal["fixed", "threshold", "factor", "frechet", "entropy"]

_USED_BY: dict[str, SelectorName] = {
    "threshold": "threshold",
    "factor": "factor",
    "delta": "frechet",
    "gamma": "entropy",
}
"""Every parameter with the selector that it belongs to."""


class Scores(NamedTuple):
    """What a pass says about the n positions that may be committed, in the order of the canvas.

    Attributes:
        confidence: `[n]` float64, probability of the picked token, or a random rank. A position
            that must come last, such as one behind the stop, has -inf.
        entropy: `[n]` float64, of the position's distribution in nats; only for selectors with
            `needs_entropy`.
    """

    confidence: np.ndarray
    entropy: np.ndarray | None = None


class Selector(Protocol):
    """The common interface."""

    @property
    def needs_entropy(self) -> bool:
        """Whether `Scores.entropy` has to be computed."""

    def select(self, scores: Scores, quota: int) -> np.ndarray:
        """Chooses positions.

        Args:
            scores: of n positions.
            quota: how many the fixed schedule gives this step; the adaptive selectors ignore it.

        Returns:
            `[k]` int64 indices into the n positions, the best first, of equals the first in the
            canvas. k is at least 1 where n is, except for the fixed schedule with a quota of 0.
        """


@dataclass(frozen=True)
class Fixed:
    """Commits the quota: the authors' schedule.

    A quota of 0 commits nothing, as theirs does in steps beyond the number of masks.
    """

    needs_entropy: ClassVar[bool] = False

    def select(self, scores: Scores, quota: int) -> np.ndarray:
        return _descending(scores.confidence)[: max(quota, 0)]


@dataclass(frozen=True)
class Threshold:
    """Commits every position with a confidence of at least `threshold` (Fast-dLLM, arXiv 2505.22618).

    Raises:
        OptionError: the threshold is not in (0, 1].
    """

    threshold: float = 0.9
    needs_entropy: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise _out_of_range("threshold", self.threshold, "above 0 and at most 1", self.__class__.threshold)

    def select(self, scores: Scores, quota: int) -> np.ndarray:  # noqa: ARG002
        order = _descending(scores.confidence)
        return order[: _at_least_one(scores.confidence >= self.threshold)]


@dataclass(frozen=True)
class Factor:
    """Commits the longest prefix whose n-th confidence is at least `1 - factor / (n + 1)` (arXiv 2505.22618).

    The first always passes. Confidences fall and the bounds rise, so the prefix is as long as
    the number of those that pass, which is how Fast-dLLM++ (arXiv 2606.02955) counts.

    Args:
        factor: larger commits more.
        accept_last: as the LLaDA-V hook of Fast-dLLM does, commit everything where the first that
            fails is the very last one; so two positions always go together. To it a mask
            behind the stop counts: pass such positions with a confidence of -inf.

    Raises:
        OptionError: the factor is not a positive number.
    """

    factor: float = 1.0
    accept_last: bool = False
    needs_entropy: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (self.factor > 0 and math.isfinite(self.factor)):
            raise _out_of_range("factor", self.factor, "a number above 0", self.__class__.factor)

    def select(self, scores: Scores, quota: int) -> np.ndarray:  # noqa: ARG002
        order = _descending(scores.confidence)
        count = _at_least_one(scores.confidence[order] >= _factor_bounds(self.factor, len(order)))
        if self.accept_last and count == len(order) - 1:
            count += 1
        return order[:count]


@dataclass(frozen=True)
class Frechet:
    """Commits while the Fréchet bound on the joint probability exceeds the next one's doubt (arXiv 2606.02955).

    With confidences c sorted downwards, the n best are all right with a probability of at least
    `L_n = sum(c_1..c_n) - (n - 1)`; the n-th passes where `L_n - (1 - c_n) > delta`.

    Raises:
        OptionError: delta is not in [0, 1).
    """

    delta: float = 0.2
    needs_entropy: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.delta < 1:
            raise _out_of_range("delta", self.delta, "at least 0 and below 1", self.__class__.delta)

    def select(self, scores: Scores, quota: int) -> np.ndarray:  # noqa: ARG002
        order = _descending(scores.confidence)
        confidence = scores.confidence[order]
        # The same as L_n - (1 - c_n). A sum of doubts never falls, however it is rounded, and keeps
        # the small ones, which a sum of confidences close to 1 loses.
        slack = confidence - np.cumsum(1 - confidence)
        return order[: _at_least_one(slack > self.delta)]


@dataclass(frozen=True)
class Entropy:
    """Commits the positions of lowest entropy while those before sum up to at most `gamma` nats.

    The sum bounds the mutual information between the positions, hence the error of filling
    them independently (EB-sampler, arXiv 2505.24857).

    Raises:
        OptionError: gamma is negative or not a number.
    """

    gamma: float = 0.1
    needs_entropy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.gamma >= 0 and math.isfinite(self.gamma)):
            raise _out_of_range("gamma", self.gamma, "a number of nats, 0 or more", self.__class__.gamma)

    def select(self, scores: Scores, quota: int) -> np.ndarray:  # noqa: ARG002
        """See `Selector`.

        Raises:
            ValueError: the scores come without entropies.
        """
        if scores.entropy is None:
            raise ValueError("this selector needs entropies, and the scores have none")
        order = np.argsort(scores.entropy, kind="stable")
        # The cumulative sum less the position's own entropy, without inf - inf.
        before = np.cumsum(scores.entropy[order])[:-1]
        return order[: min(len(order), 1 + int(np.count_nonzero(before <= self.gamma)))]


def make_selector(
    name: SelectorName,
    *,
    threshold: float | None,
    factor: float | None,
    delta: float | None,
    gamma: float | None,
) -> Selector:
    """The selector of this name; parameters that are None take its default.

    Raises:
        OptionError: a parameter is out of range, or belongs to another selector.
    """
    given = {"threshold": threshold, "factor": factor, "delta": delta, "gamma": gamma}
    for option, value in given.items():
        if value is not None and _USED_BY[option] != name:
            raise OptionError(
                f"--{option} {value:g} means nothing to --selector {name}",
                cure=f"leave --{option} out, or choose --selector {_USED_BY[option]}",
            )
    if name == "threshold":
        return Threshold() if threshold is None else Threshold(threshold)
    if name == "factor":
        return Factor() if factor is None else Factor(factor)
    if name == "frechet":
        return Frechet() if delta is None else Frechet(delta)
    if name == "entropy":
        return Entropy() if gamma is None else Entropy(gamma)
    return Fixed()


def _descending(confidence: np.ndarray) -> np.ndarray:
    """Indices from the highest to the lowest, equals in their order."""
    return (-confidence).argsort(kind="stable")


@functools.lru_cache(maxsize=256)
def _factor_bounds(factor: float, count: int) -> np.ndarray:
    """What each of so many sorted confidences has to reach, `[count]` float64; the same in many steps."""
    bounds = 1 - factor / (np.arange(count) + 2)
    bounds.flags.writeable = False
    return bounds


def _at_least_one(passes: np.ndarray) -> int:
    """How many pass, and 1 where none of several does."""
    return max(min(1, len(passes)), int(np.count_nonzero(passes)))


def _out_of_range(option: str, value: float, allowed: str, default: float) -> OptionError:
    return OptionError(f"--{option} {value:g} is not {allowed}", cure=f"the default is --{option} {default:g}")
