"""Profiles of a loop that the device runs alone."""

from __future__ import annotations

import pytest
from answers import MakeGpu

from lladav.runtime import GenerationConfig
from lladav.runtime.profiling import profile, synthetic
from lladav.runtime.profiling.trace import chrome_trace


@pytest.mark.parametrize("bursts", [False, True])
def test_steps_that_the_host_only_reads_are_profiled(make: MakeGpu, bursts: bool) -> None:
    pipeline, _ = make(bursts=bursts, prompt=384)
    asking = synthetic(pipeline, GenerationConfig(preset="quality", gen_length=8))
    measured = profile(pipeline, asking, runs=2, warmup=1)
    found = measured.profile
    assert len(found.steps) == 8
    for step in found.steps:
        assert step.waiting_ms is not None
        assert (step.sampling_ms.max, step.commit_ms.max) == (0, 0)
    assert found.setup.threads is None
    said = " ".join(found.notes)
    assert "memory was not measured" in said
    assert "layers were not looked at" in said
    lanes = [event["tid"] for event in chrome_trace(measured.recordings)["traceEvents"] if event["ph"] == "X"]
    assert {2, 3} <= set(lanes)
