"""The authors' denoising loop in PyTorch, with what it costs: the baseline of `benchmarks/cpu.py`.

A copy of the procedure of `generate_with_embeds` (`modeling_llada.py`, LLaDA-V at 2252769), not of
its text, without guidance and suffix: every pass computes the whole sequence and float32 logits of
every row, and takes a float64 softmax over the vocabulary of every row. `tests/parity` holds its
answers against those that the authors' code gave.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from lladav.export.checkpoint import Checkpoint
from lladav.export.reference import LladaV
from lladav.export.streamed_reference import StreamedReference
from lladav.manifest import MASK_DISTANCE, Manifest, SpecialTokens


class AuthorsLoop:
    """One model in float32.

    Args:
        model: without vision.
        embedding: `[V, D]`.
        tokens: ids with a role.
    """

    def __init__(self, model: LladaV, embedding: Tensor, tokens: SpecialTokens) -> None:
        self._model = model
        self._embedding = embedding
        self._tokens = tokens
        self._mask_row = embedding[tokens.mask]

    @classmethod
    def of(cls, checkpoint: str | Path, manifest: Manifest) -> AuthorsLoop:
        """The model of a checkpoint that was exported with this manifest."""
        reference = StreamedReference(Checkpoint.open(checkpoint), manifest.geometry)
        embedding = torch.from_numpy(reference.embedding(0, manifest.geometry.language.vocab_rows))
        return cls(reference.whole(), embedding, manifest.tokens)

    def start(self, prompt: npt.NDArray[np.float32], length: int) -> State:
        """A canvas of masks behind a merged prompt `[P, D]`."""
        embeds = self._mask_row.repeat(1, len(prompt) + length, 1)
        embeds[0, : len(prompt)] = torch.from_numpy(prompt)
        return State(embeds, torch.full(embeds.shape[:2], self._tokens.mask), len(prompt))

    @torch.no_grad()
    def generate(
        self,
        prompt: npt.NDArray[np.float32],
        length: int,
        *,
        block: int | None = None,
        steps: int | None = None,
        stops: Sequence[Sequence[int]] = (),
    ) -> tuple[list[int], int]:
        """Ids up to the stop, and the passes they took.

        Args:
            prompt: `[P, D]`.
            length: masks to fill.
            block: length of a block; None is one.
            steps: over all blocks; None is one per token.
            stops: ids that end the answer.
        """
        state = self.start(prompt, length)
        block = block or length
        per_block = (steps or length) * block // length
        passes = 0
        for begin in range(state.prompt, state.prompt + length, block):
            end = begin + block
            masks = int(self._masked(state.embeds)[0, begin:end].sum())
            quotas = [masks // per_block + (i < masks % per_block) for i in range(per_block)]
            for quota in quotas:
                masked = self._masked(state.embeds)
                if state.stop is not None and not masked[0, state.prompt : state.stop].any():
                    break
                if not masked[0, begin:end].any():
                    break
                self.step(state, end, quota)
                state.look_for(stops)
                passes += 1
            if state.stop is not None and state.stop <= end:
                break
        return state.ids[0, state.prompt : state.stop].tolist(), passes

    @torch.no_grad()
    def step(self, state: State, end: int, quota: int) -> None:
        """One pass, which commits `quota` positions before `end`, or before the stop."""
        masked = self._masked(state.embeds)
        logits = self._model(state.embeds).float()
        for token in self._tokens.suppressed:
            logits[:, :, token] = torch.where(masked, -torch.inf, logits[:, :, token])
        picks = torch.argmax(logits, dim=-1)
        shares = F.softmax(logits.to(torch.float64), dim=-1)
        confidences = torch.gather(shares, -1, picks[..., None])[..., 0]
        confidences[:, end if state.stop is None else state.stop :] = -torch.inf
        embeds = torch.where(masked[..., None], self._embedding[picks], state.embeds)
        picks = torch.where(masked, picks, state.ids)
        confidences = torch.where(masked, confidences, -torch.inf)
        chosen = torch.topk(confidences[0], quota).indices
        state.embeds[0, chosen] = embeds[0, chosen]
        state.ids[0, chosen] = picks[0, chosen]

    def _masked(self, embeds: Tensor) -> Tensor:
        return torch.all(torch.abs(embeds - self._mask_row) < MASK_DISTANCE, dim=2)


class State:
    """A sequence that is being filled.

    Attributes:
        embeds: `[1, P + G, D]`.
        ids: `[1, P + G]`, masks for the prompt.
        prompt: P.
        stop: position of the first stop that was found, or None.
    """

    def __init__(self, embeds: Tensor, ids: Tensor, prompt: int) -> None:
        self.embeds = embeds
        self.ids = ids
        self.prompt = prompt
        self.stop: int | None = None

    def look_for(self, stops: Sequence[Sequence[int]]) -> None:
        """As the authors: once there is a stop, only the first listed one is looked for again."""
        answer = self.ids[0, self.prompt :].tolist()
        for stop in stops:
            found = [i for i in range(len(answer) - len(stop) + 1) if answer[i : i + len(stop)] == list(stop)]
            if found and (self.stop is None or self.prompt + found[0] < self.stop):
                self.stop = self.prompt + found[0]
            if self.stop is not None:
                return
