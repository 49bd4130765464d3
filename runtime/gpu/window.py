"""The denoiser on a GPU: windows over one set of buffers, whose passes are captured once per size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lladav.errors import OptionError, PromptError
from lladav.manifest import Manifest, SpecialTokens
from lladav.memory_plan import Sizes
from lladav.prompt_kv import PAST, PRESENT
from lladav.runtime.denoise import DenoisingLoop
from lladav.runtime.embedding import EmbeddingTable
from lladav.runtime.evaluation import Sampling
from lladav.runtime.gpu.device import Address, Device
from lladav.runtime.gpu.evaluator import DeviceEvaluator, DeviceLogits
from lladav.runtime.gpu.executable import BoundPass, Executable, LayerTime, Tensor
from lladav.runtime.gpu.loop import DeviceLoop
from lladav.runtime.gpu.loop_memory import loop_memory
from lladav.runtime.gpu.memory import DeviceMemory
from lladav.runtime.gpu.replay import Fallbacks, Replayed
from lladav.runtime.gpu.steps import StepRunner
from lladav.runtime.gpu.while_graph import BurstLoop, BurstRunner
from lladav.runtime.loop import Loop, Request, masks_inside
from lladav.runtime.pacing import Pacer, PassTimes
from lladav.runtime.results import PassKind
from lladav.runtime.sessions import PADDED
from lladav.runtime.window import Size, window_size

_FLOAT = 4


@dataclass(frozen=True)
class GpuModel:
    """A denoiser that is loaded, with what all its windows share.

    Attributes:
        device: that everything runs on.
        graph: the denoiser.
        manifest: of the bundle.
        table: embeddings.
        memory: laid out for the largest sizes.
        fallbacks: gets why passes could not be captured.
    """

    device: Device
    graph: Executable
    manifest: Manifest
    table: EmbeddingTable
    memory: DeviceMemory
    fallbacks: Fallbacks


class GpuDenoiser:
    """A `WindowMaker` on a GPU.

    Args:
        model: what is loaded.
        bursts: whether the GPU repeats the steps between two refreshes by itself, where it can.
    """

    def __init__(self, model: GpuModel, *, bursts: bool = False) -> None:
        self._model = model
        self._kinds = (BurstRunner, BurstLoop) if bursts else (StepRunner, DeviceLoop)
        self._windows: dict[Size, GpuWindow] = {}
        self._runners: dict[tuple[Size, int, bool], StepRunner] = {}

    def window(
        self, prompts: Sequence[int], canvas: int, rows: int, *, cached: bool = False, padded: bool = False
    ) -> GpuWindow:
        """See `WindowMaker`; every window has keys and values for steps, and prompts that fill their bucket.

        Raises:
            PromptError, OptionError: also where there is no memory for that size.
        """
        del cached, padded
        size = window_size(self._model.manifest.buckets, prompts, canvas, rows)
        _check_room(size, self._model.memory.plan.sizes)
        for other in self._windows.values():
            other.owner = None  # they share their buffers
        if size not in self._windows:
            self._windows[size] = GpuWindow(self._model, size)
        window = self._windows[size]
        window.lay_out(prompts, canvas)
        return window

    def runner(self, size: Size, answers: int, *, guided: bool) -> StepRunner:
        """Steps that the GPU decides alone, over the window of that size; captured once."""
        key = (size, answers, guided)
        if key not in self._runners:
            dtype = self._model.manifest.tables["embed_tokens"].dtype
            runner, _ = self._kinds
            self._runners[key] = runner(self._windows[size], answers, guided=guided, dtype=dtype)
        return self._runners[key]

    def loop(self, tokens: SpecialTokens, request: Request, times: PassTimes, pacer: Pacer | None = None) -> Loop:
        """See `WindowMaker`; what only the host can decide is decided there."""
        table = self._model.table
        mask_row = table.gather([tokens.mask])
        prompt_masks = any(len(masks_inside(prompt, mask_row)) for prompt in request.prompts)
        if request.template is not None or prompt_masks or pacer is not None:
            return DenoisingLoop(self, table, tokens, request, times, pacer)
        _, loop = self._kinds
        return loop(self, table, tokens, request, times)


class GpuWindow:
    """A `Window` in device memory.

    Logits are computed for a canvas bucket of rows in every pass, so that all passes of one kind
    are alike; rows beyond those that are asked for repeat the last one.

    Attributes:
        size: of the buckets.
        owner: see `Window`.
        device: that everything runs on.
        memory: where everything lies.
        fallbacks: why passes could not be captured.
    """

    def __init__(self, model: GpuModel, size: Size) -> None:
        self.device = device = model.device
        self.fallbacks = fallbacks = model.fallbacks
        self.memory = memory = model.memory
        self.size = size
        self.owner: object = None
        self.vocabulary = model.manifest.geometry.language.vocab_rows
        self.width = model.manifest.geometry.language.hidden_size
        self._table = model.table
        batch, prompt, canvas = size
        self._positions = device.pinned((batch, prompt + canvas), np.int64)
        self._canvas_positions = device.pinned((batch, canvas), np.int64)
        self._bias = device.pinned((batch, prompt + canvas), np.float32)
        self._rows = device.pinned((2, canvas), np.int64)
        kept = device.pinned((prompt,), np.int64)
        kept[:] = np.arange(prompt)
        device.upload(memory.addresses["kept"], kept)
        self._kept = kept
        self._passes = _bound_passes(model.graph, model.manifest, memory, size)
        self._replayed: dict[PassKind, Replayed] = {
            "refresh": Replayed(device, self.enqueue_refresh, fallbacks, capturable=self._passes["refresh"].capturable),
            "step": Replayed(device, self.enqueue_step, fallbacks, capturable=self._passes["step"].capturable),
        }

    @property
    def canvas_start(self) -> int:
        """See `Window`."""
        return self.size[1]

    @property
    def capturable(self) -> bool:
        """Whether passes may be part of a captured graph."""
        return all(bound.capturable for bound in self._passes.values())

    def lay_out(self, prompts: Sequence[int], canvas: int) -> None:
        """Numbers the real positions and masks the padding."""
        start, device, memory = self.canvas_start, self.device, self.memory
        device.synchronize()  # earlier uploads read the arrays that change now
        self._lengths = list(prompts)
        self._positions[:] = 0
        self._bias[:] = PADDED
        self._bias[:, start : start + canvas] = 0
        for sequence, length in enumerate(prompts):
            self._positions[sequence, :length] = np.arange(length)
            self._positions[sequence, start : start + canvas] = np.arange(length, length + canvas)
            self._bias[sequence, :length] = 0
        self._canvas_positions[:] = self._positions[:, start:]
        device.upload(memory.addresses["position_ids"], self._positions)
        device.upload(memory.addresses["canvas_positions"], self._canvas_positions)
        device.upload(memory.addresses["attention_bias"], self._bias)
        # Padding is masked, but what a pass reads there must be numbers.
        batch, prompt, bucket = self.size
        device.clear(memory.addresses["inputs_embeds"], batch * (prompt + bucket) * self.width * _FLOAT)
        device.clear(memory.addresses["canvas_embeds"], batch * bucket * self.width * _FLOAT)

    def place_prompt(self, sequence: int, embeds: np.ndarray) -> None:
        """See `Window`."""
        length = self._lengths[sequence]
        rows = np.ascontiguousarray(np.broadcast_to(embeds, (length, self.width)), np.float32)
        self.device.upload(self._prompt_row(sequence, 0), rows)

    def place(self, sequence: int, places: np.ndarray, ids: np.ndarray) -> None:
        """See `Window`."""
        for run in np.split(np.arange(len(places)), np.flatnonzero(np.diff(places) != 1) + 1):
            if not len(run):
                continue
            first = int(places[run[0]])
            row = (
                self._prompt_row(sequence, first)
                if first < self.canvas_start
                else self.canvas_row(sequence, first - self.canvas_start)
            )
            self.device.upload(row, self._table.gather(ids[run]))

    def canvas_row(self, sequence: int, position: int) -> Address:
        """Where the input row of a canvas position lies."""
        return self.memory.addresses["canvas_embeds"] + (sequence * self.size[2] + position) * self.width * _FLOAT

    def _prompt_row(self, sequence: int, position: int) -> Address:
        window = self.size[1] + self.size[2]
        return self.memory.addresses["inputs_embeds"] + (sequence * window + position) * self.width * _FLOAT

    def give_rows(self, rows: np.ndarray) -> None:
        """Says which window positions `[R]` int64 the next passes compute logits for."""
        self.device.synchronize()
        self._rows[0, : len(rows)] = rows
        self._rows[0, len(rows) :] = rows[-1]
        self._rows[1] = self._rows[0] - self.canvas_start
        self.device.upload(self.memory.addresses["rows"], self._rows[0])
        self.device.upload(self.memory.addresses["canvas_rows"], self._rows[1])

    def enqueue_refresh(self) -> None:
        """Puts a full pass on the stream."""
        for sequence in range(self.size[0]):
            canvas = self.size[2] * self.width * _FLOAT
            self.device.copy(self._prompt_row(sequence, self.canvas_start), self.canvas_row(sequence, 0), canvas)
        self._passes["refresh"].enqueue()

    def enqueue_step(self) -> None:
        """Puts a pass over the canvas on the stream."""
        self._passes["step"].enqueue()

    def time_layers(self, kind: PassKind, runs: int) -> Sequence[Sequence[LayerTime]]:
        """See `BoundPass`; for whatever the window holds."""
        return self._passes[kind].time_layers(runs)

    def refresh(self, rows: np.ndarray) -> DeviceLogits:
        """See `Window`; returns when the pass is done."""
        return self._run("refresh", rows)

    def step(self, rows: np.ndarray) -> DeviceLogits:
        """See `Window`; returns when the pass is done."""
        return self._run("step", rows)

    def _run(self, kind: PassKind, rows: np.ndarray) -> DeviceLogits:
        self.give_rows(rows)
        self._replayed[kind].run()
        self.device.synchronize()
        return DeviceLogits(self.memory.addresses["logits"], len(rows))

    def evaluator(self, sampling: Sampling, draws: Sequence[np.random.Generator]) -> DeviceEvaluator:
        """See `Window`; noise is the kernels' own, so that `draws` only count the answers."""
        return DeviceEvaluator(
            self.device,
            self.memory,
            loop_memory(self.memory.addresses, self.size[2], len(draws)),
            sampling,
            self.vocabulary,
            self.canvas_start,
        )


def _check_room(size: Size, largest: Sizes) -> None:
    batch, prompt, canvas = size
    if prompt > largest.prompt:
        raise PromptError(
            f"this prompt takes a window of {prompt:,} positions; GPU memory was laid out for {largest.prompt:,}",
            cure=f"load with --max-prompt {prompt}, or ask less: fewer or smaller pictures, a shorter question",
        )
    if canvas > largest.canvas:
        raise OptionError(
            f"this answer takes a canvas of {canvas:,} positions; GPU memory was laid out for {largest.canvas:,}",
            cure=f"load with --max-canvas {canvas}, or lower --gen-length",
        )
    if batch > largest.batch:
        raise OptionError(
            f"{batch} sequences side by side; GPU memory was laid out for {largest.batch}",
            cure=f"load with --sequences {batch}; guidance (--cfg-scale) takes two for every answer",
        )


def _bound_passes(graph: Executable, manifest: Manifest, memory: DeviceMemory, size: Size) -> dict[PassKind, BoundPass]:
    """Both passes, on the same addresses."""
    batch, prompt, canvas = size
    language = manifest.geometry.language

    def caches(prefix: str, positions: int) -> dict[str, Tensor]:
        kept = (region for region in memory.plan.regions if region.name.startswith(PAST))
        return {
            region.name.replace(PAST, prefix): Tensor(
                memory.addresses[region.name] if positions else 0,
                (batch, region.shape[1], positions, region.shape[3]),
            )
            for region in kept
        }

    def tensors(window: int, embeds: str, positions: str, rows: str, past: int, kept: int) -> dict[str, Tensor]:
        return {
            "inputs_embeds": Tensor(memory.addresses[embeds], (batch, window, language.hidden_size)),
            "position_ids": Tensor(memory.addresses[positions], (batch, window)),
            "attention_bias": Tensor(memory.addresses["attention_bias"], (batch, 1, 1, prompt + canvas)),
            "rows": Tensor(memory.addresses[rows], (canvas,)),
            "kept": Tensor(memory.addresses["kept"] if kept else 0, (kept,)),
            "logits": Tensor(memory.addresses["logits"], (batch, canvas, language.vocab_rows)),
            **caches(PAST, past),
            **caches(PRESENT, kept),
        }

    scratch = memory.addresses["scratch"]
    refresh = tensors(prompt + canvas, "inputs_embeds", "position_ids", "rows", 0, prompt)
    step = tensors(canvas, "canvas_embeds", "canvas_positions", "canvas_rows", prompt, 0)
    return {
        "refresh": graph.bind(refresh, profile="refresh", scratch=scratch),
        "step": graph.bind(step, profile="step", scratch=scratch),
    }
