"""What the host tells of the passes that it computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from machine_rates import even_rates

from lladav.runtime.config import GenerationConfig
from lladav.runtime.denoiser import Denoiser
from lladav.runtime.pipeline import Pipeline
from lladav.runtime.profiling.host_backend import limits_of
from lladav.runtime.profiling.workload import Asking


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path) -> Pipeline:
    return Pipeline.load(tiny_bundle, threads=1)


@pytest.mark.parametrize(
    ("options", "masks", "rows"),
    [({}, 0, 6), ({"suffix_ids": (5, 6, 7)}, 0, 6), ({"cfg_scale": 0.5}, 0, 6), ({}, 4, 10)],
)
def test_limits_are_of_the_window_that_was_computed(
    pipeline: Pipeline, options: dict[str, Any], masks: int, rows: int
) -> None:
    config = GenerationConfig(gen_length=6, block_length=6, steps=6, **options)
    mask = pipeline.bundle.manifest.tokens.mask
    asking = Asking(None, (), config, prompt_ids=(5, 6, *[mask] * masks, 7, 8))
    answer = pipeline.generate(prompt_ids=asking.prompt_ids, config=config)
    limits = limits_of(pipeline, asking, answer, even_rates())
    assert limits is not None
    assert isinstance(pipeline.denoiser, Denoiser)
    window = pipeline.denoiser._window
    assert window is not None
    assert limits._size == (window.size[0], answer.prompt_tokens, window.size[2])
    assert limits._rows == rows
