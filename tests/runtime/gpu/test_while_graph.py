"""Steps that the device repeats by itself: the same answers, with a launch per refresh interval."""

from __future__ import annotations

import numpy as np
import pytest
from answers import CONFIGS, PROMPT, MakeGpu, told
from loop_buffers import LoopBuffers

from lladav.errors import OptionError
from lladav.memory_plan import SLOTS
from lladav.runtime import Answer, GenerationConfig, Pipeline
from lladav.runtime.config import Schedule
from lladav.runtime.gpu import kernels
from lladav.runtime.gpu.device import Device
from lladav.runtime.gpu.loop_state import Rules
from lladav.runtime.selectors import Fixed


@pytest.mark.parametrize("name", CONFIGS)
def test_answers_are_the_cpus(make: MakeGpu, cpu: Pipeline, name: str) -> None:
    options = CONFIGS[name]
    config = GenerationConfig(**({} if "template" in options else {"gen_length": 16}), **options)
    pipeline, device = make(deferred=True, bursts=True)
    for ids in (PROMPT, PROMPT[::-1], PROMPT[1:]):  # the first launches every step
        ours, expected = (p.generate(prompt_ids=ids, config=config) for p in (pipeline, cpu))
        assert ours.token_ids == expected.token_ids
        assert told(ours) == told(expected)
        assert ours.finish_reason == expected.finish_reason
        assert ours.fallbacks == ()
    device.check()


@pytest.mark.parametrize("interval", [0, SLOTS + 8])
def test_answers_longer_than_the_log(make: MakeGpu, cpu: Pipeline, interval: int) -> None:
    config = GenerationConfig(preset="exact", gen_length=48, refresh_interval=interval)
    pipeline, _ = make(bursts=True)
    for _ in range(2):
        ours = pipeline.generate(prompt_ids=PROMPT, config=config)
    assert told(ours) == told(cpu.generate(prompt_ids=PROMPT, config=config))


def test_host_waits_once_per_burst(make: MakeGpu) -> None:
    pipeline, device = make(bursts=True, deferred=True)
    config = GenerationConfig(preset="exact", gen_length=24, refresh_interval=8)
    waits = []
    for _ in range(2):
        stream = pipeline.stream(prompt_ids=PROMPT, config=config)
        next(stream)
        before = device.synchronizations
        assert sum(not isinstance(event, Answer) for event in stream) == 23
        waits.append(device.synchronizations - before)
    # Three bursts and two more refreshes.
    assert (waits[0] > 20, waits[1]) == (True, 5)


def test_time_of_a_burst_is_shared_among_its_steps(make: MakeGpu) -> None:
    pipeline, _ = make(bursts=True)
    config = GenerationConfig(preset="exact", gen_length=16, refresh_interval=8)
    for _ in range(2):
        steps = pipeline.generate(prompt_ids=PROMPT, config=config).steps
    assert len({step.ms for step in steps[1:8]}) == len({step.ms for step in steps[9:]}) == 1
    assert all(step.ms >= step.graph_ms > 0 for step in steps)


def test_device_that_cannot_repeat_launches_every_step(make: MakeGpu, cpu: Pipeline) -> None:
    pipeline, _ = make(bursts=True, repeats=False)
    config = GenerationConfig(gen_length=16)
    pipeline.generate(prompt_ids=PROMPT, config=config)
    with pytest.warns(UserWarning, match="repeats nothing"):
        ours = pipeline.generate(prompt_ids=PROMPT, config=config)
    assert told(ours) == told(cpu.generate(prompt_ids=PROMPT, config=config))
    assert len(ours.fallbacks) == 1


def test_library_that_captures_by_itself_launches_every_step(make: MakeGpu) -> None:
    pipeline, device = make(bursts=True, capturable=False)
    for _ in range(2):
        answer = pipeline.generate(prompt_ids=PROMPT, config=GenerationConfig(gen_length=16))
    assert (device.captures_made, answer.fallbacks) == (0, ())


def test_stream_that_is_interrupted_within_a_burst_says_so(make: MakeGpu) -> None:
    pipeline, _ = make(bursts=True)
    config = GenerationConfig(gen_length=16, preset="quality")
    pipeline.generate(prompt_ids=PROMPT, config=config)
    stream = pipeline.stream(prompt_ids=PROMPT, config=config)
    next(stream)
    next(stream)
    pipeline.generate(prompt_ids=PROMPT[:2], config=config)
    with pytest.raises(OptionError, match="interrupted by another"):
        list(stream)


@pytest.mark.parametrize(
    ("steps", "interval", "slots", "again"),
    [
        ((1, 1), 8, 32, True),
        ((8, 8), 8, 32, False),
        ((8, 8), 0, 32, True),
        ((32, 32), 0, 32, False),
        ((32, 32), 40, 32, False),
        ((None, 3), 8, 32, True),
        ((None, None), 8, 32, False),
        ((None, 8), 8, 32, False),
    ],
)
def test_where_a_burst_ends(
    device: Device, steps: tuple[int | None, ...], interval: int, slots: int, again: bool
) -> None:
    """Steps that canvases are at, None for those that are done."""
    rules = Rules(Schedule(gen_length=4, block_length=4, steps=4), Fixed(), GenerationConfig())
    loop = LoopBuffers(device, rules, 4, sequences=len(steps), slots=slots)
    canvases = loop.canvases
    canvases["state"]["step"] = [step or 3 for step in steps]
    canvases["state"]["done"] = [step is None for step in steps]
    loop.canvases = canvases
    handle = np.array([7], np.uint32)
    kernels.continue_while(device, loop.memory, handle.ctypes.data, interval)
    assert handle[0] == again


@pytest.mark.parametrize(("interval", "made"), [(0, 6), (4, 4)])
def test_loop_runs_on_the_device(kernel_device: Device, interval: int, made: int) -> None:
    """On the host and, with `-m gpu`, as a conditional graph: commits without passes, one launch."""
    rules = Rules(Schedule(gen_length=6, block_length=6, steps=6), Fixed(), GenerationConfig())
    loop = LoopBuffers(kernel_device, rules, 6, slots=8)

    def step(handle: int) -> None:
        kernels.commit(kernel_device, loop.memory)
        kernels.continue_while(kernel_device, loop.memory, handle, interval)

    canvases = loop.canvases
    canvases["confidences"] = 0.5
    loop.canvases = canvases
    kernels.commit(kernel_device, loop.memory)
    kernel_device.repeat(step).launch()
    state = loop.canvases[0]["state"]
    assert (state["step"], state["done"]) == (made, made == 6)
    assert loop.log["state"]["step"][:made, 0].tolist() == list(range(made))
