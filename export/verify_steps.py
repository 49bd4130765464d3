"""The runtime's denoising loop beside the PyTorch model, step by step on the same canvas."""

from __future__ import annotations

import math
import resource
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import torch

from lladav.bundle import Bundle
from lladav.errors import BackendError
from lladav.export.reference import LladaV
from lladav.export.streamed_reference import StreamedReference
from lladav.export.verification import Row, tolerance_on_cpu
from lladav.inspect import count_parameters
from lladav.manifest import SpecialTokens
from lladav.runtime.config import GenerationConfig, Schedule
from lladav.runtime.denoise import DenoisingLoop, Turn
from lladav.runtime.denoiser import Denoiser
from lladav.runtime.embedding import EmbeddingTable
from lladav.runtime.loop import Request
from lladav.runtime.presets import resolve
from lladav.runtime.results import StepEvent

Floats = npt.NDArray[np.float32]

GEN_LENGTH, STEPS = 8, 4
# Bytes per parameter of the model in float32 and of an ONNX Runtime session, which keeps the file
# mapped, may widen it to float32 and packs it once more.
_MODEL_BYTES, _SESSION_BYTES = 4, {"fp32": 8, "fp16": 10}
_CGROUP = Path("/sys/fs/cgroup")


def compare_steps(bundle: Bundle, reference: StreamedReference, prompt: Floats) -> list[Row]:
    """One row per denoising step, or a single one that says why there are none.

    Args:
        bundle: what is verified.
        reference: of the same checkpoint.
        prompt: `[P, D]`.
    """
    manifest = bundle.manifest
    if manifest.precision == "bf16":
        return [_skipped("the runtime has no bf16 on the CPU")]
    language = manifest.geometry.language
    parameters = count_parameters(manifest.geometry)["language_model"] - language.vocab_rows * language.hidden_size
    needed = parameters * (_MODEL_BYTES + _SESSION_BYTES[manifest.precision]) + (1 << 28)
    available = available_memory()
    if needed > available:
        return [_skipped(f"needs {needed / 1e9:.1f} GB of memory, and {available / 1e9:.1f} GB are available")]
    prompt = prompt[: manifest.buckets.prompt[-1]]
    length = min(GEN_LENGTH, manifest.buckets.canvas[-1])
    config = GenerationConfig(gen_length=length, steps=min(STEPS, length))
    table = EmbeddingTable(bundle.file(manifest.tables["embed_tokens"].file), manifest.tables["embed_tokens"])
    request = Request((prompt,), Schedule.of(config, length), config, resolve(config))
    loop = _ComparedLoop(Denoiser(bundle), table, manifest.tokens, request, reference.whole())
    rows: list[Row] = []
    try:
        for (event,) in loop:
            assert event is not None
            rows.append(loop.row(event, tolerance_on_cpu(manifest)))
    except BackendError as error:  # what is wrong with the logits is a finding here
        rows.append(Row("denoising", f"step {len(rows) + 1} logits", math.nan, 0.0, False, error.what))
    return rows


def available_memory() -> int:
    """Bytes this process may still use: of the machine, of its container, of its own limit."""
    limits: list[int] = [psutil.virtual_memory().available]
    if (_CGROUP / "memory.max").is_file():
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        if limit != "max":
            limits.append(int(limit) - int(used))
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(soft - psutil.Process().memory_info().vms)
    return max(0, min(limits))


def _skipped(why: str) -> Row:
    return Row("denoising", "steps", None, None, True, f"skipped: {why}")


class _ComparedLoop(DenoisingLoop):
    """The runtime's loop, which also asks PyTorch at every step what it would commit."""

    def __init__(
        self, denoiser: Denoiser, table: EmbeddingTable, tokens: SpecialTokens, request: Request, model: LladaV
    ) -> None:
        super().__init__(denoiser, table, tokens, request)
        self._model = model

    def row(self, event: StepEvent, relative: float) -> Row:
        """The comparison of the step that was just done."""
        tolerance = relative * self._magnitude
        # A logit may be wrong by the tolerance either way, and a confidence, which stands over the
        # sum of all of them, by twice as much; two of them decide.
        passed = self._error <= tolerance and self._margin <= 4 * tolerance
        note = f"{self._same} of {len(event.positions)} decisions alike"
        if self._same < len(event.positions):
            note += f", the others within {self._margin:.2g} logits in PyTorch"
        return Row("denoising", f"step {event.step + 1} logits", self._error, tolerance, passed, note)

    def _evaluate(self, turn: Turn, logits: Floats, rows: npt.NDArray[np.int64]) -> None:
        length = turn.canvas.length
        real = np.concatenate((self._request.prompts[0], self._table.gather(turn.canvas.ids)))
        with torch.no_grad():
            hidden = self._model.hidden_states(torch.from_numpy(real)[None])[-1]
            theirs = self._model.lm_head(hidden[:, -length:])[0].double().numpy()
        asked = turn.computed[turn.computed < length]
        self._error = float(np.abs(logits[turn.number, rows[: len(asked)]] - theirs[asked]).max())
        self._magnitude = float(np.abs(theirs).max())
        theirs[:, list(self._suppressed)] = -np.inf
        self._logits = theirs
        super()._evaluate(turn, logits, rows)

    def _select(self, turn: Turn) -> npt.NDArray[np.int64]:
        chosen = super()._select(turn)
        best = self._logits.max(axis=1)
        confidences = -np.log(np.exp(self._logits - best[:, None]).sum(axis=1))
        theirs = turn.candidates[np.argsort(-confidences[turn.candidates], kind="stable")[: turn.quota]]
        lost = best[chosen] - self._logits[chosen, turn.canvas.tokens[chosen]]
        behind = np.maximum(0, confidences[theirs].min() - confidences[chosen])
        self._margin = float(np.maximum(lost, behind).max())
        self._same = int((np.isin(chosen, theirs) & (lost == 0)).sum())
        return chosen
