"""The denoising loop written to be read: one sequence, fresh arrays in every pass, softmax in float64.

It follows the authors' `generate_with_embeds` and Fast-dLLM's prompt cache. What it shares with the runtime
is the graph, the embeddings, and how options and templates are read.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from plain_template import PlainTemplate

from lladav.bundle import Bundle
from lladav.manifest import CPU_DENOISER
from lladav.prompt_kv import PAST, PRESENT
from lladav.runtime import Answer, GenerationConfig, Pipeline, StepEvent
from lladav.runtime.denoiser import no_past
from lladav.runtime.question import Encoder
from lladav.runtime.sessions import open_session

# Of the largest logit: more than rounding moves any of them.
_NOISE = 1e-6


class Told(NamedTuple):
    """What a step says of itself, beside confidences and times."""

    kind: str
    block: int
    positions: tuple[int, ...]
    tokens: tuple[int, ...]
    canvas: tuple[int, ...]
    provisional: tuple[int, ...]
    masks_left: int

    @classmethod
    def of(cls, event: StepEvent) -> Told:
        return cls(*(getattr(event, name) for name in cls._fields))


@dataclass
class Story:
    """An answer step by step."""

    steps: list[Told] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    ids: tuple[int, ...] = ()
    finish_reason: str = "length"

    @classmethod
    def of(cls, answer: Answer) -> Story:
        confidences = [confidence for step in answer.steps for confidence in step.confidences]
        return cls([Told.of(step) for step in answer.steps], confidences, answer.token_ids, answer.finish_reason)

    def assert_same(self, other: Story, what: object) -> None:
        assert (self.steps, self.ids, self.finish_reason) == (other.steps, other.ids, other.finish_reason), what
        np.testing.assert_allclose(self.confidences, other.confidences, rtol=1e-4, err_msg=str(what))


class PlainModel:
    """A bundle's graph on one sequence without padding."""

    def __init__(self, bundle: Bundle) -> None:
        self._session = open_session(bundle, CPU_DENOISER, threads=1)
        self._no_past = no_past(bundle.manifest)

    def refresh(self, prompt: np.ndarray, canvas: np.ndarray, rows: list[int]) -> tuple[np.ndarray, Any]:
        """Logits `[R, V]` of some of their positions, and the prompt's keys and values."""
        embeds = np.concatenate((prompt, canvas))
        out = self._run(embeds, len(embeds), rows, len(prompt), self._no_past)
        return out.pop("logits"), {name.replace(PRESENT, PAST): kept for name, kept in out.items()}

    def step(self, canvas: np.ndarray, prompt: int, kept: Any, rows: list[int]) -> np.ndarray:
        """The same of positions behind a prompt of that length."""
        return self._run(canvas, prompt + len(canvas), [row - prompt for row in rows], 0, kept)["logits"]

    def _run(self, embeds: np.ndarray, keys: int, rows: list[int], keep: int, past: Any) -> dict[str, np.ndarray]:
        inputs = {
            "inputs_embeds": embeds[None],
            "position_ids": np.arange(keys - len(embeds), keys)[None],
            "attention_bias": np.zeros((1, 1, 1, keys), np.float32),
            "rows": np.array(rows, np.int64),
            "keep": np.array([keep]),
            **past,
        }
        names = [output.name for output in self._session.get_outputs()]
        out = dict(zip(names, self._session.run(names, inputs), strict=True))
        out["logits"] = out["logits"][0].astype(np.float64)
        return out


class PlainLoop:
    """Answers to one question.

    Args:
        model: of the pipeline's bundle.
        pipeline: for what they share.
        prompt: ids without pictures.
        config: whose stops are ids.
    """

    def __init__(self, model: PlainModel, pipeline: Pipeline, prompt: Sequence[int], config: GenerationConfig) -> None:
        manifest = pipeline.bundle.manifest
        self._model, self._prompt, self._config = model, prompt, config
        self._table = pipeline.table
        self._plan = Encoder(manifest, pipeline.tokenizer, pipeline.table.rows).plan(config)
        self._mask, self._aliases = manifest.tokens.mask, manifest.tokens.mask_aliases
        self._suppressed = [*manifest.tokens.suppressed, *(self._aliases if self._plan.knobs.forbid_mask else ())]
        self._template = PlainTemplate(self._plan.template, pipeline) if self._plan.template is not None else None

    def certain(self) -> Story | None:
        """The answer, unless logits that are a little different give another one."""
        story, *others = (self._answer(noise) for noise in (None, 1, 2))
        return story if all(other.steps == story.steps for other in others) else None

    def _answer(self, noise: int | None) -> Story:
        """Answers the question, with noise from that seed on all logits."""
        self._begin()
        self._noise = np.random.default_rng(noise) if noise is not None else None
        story, schedule = Story(), self._plan.schedule
        for block in range(schedule.blocks):
            start, end = block * schedule.block_length, (block + 1) * schedule.block_length
            if self._stop is not None and self._stop <= start:
                break
            for quota in self._quotas(start, end):
                if not self._masked_in(start, end) or (self._stop is not None and not self._masked_in(0, self._stop)):
                    break
                kind = self._kind(len(story.steps))
                limit = end if self._stop is None else self._stop
                rows = [row for row in self._rows if row in self._masked and row < limit]
                # Masks inside the prompt keep what the last refresh said of them.
                self._evaluate([row for row in rows if kind == "refresh" or row >= 0], kind)
                decided = self._commit(self._choose(rows, quota))
                self._scan()
                story.confidences += [self._confidences[row] for row in decided]
                story.steps.append(self._told(kind, block, decided))
        story.ids = (*self._ids[: self._stop], *self._plan.suffix)
        story.finish_reason = "length" if self._stop is None else "stop"
        return story

    def _begin(self) -> None:
        length, prompt = self._plan.schedule.gen_length, self._prompt
        self._draws = np.random.default_rng(self._config.seed)
        self._embeds = {False: self._table.gather(prompt), True: self._table.gather([self._mask] * len(prompt))}
        self._kept: dict[bool, Any] = {}
        # By position, which is negative inside the prompt.
        self._rows = [*range(length), *(i - len(prompt) for i, token in enumerate(prompt) if token in self._aliases)]
        self._masked = set(self._rows)
        self._ids = [self._mask] * length
        self._picked = dict.fromkeys(self._rows, self._mask)
        self._logits: dict[int, np.ndarray] = {}
        self._confidences: dict[int, float] = {}
        self._entropies: dict[int, float] = {}
        self._stop: int | None = None
        if self._template is not None:
            for place, token in self._template.pinned.items():
                self._ids[place] = token
                self._masked.remove(place)
            self._follow()

    def _masked_in(self, start: int, end: int) -> int:
        return sum(place in self._masked for place in range(start, end))

    def _quotas(self, start: int, end: int) -> Iterator[int]:
        if self._plan.knobs.selector != "fixed":
            return itertools.repeat(0)
        masks, steps = self._masked_in(start, end), self._plan.schedule.steps_per_block
        return iter([masks // steps + (i < masks % steps) for i in range(steps)])

    def _kind(self, step: int) -> str:
        interval = self._plan.knobs.refresh_interval
        return "refresh" if step == 0 or (interval > 0 and step % interval == 0) else "step"

    def _evaluate(self, rows: list[int], kind: str) -> None:
        logits = self._pass(rows, kind, unconditional=False)
        if self._config.cfg_scale > 0:
            without = self._pass(rows, kind, unconditional=True)
            logits = without + (self._config.cfg_scale + 1) * (logits - without)
        if self._noise is not None:
            logits += self._noise.uniform(-_NOISE, _NOISE, logits.shape) * np.abs(logits).max()
        for row, own in zip(rows, logits, strict=True):
            own[self._suppressed] = -np.inf
            if self._template is not None and row >= 0:
                self._template.narrow(own, row, self._ids, self._masked)
            scores = own
            if self._config.temperature > 0:
                scores = own - self._config.temperature * np.log(-np.log(self._draws.random(len(own))))
            self._pick(row, own, int(scores.argmax()))

    def _pass(self, rows: list[int], kind: str, *, unconditional: bool) -> np.ndarray:
        prompt, canvas = self._embeds[unconditional], self._table.gather([*self._ids, *self._plan.suffix])
        places = [len(prompt) + row for row in rows]
        if kind == "step":
            return self._model.step(canvas, len(prompt), self._kept[unconditional], places)
        logits, self._kept[unconditional] = self._model.refresh(prompt, canvas, places)
        return logits

    def _pick(self, row: int, logits: np.ndarray, token: int) -> None:
        likely = np.exp(logits - logits.max())
        likely /= likely.sum()
        possible = likely[likely > 0]
        self._logits[row], self._picked[row] = logits, token
        self._confidences[row] = float(likely[token])
        self._entropies[row] = float(-(possible * np.log(possible)).sum())

    def _choose(self, rows: list[int], quota: int) -> list[int]:
        """Rows to commit, the best first."""
        ranks = {row: self._confidences[row] for row in rows}
        if self._config.remasking == "random":
            ranks = {row: self._draws.random() for row in rows}
        if self._plan.knobs.selector == "entropy":
            ranks = {row: -self._entropies[row] for row in rows}
        order = sorted(rows, key=lambda row: -ranks[row])
        best = [ranks[row] for row in order]
        if self._plan.knobs.selector == "fixed":
            return order[:quota]
        passing = itertools.takewhile(lambda n: self._passes(best, n), range(len(order)))
        return order[: max(1, len(list(passing)))]

    def _passes(self, best: list[float], n: int) -> bool:
        """Whether an adaptive selector commits the n-th best, counted from 0."""
        knobs, before = self._plan.knobs, sum(best[:n])
        bounds = {
            "threshold": lambda: best[n] >= knobs.threshold,
            "factor": lambda: best[n] >= 1 - knobs.factor / (n + 2),
            "frechet": lambda: before + best[n] - n - (1 - best[n]) > knobs.delta,
            "entropy": lambda: -before <= knobs.gamma,
        }
        return bool(bounds[knobs.selector]())

    def _commit(self, rows: list[int]) -> list[int]:
        """Decides rows, the best first; returns those that were."""
        decided = []
        for row in rows:
            if row not in self._masked:
                continue  # it followed from a better one
            if self._ruled_out(row):
                if self._plan.knobs.selector != "fixed":
                    continue  # the next pass picks anew
                self._pick_again(row)
            token = self._picked[row]
            decided.append(row)
            if token not in self._aliases:
                self._masked.remove(row)
            if row >= 0:
                self._ids[row] = token
            else:
                self._embeds[False][row] = self._table.gather([token])[0]
            self._follow()
        return decided

    def _ruled_out(self, row: int) -> bool:
        """Whether what a row picked cannot stand there any more."""
        if self._template is None or row < 0:
            return False
        return self._template.forbids(self._picked[row], row, self._ids, self._masked)

    def _pick_again(self, row: int) -> None:
        assert self._template is not None
        own = self._logits[row]
        self._template.narrow(own, row, self._ids, self._masked)
        self._pick(row, own, int(own.argmax()))

    def _follow(self) -> None:
        if self._template is not None:
            for place, token in self._template.follows(self._ids, self._masked).items():
                self._ids[place] = self._picked[place] = token
                self._masked.remove(place)

    def _scan(self) -> None:
        for stop in self._config.stop_ids:
            found = [i for i in range(len(self._ids)) if self._ids[i : i + len(stop)] == list(stop)][:1]
            known = [] if self._stop is None else [self._stop]
            self._stop = min(found + known, default=None)
            if self._stop is not None:
                return

    def _told(self, kind: str, block: int, decided: list[int]) -> Told:
        places = range(len(self._ids))
        return Told(
            kind,
            block,
            tuple(decided),
            tuple(self._picked[row] for row in decided),
            tuple(self._ids),
            tuple(self._picked[place] if place in self._masked else self._ids[place] for place in places),
            self._masked_in(0, len(self._ids)),
        )
