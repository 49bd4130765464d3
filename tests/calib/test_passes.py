"""Passes that are done again: what they see, and what they count as."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lladav.bundle import Bundle
from lladav.calib.observed_graph import ObservedGraph
from lladav.calib.passes import (
    CONDITIONS,
    MASK_RATIOS,
    DenoisingPass,
    conditions_of,
    nearest_ratio,
    passes_of,
    refresh_inputs,
    step_inputs,
)
from lladav.runtime import GenerationConfig, Pipeline, StepEvent
from lladav.runtime.prompt import IMAGE_TOKEN


@given(st.floats(0, 1))
def test_no_ratio_is_nearer(share: float) -> None:
    assert abs(nearest_ratio(share) - share) == min(abs(ratio - share) for ratio in MASK_RATIOS)


@pytest.mark.parametrize(
    ("share", "ratio"), [(1.0, 1.0), (0.94, 1.0), (0.875, 1.0), (0.74, 0.75), (0.4, 0.5), (0.16, 0.25), (1 / 64, 0.05)]
)
def test_shares_count_for_their_ratio(share: float, ratio: float) -> None:
    assert nearest_ratio(share) == ratio


def test_the_loop_is_followed_canvas_by_canvas(tiny_bundle: Path) -> None:
    pipe = Pipeline.load(tiny_bundle)
    mask = pipe.bundle.manifest.tokens.mask
    config = GenerationConfig(preset="quality", gen_length=8, steps=4, refresh_interval=2, stop=())
    events = [event for event in pipe.stream("What is this?", config=config) if isinstance(event, StepEvent)]
    passes = passes_of(events, mask)
    assert [one.kind for one in passes] == ["refresh", "step", "refresh", "step"]
    assert [len(one.masked) for one in passes] == [8, 6, 4, 2]
    assert [one.mask_ratio for one in passes] == [1.0, 0.75, 0.5, 0.25]
    for before, event, after in zip(passes, events, passes[1:], strict=False):
        committed = np.setdiff1d(before.masked, after.masked)
        assert set(committed) == set(event.positions)
        assert (after.canvas[list(event.positions)] == event.tokens).all()


def test_every_place_of_the_window_has_a_condition() -> None:
    ids = np.array([5, IMAGE_TOKEN, IMAGE_TOKEN, 6])
    refresh = DenoisingPass("refresh", np.zeros(2, np.int64), np.array([0]))
    assert [c.where for c in conditions_of(refresh, ids)] == ["text", "image", "image", "text", "canvas", "canvas"]
    step = DenoisingPass("step", np.zeros(2, np.int64), np.array([0]))
    assert [c.where for c in conditions_of(step, ids)] == ["canvas", "canvas"]
    for one in (refresh, step):
        assert set(conditions_of(one, ids)) <= set(CONDITIONS)


def test_a_step_on_an_unchanged_canvas_sees_what_the_refresh_saw(tiny_bundle: Path) -> None:
    """The law that ties the two passes together: every linear layer, at every canvas position."""
    bundle = Bundle.open(tiny_bundle)
    language = bundle.manifest.geometry.language
    graph = ObservedGraph(bundle, "denoiser")
    draw = np.random.default_rng(0)
    prompt, canvas = (draw.standard_normal((n, language.hidden_size)).astype(np.float32) for n in (11, 6))
    masked = np.array([1, 4])
    refreshed: dict[str, np.ndarray] = {}
    stepped: dict[str, np.ndarray] = {}
    present = graph.run(refresh_inputs(bundle.manifest, prompt, canvas, masked), refreshed.__setitem__)
    again = graph.run(step_inputs(present, canvas, masked), stepped.__setitem__)
    np.testing.assert_allclose(again["logits"], present["logits"], atol=1e-4)
    assert refreshed.keys() == stepped.keys() == set(graph.linears.values())
    for tensor, values in stepped.items():
        np.testing.assert_allclose(values, refreshed[tensor][:, -values.shape[1] :], atol=1e-4, err_msg=tensor)
