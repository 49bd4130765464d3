"""What backends tell of themselves: memory by category, limits of passes, time by layer.

A GPU's are in `device_backend`.
"""

from __future__ import annotations

from collections.abc import Sequence

from lladav.errors import LladavError
from lladav.machine import system_memory
from lladav.runtime.denoiser import Denoiser
from lladav.runtime.pipeline import Pipeline
from lladav.runtime.profiling.device_backend import layers_of_engines, memory_of_device
from lladav.runtime.profiling.layers import Node, profile_layers
from lladav.runtime.profiling.limits import Limits, buckets_of
from lladav.runtime.profiling.memory import MemoryLedger
from lladav.runtime.profiling.probe import Probe
from lladav.runtime.profiling.record import Memory
from lladav.runtime.profiling.workload import Asking
from lladav.runtime.results import Answer
from lladav.runtime.window import Size, window_size


def _size(pipeline: Pipeline, asking: Asking, answer: Answer) -> Size:
    """Of the window that an answer's passes computed: as long as the prompt on the host, unless it had a deadline."""
    sequences = 2 if asking.config.cfg_scale > 0 else 1
    suffix = asking.config.suffix_ids or pipeline.tokenizer.encode(asking.config.suffix or "")
    canvas = len(answer.steps[0].canvas) + len(suffix)
    prompts = [answer.prompt_tokens] * sequences
    size = window_size(pipeline.bundle.manifest.buckets, prompts, canvas, _rows(pipeline, asking, answer))
    padded = asking.config.deadline_ms is not None or not isinstance(pipeline.denoiser, Denoiser)
    return size if padded else (size[0], answer.prompt_tokens, size[2])


def _rows(pipeline: Pipeline, asking: Asking, answer: Answer) -> int:
    """Of logits that a pass computed at most: the answer's, and those of masks inside the prompt."""
    ids = asking.prompt_ids or pipeline.tokenizer.encode(asking.prompt or "")
    masks = pipeline.bundle.manifest.tokens.mask_aliases
    return len(answer.steps[0].canvas) + sum(token in masks for token in ids)


def limits_of(pipeline: Pipeline, asking: Asking, answer: Answer, probe: Probe | None) -> Limits | None:
    """Limits of the passes that an answer had; None on a GPU, or of a machine that was not probed."""
    if probe is None or not isinstance(pipeline.denoiser, Denoiser):
        return None
    manifest = pipeline.bundle.manifest
    return Limits(manifest, probe, _size(pipeline, asking, answer), sum(answer.tiles), _rows(pipeline, asking, answer))


def memory_of(pipeline: Pipeline, ledger: MemoryLedger | None, notes: list[str]) -> Memory | None:
    """Memory so far, or None with a note."""
    if ledger is None:
        notes.append("memory was not measured by category: that takes a bundle loaded under it")
        return None
    try:
        if isinstance(pipeline.denoiser, Denoiser):
            return ledger.account(pipeline.denoiser.buffers)
        return ledger.account({}, memory_of_device(pipeline, notes))
    except OSError as error:
        notes.append(f"memory was not measured: {error}")
        return None


def layers_of(pipeline: Pipeline, asking: Asking, answer: Answer, notes: list[str]) -> Sequence[Node]:
    """Nodes of the passes that an answer had, or none with a note."""
    denoiser, manifest = pipeline.denoiser, pipeline.bundle.manifest
    crops = max(buckets_of(sum(answer.tiles), manifest.buckets.tiles), default=0)
    if not isinstance(denoiser, Denoiser):
        return layers_of_engines(pipeline, _size(pipeline, asking, answer), crops, notes)
    needed = sum(entry.bytes for entry in manifest.files if entry.path.endswith(".weights"))
    memory = system_memory()
    if memory is not None and memory.available < 2 * needed:
        notes.append(
            f"layers were not looked at: weights of {needed / 1e9:.1f} GB would be loaded once more, and "
            f"{memory.available / 1e9:.1f} GB are available"
        )
        return ()
    try:
        return profile_layers(pipeline.bundle, denoiser.threads, _size(pipeline, asking, answer), crops)
    except LladavError as error:
        notes.append(f"layers were not looked at: {error.what}")
        return ()
