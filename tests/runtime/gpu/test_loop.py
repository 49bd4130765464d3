"""The GPU's loop on a device that is the host: the same kernels, the same graphs, ONNX Runtime instead of an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answers import CONFIGS, PROMPT, MakeGpu, told
from host_executable import HostExecutable

from lladav.errors import BackendError, ImageError, OptionError, PromptError
from lladav.runtime import Answer, GenerationConfig, Pipeline, Question


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("deferred", [False, True])
def test_answers_are_the_cpus(make: MakeGpu, cpu: Pipeline, name: str, deferred: bool) -> None:
    options = CONFIGS[name]
    config = GenerationConfig(**({} if "template" in options else {"gen_length": 16}), **options)
    pipeline, device = make(deferred=deferred)
    for ids in (PROMPT, PROMPT[::-1]):
        ours, expected = (p.generate(prompt_ids=ids, config=config) for p in (pipeline, cpu))
        assert ours.token_ids == expected.token_ids
        assert told(ours) == told(expected)
        assert ours.finish_reason == expected.finish_reason
        np.testing.assert_allclose(ours.mean_confidence, expected.mean_confidence, rtol=1e-4)
    device.check()


@pytest.mark.parametrize("name", ["cached", "quality", "fast", "guided, cached"])
def test_answers_with_an_int8_prompt_are_the_cpus(make: MakeGpu, tiny_bundle_int8_kv: Path, name: str) -> None:
    pipeline, device = make(path=tiny_bundle_int8_kv)
    expected = Pipeline.load(tiny_bundle_int8_kv, threads=1)
    config = GenerationConfig(gen_length=16, **CONFIGS[name])
    for ids in (PROMPT, PROMPT[::-1]):
        ours, theirs = (p.generate(prompt_ids=ids, config=config) for p in (pipeline, expected))
        assert ours.passes["step"] > 0
        assert told(ours) == told(theirs)
    device.check()


def test_stops_end_answers_as_on_the_cpu(make: MakeGpu, cpu: Pipeline) -> None:
    free = cpu.generate(prompt_ids=PROMPT, config=GenerationConfig(gen_length=16, selector="factor"))
    pipeline, _ = make()
    for first in range(0, 14, 3):
        stops = (tuple(free.token_ids[first : first + 2]), (free.token_ids[-1],))
        config = GenerationConfig(gen_length=16, selector="factor", stop_ids=stops)
        ours, expected = (p.generate(prompt_ids=PROMPT, config=config) for p in (pipeline, cpu))
        assert (told(ours), ours.finish_reason) == (told(expected), expected.finish_reason)
        assert ours.finish_reason == "stop"


def test_a_step_copies_no_vocabulary_and_waits_for_nothing(make: MakeGpu) -> None:
    """Beside the start of an answer: a record per step comes back, and nothing goes there."""
    pipeline, device = make(deferred=True)
    config = GenerationConfig(preset="exact", gen_length=32, refresh_interval=8)
    pipeline.generate(prompt_ids=PROMPT, config=config)
    allocations, stream = device.allocations, pipeline.stream(prompt_ids=PROMPT, config=config)
    next(stream)
    before = (device.uploads, device.downloaded, device.synchronizations)
    steps = 1 + sum(not isinstance(event, Answer) for event in stream)
    uploads, downloaded, waits = (
        now - then
        for now, then in zip((device.uploads, device.downloaded, device.synchronizations), before, strict=True)
    )
    rows = pipeline.bundle.manifest.geometry.language.vocab_rows
    assert steps == 32
    assert device.allocations == allocations == 1
    assert uploads == 0
    assert waits <= steps  # each waits for the step before it, while its own is on its way
    assert downloaded / steps < 32 * rows * 4 / 10


def test_host_reads_one_step_behind(make: MakeGpu) -> None:
    """While many masks are left, the next step is launched before this one has been read."""
    pipeline, device = make(deferred=True)
    config = GenerationConfig(preset="exact", gen_length=16)
    pipeline.generate(prompt_ids=PROMPT, config=config)
    device.kernels.clear()
    stream = pipeline.stream(prompt_ids=PROMPT, config=config)
    ahead = [device.pending > 0 for event in stream if not isinstance(event, Answer)]
    assert ahead[:12] == [True] * 12
    assert not ahead[-1]
    assert device.kernels.count("lladav_commit") == 16


def test_fixed_shapes_are_captured_once(make: MakeGpu) -> None:
    pipeline, device = make()
    config = GenerationConfig(preset="exact", gen_length=16, refresh_interval=4)
    for _ in range(3):
        answer = pipeline.generate(prompt_ids=PROMPT, config=config)
        assert answer.fallbacks == ()
    assert device.captures_made == 2  # refresh and step


def test_what_cannot_be_captured_is_launched_plainly(make: MakeGpu, cpu: Pipeline) -> None:
    pipeline, _ = make(captures=False)
    config = GenerationConfig(gen_length=16)
    with pytest.warns(UserWarning, match="could not be captured as a graph") as caught:
        ours = pipeline.generate(prompt_ids=PROMPT, config=config)
    assert len(caught) == len(ours.fallbacks) == 1
    assert "captures nothing" in ours.fallbacks[0]
    assert told(ours) == told(cpu.generate(prompt_ids=PROMPT, config=config))
    assert pipeline.generate(prompt_ids=PROMPT, config=config).fallbacks == ours.fallbacks


def test_what_was_compiled_is_kept_after_an_answer(make: MakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    monkeypatch.setattr(HostExecutable, "keep_compiled", lambda graph: kept.append(len(graph.bound)))
    pipeline, _ = make()
    pipeline.generate(prompt_ids=PROMPT, config=GenerationConfig(gen_length=8, refresh_interval=2))
    assert max(kept) == 2  # refresh and step
    kept.clear()
    pipeline.generate(prompt_ids=PROMPT, config=GenerationConfig(gen_length=8, deadline_ms=1e5))
    assert kept == []


def test_library_that_captures_by_itself_is_not_captured(make: MakeGpu, cpu: Pipeline) -> None:
    pipeline, device = make(capturable=False)
    config = GenerationConfig(gen_length=16)
    answer = pipeline.generate(prompt_ids=PROMPT, config=config)
    assert told(answer) == told(cpu.generate(prompt_ids=PROMPT, config=config))
    assert (device.captures_made, answer.fallbacks) == (0, ())


def test_batch_answers_as_one_by_one(make: MakeGpu, cpu: Pipeline) -> None:
    pipeline, _ = make()
    config = GenerationConfig(gen_length=16)
    questions = [Question(prompt_ids=[7 + n, *PROMPT[: 3 + n]]) for n in range(3)]
    together = list(pipeline.generate_batch(questions, config))
    for answer, question in zip(together, questions, strict=True):
        assert told(answer) == told(cpu.generate(prompt_ids=question.prompt_ids, config=config))


def test_pictures_go_through_the_gpu(make: MakeGpu, cpu: Pipeline) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 31, 3), np.uint8)
    pipeline, _ = make(prompt=512)
    ours, expected = (
        p.generate("Which?", images=[picture], config=GenerationConfig(gen_length=8)) for p in (pipeline, cpu)
    )
    assert told(ours) == told(expected)
    assert {"vision_encoder", "connector", "denoise"} <= ours.timings_ms.keys()


class _GpuArray:
    """An array of another library, in the memory that stands in for a GPU's."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": "|u1",
            "data": (array.ctypes.data, True),
            "strides": None,
            "version": 3,
        }


@pytest.mark.parametrize("view", ["anyres", "single"])
def test_frames_are_read_where_they_lie(make: MakeGpu, cpu: Pipeline, view: Any) -> None:
    pipeline, device = make(prompt=512)
    config = GenerationConfig(gen_length=8, view=view)
    for seed in range(2):
        frame = np.random.default_rng(seed).integers(0, 256, (40, 31, 3), np.uint8)
        ours = pipeline.generate("Which?", images=[_GpuArray(frame)], config=config)
        expected = cpu.generate("Which?", images=[frame], config=config)
        assert (told(ours), ours.tiles, ours.image_tokens) == (told(expected), expected.tiles, expected.image_tokens)
    assert ours.reused_pictures == 0
    device.check()


def test_frames_of_many_sizes_keep_memory_bounded(make: MakeGpu) -> None:
    pipeline, device = make(prompt=512)
    free = []
    for height in range(30, 42):
        frame = np.zeros((height, 31, 3), np.uint8)
        pipeline.generate("Which?", images=[_GpuArray(frame)], config=GenerationConfig(gen_length=2, view="single"))
        free.append(device.memory()[0])
    assert max(free[4:]) - min(free[4:]) < 1 << 16


def test_frame_on_a_gpu_is_refused_by_the_cpu(cpu: Pipeline) -> None:
    frame = np.zeros((40, 31, 3), np.uint8)
    with pytest.raises(ImageError, match="in GPU memory, which backend cpu does not read"):
        cpu.generate("Which?", images=[_GpuArray(frame)])


def test_noise_follows_the_seed(make: MakeGpu) -> None:
    pipeline, _ = make()

    def draw(seed: int, **options: Any) -> tuple[int, ...]:
        config = GenerationConfig(gen_length=16, temperature=2.0, seed=seed, **options)
        return pipeline.generate(prompt_ids=PROMPT, config=config).token_ids

    assert draw(1) == draw(1) != draw(2)
    ranked = GenerationConfig(gen_length=16, remasking="random", preset="exact", seed=3)
    orders = [[s.positions for s in pipeline.generate(prompt_ids=PROMPT, config=ranked).steps] for _ in range(2)]
    assert orders[0] == orders[1] != sorted(orders[0])


def test_deadline_is_kept_by_the_host(make: MakeGpu) -> None:
    pipeline, _ = make()
    answer = pipeline.generate(prompt_ids=PROMPT, config=GenerationConfig(gen_length=16, deadline_ms=1e5))
    assert len(answer.token_ids) == 16
    assert "warm_up" in answer.timings_ms


def test_interrupted_stream_says_so(make: MakeGpu) -> None:
    pipeline, _ = make()
    config = GenerationConfig(gen_length=16, preset="exact")
    stream = pipeline.stream(prompt_ids=PROMPT, config=config)
    next(stream)
    pipeline.generate(prompt_ids=PROMPT[:2], config=config)
    with pytest.raises(OptionError, match="interrupted by another"):
        list(stream)


def test_logits_that_are_no_numbers_are_refused(make: MakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, device = make()
    table = pipeline.table.gather
    monkeypatch.setattr(pipeline.table, "gather", lambda ids: table(ids) * np.float32(np.nan))
    with pytest.raises(BackendError, match="no numbers"):
        pipeline.generate(prompt_ids=PROMPT, config=GenerationConfig(gen_length=8))
    device.check()


def test_sizes_without_memory_are_refused(make: MakeGpu) -> None:
    pipeline, _ = make(batch=1, prompt=64, canvas=16)
    with pytest.raises(PromptError, match="--max-prompt"):
        pipeline.generate(prompt_ids=[7] * 100, config=GenerationConfig(gen_length=8))
    with pytest.raises(OptionError, match="--max-canvas"):
        pipeline.generate(prompt_ids=PROMPT, config=GenerationConfig(gen_length=32))
    with pytest.raises(OptionError, match="--sequences 2"):
        pipeline.generate(prompt_ids=PROMPT, config=GenerationConfig(gen_length=8, cfg_scale=1.0))


def test_largest_prompt_that_fits_is_laid_out(make: MakeGpu) -> None:
    buckets = make()[0].bundle.manifest.buckets.prompt
    roomy, _ = make(batch=1, prompt=0, canvas=16)
    tight, _ = make(batch=1, prompt=0, canvas=16, total=roomy.backend.memory.plan.total)
    assert roomy.backend.memory.plan.sizes.prompt == buckets[-1]
    assert tight.backend.memory.plan.sizes.prompt < buckets[-1]
    with pytest.raises(BackendError, match="are free on host"):
        make(batch=1, prompt=0, canvas=16, total=1 << 16)
