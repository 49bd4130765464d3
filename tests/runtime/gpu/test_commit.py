"""The kernel that commits, step by step beside the loop on the host."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from loop_buffers import LoopBuffers

from lladav.manifest import SpecialTokens
from lladav.runtime.canvas import Canvas
from lladav.runtime.config import GenerationConfig, Schedule
from lladav.runtime.gpu import kernels
from lladav.runtime.gpu.device import Device
from lladav.runtime.gpu.loop_state import Rules
from lladav.runtime.selectors import Entropy, Factor, Fixed, Frechet, Scores, Selector, Threshold

VOCABULARY, MASK, ALIAS = 6, 3, 5
TOKENS = SpecialTokens(
    bos=0, eos=0, mask=MASK, start_header=0, end_header=0, end_of_turn=0, suppressed=(), mask_aliases=(MASK, ALIAS)
)
SELECTORS: tuple[Selector, ...] = (
    Fixed(),
    Threshold(0.75),
    Factor(1.0),
    Factor(1.0, accept_last=True),
    Frechet(0.25),
    Entropy(0.5),
)


@pytest.fixture
def device(kernel_device: Device) -> Device:
    return kernel_device


@dataclass(frozen=True)
class Case:
    """An answer; what the model picks follows from the seed.

    Attributes:
        coarse: confidences are multiples of 1/4, so that there are equals and bounds that are met exactly.
        deadline: the step that is the last one, or None.
    """

    schedule: Schedule
    selector: Selector
    stops: tuple[tuple[int, ...], ...]
    seed: int
    coarse: bool
    deadline: int | None

    def rules(self) -> Rules:
        return Rules(self.schedule, self.selector, GenerationConfig(), aliases=TOKENS.mask_aliases, stops=self.stops)

    def picks(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Tokens, confidences and entropies of the whole canvas, pass by pass."""
        rng = np.random.default_rng(self.seed)
        while True:
            tokens, confidences, entropies = rng.integers(0, VOCABULARY, self.schedule.gen_length), *rng.random((2, 64))
            if self.coarse:
                confidences, entropies = (confidences * 4).round() / 4, (entropies * 4).round() / 4
            yield tokens, confidences[: len(tokens)], entropies[: len(tokens)]


def cases(selector: Selector, count: int) -> Iterator[Case]:
    rng = np.random.default_rng(SELECTORS.index(selector))
    for _ in range(count):
        blocks, block = rng.integers(1, 5), rng.integers(1, 13)
        stops = tuple(
            tuple(rng.integers(0, VOCABULARY, rng.integers(1, 4)).tolist()) for _ in range(rng.integers(0, 4))
        )
        yield Case(
            Schedule(gen_length=blocks * block, block_length=block, steps=blocks * rng.integers(1, block + 1)),
            selector,
            stops,
            seed=int(rng.integers(1 << 32)),
            coarse=bool(rng.random() < 0.5),
            deadline=int(rng.integers(6)) if rng.random() < 0.2 else None,
        )


@dataclass(frozen=True)
class Step:
    """What a step leaves behind."""

    block: int
    positions: list[int]
    tokens: list[int]
    confidences: list[float]
    forced: int
    stop: int
    masks_left: int
    undecided: int
    ids: list[int]
    masked: list[bool]
    done: bool


def on_the_host(case: Case) -> Iterator[Step]:
    """The order of `DenoisingLoop._denoise`, for one canvas whose passes are given."""
    scheduled = isinstance(case.selector, Fixed)
    canvas = Canvas(
        case.schedule,
        TOKENS,
        vocab_rows=VOCABULARY,
        prompt_masks=np.zeros(0, np.int64),
        stops=case.stops,
        adaptive=not scheduled,
    )
    quotas = canvas.quotas()
    quota = next(quotas, None)
    for number, (tokens, confidences, entropies) in enumerate(case.picks()):
        assert quota is not None
        last = number == case.deadline
        rows = canvas.candidates(whole=last)
        canvas.tokens[rows], canvas.confidences[rows] = tokens[rows], confidences[rows]
        chosen = rows[case.selector.select(Scores(confidences[rows], entropies[rows]), quota)]
        canvas.commit(chosen)
        canvas.scan()
        forced = canvas.candidates(whole=True) if last else rows[:0]
        forced = forced[np.argsort(-canvas.confidences[forced], kind="stable")]
        canvas.commit(forced)
        block, quota = canvas.block, next(quotas, None)
        decided = np.concatenate((chosen, forced))
        yield Step(
            block,
            decided.tolist(),
            canvas.ids[decided].tolist(),
            canvas.confidences[decided].tolist(),
            len(forced),
            -1 if canvas.stop is None else canvas.stop,
            canvas.masks_left,
            canvas.undecided,
            canvas.ids.tolist(),
            canvas.masked.tolist(),
            last or quota is None,
        )
        if last or quota is None:
            return


def on_the_device(case: Case, device: Device, capacity: int) -> Iterator[Step]:
    length, slots = case.schedule.gen_length, 3
    loop = LoopBuffers(device, case.rules(), capacity, slots=slots, mask=MASK)
    for number, (tokens, confidences, entropies) in enumerate(case.picks()):
        canvases = loop.canvases
        canvases["tokens"][0, :length] = tokens
        canvases["confidences"][0, :length] = confidences
        canvases["entropies"][0, :length] = entropies
        loop.canvases = canvases
        loop.set_whole(number == case.deadline)
        kernels.commit(device, loop.memory)
        canvas, record = loop.canvases[0], loop.log[number % slots, 0]
        state = record["state"]
        assert (state["step"], state["invalid"]) == (number, 0)
        assert canvas["state"]["step"] == number + 1
        decided = record["decided"][: state["chosen"] + state["forced"]]
        yield Step(
            int(state["block"]),
            decided["position"].tolist(),
            decided["token"].tolist(),
            decided["confidence"].tolist(),
            int(state["forced"]),
            int(state["stop"]),
            int(state["masks_left"]),
            int(state["undecided"]),
            canvas["ids"][:length].tolist(),
            canvas["masked"][:length].astype(bool).tolist(),
            bool(state["done"]),
        )
        if state["done"]:
            return


@pytest.mark.parametrize("selector", SELECTORS, ids=str)
def test_every_step_is_the_hosts(device: Device, selector: Selector) -> None:
    for case in cases(selector, 200):
        capacity = case.schedule.gen_length + case.seed % 20
        for expected, found in zip(on_the_host(case), on_the_device(case, device, capacity), strict=True):
            assert found == expected, case
