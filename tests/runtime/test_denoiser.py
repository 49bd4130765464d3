"""The denoiser's window: what the passes read and write, and where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lladav.bundle import Bundle
from lladav.errors import BundleError, OptionError, PromptError
from lladav.manifest import Manifest
from lladav.runtime.config import GenerationConfig
from lladav.runtime.denoiser import Denoiser, HostWindow
from lladav.runtime.pipeline import Pipeline


@pytest.fixture(scope="module")
def denoiser(tiny_bundle: Path) -> Denoiser:
    return Denoiser(Bundle.open(tiny_bundle), threads=1)


def fill(window: HostWindow, prompts: list[int], canvas: int) -> np.ndarray:
    """Random input rows; returns the canvas' window positions."""
    draw = np.random.default_rng(0)
    for sequence, length in enumerate(prompts):
        window.prompt[sequence, :length] = draw.normal(0, 0.5, (length, 32))
        window.canvas[sequence, :canvas] = draw.normal(0, 0.5, (canvas, 32))
    return window.canvas_start + np.arange(canvas)


@pytest.mark.parametrize("kind", ["tiny_bundle", "tiny_bundle_int8_kv"])
def test_refresh_writes_where_steps_read(kind: str, request: pytest.FixtureRequest) -> None:
    """The prompt's keys and values have one address, which the runtime never copies."""
    window = Denoiser(Bundle.open(request.getfixturevalue(kind)), threads=1).window([21], 6, 6, cached=True)
    writes, reads = window._refresh.arrays, window._step.arrays
    for layer in range(2):
        for part in ("key", "value"):
            written, read = writes[f"present.{layer}.{part}"], reads[f"past_key_values.{layer}.{part}"]
            assert written is read
            assert written.shape == (1, 4, 21, 8)
    rows = fill(window, [21], 6)
    window.refresh(rows)
    kept = {name: array.copy() for name, array in reads.items() if name.startswith("past")}
    assert all(array[:, :, :21].any() for array in kept.values())
    window.canvas[:] += 1
    window.step(rows)
    for name, array in kept.items():
        np.testing.assert_array_equal(reads[name], array)


def test_int8_prompt_is_a_quarter_of_float32_and_its_scales(denoiser: Denoiser, tiny_bundle_int8_kv: Path) -> None:
    integers = Denoiser(Bundle.open(tiny_bundle_int8_kv), threads=1)
    for each in (denoiser, integers):
        each.window([21], 6, 6, cached=True)
    ours, theirs = (sum(a.nbytes for a in each.buffers["prompt KV"]) for each in (integers, denoiser))
    assert ours == theirs // 4 + theirs // 8  # heads are 8 wide


def test_bucket_of_an_int8_prompt_decides_nothing(tiny_bundle_int8_kv: Path) -> None:
    """Padding is rounded beside the prompt, and the prompt not by it."""
    denoiser = Denoiser(Bundle.open(tiny_bundle_int8_kv), threads=1)
    found = []
    for bucket in (64, 128):
        window = denoiser.window([21] if bucket == 64 else [21, bucket], 6, 6, cached=True)
        rows = fill(window, [21], 6)
        window.refresh(rows)
        window.canvas[0] += 1
        found.append(window.step(rows)[0].copy())
    np.testing.assert_allclose(*found, atol=1e-5)


def test_rows_in_any_number_and_order(denoiser: Denoiser) -> None:
    window = denoiser.window([21], 6, 6, cached=True)
    rows = fill(window, [21], 6)
    whole = window.refresh(rows).copy()
    for chosen in ([5], [4, 0], [1, 3, 2], [5, 4, 3, 2, 1, 0]):
        for logits in (window.refresh(rows[chosen]), window.step(rows[chosen])):
            np.testing.assert_allclose(logits, whole[:, chosen], atol=2e-5)


def test_prompt_positions_may_be_asked_for(denoiser: Denoiser) -> None:
    window = denoiser.window([21], 4, 6, cached=False)
    rows = np.concatenate((fill(window, [21], 4), [3, 20]))
    alone = window.refresh(rows[-1:]).copy()
    np.testing.assert_allclose(window.refresh(rows)[:, -1:], alone, atol=1e-5)


def test_batch_computes_what_its_sequences_do_alone(denoiser: Denoiser) -> None:
    prompts = [21, 9, 40]
    together = denoiser.window(prompts, 6, 6, cached=True)
    rows = fill(together, prompts, 6)
    inputs = together.prompt.copy(), together.canvas.copy()
    refreshed, stepped = together.refresh(rows).copy(), together.step(rows[1:4]).copy()
    for sequence, length in enumerate(prompts):
        window = denoiser.window([length], 6, 6, cached=True)
        window.prompt[0], window.canvas[0] = inputs[0][sequence, :length], inputs[1][sequence]
        own = window.canvas_start + np.arange(6)
        np.testing.assert_allclose(window.refresh(own)[0], refreshed[sequence], atol=1e-5)
        np.testing.assert_allclose(window.step(own[1:4])[0], stepped[sequence], atol=1e-5)


@pytest.mark.parametrize("kind", ["tiny_bundle", "tiny_bundle_int8_kv"])
def test_a_window_forgets_longer_and_shorter_prompts(kind: str, request: pytest.FixtureRequest) -> None:
    bundle = Bundle.open(request.getfixturevalue(kind))
    used = Denoiser(bundle, threads=1)
    alone = ([40], [21], [0], [63], [1], [21])
    for prompts in (*alone, [40, 12], [9, 21], [21, 9], [63, 63], [1, 40]):
        found = []
        for denoiser in (used, Denoiser(bundle, threads=1)):
            window = denoiser.window(prompts, 6, 6, cached=True)
            count = len(prompts)
            assert (window.size, window.prompt.shape) == ((count, 64, 8), (count, max(prompts), 32))
            rows = fill(window, prompts, 6)
            found.append((window.refresh(rows).copy(), window.step(rows[1:4]).copy()))
        for again, first in zip(*found, strict=True):
            np.testing.assert_array_equal(again, first)


def test_guidance_forgets_longer_and_shorter_prompts(tiny_bundle: Path) -> None:
    """Prompts of masks, which stand beside each, are as long."""
    config = GenerationConfig(gen_length=6, block_length=6, steps=3, cfg_scale=0.5, refresh_interval=2)
    used = Pipeline.load(tiny_bundle, threads=1)
    for length in (40, 12, 63, 1, 21):
        answers = [
            pipeline.generate(prompt_ids=[5 + n % 20 for n in range(length)], config=config)
            for pipeline in (used, Pipeline.load(tiny_bundle, threads=1))
        ]
        again, first = ([(step.tokens, step.confidences) for step in answer.steps] for answer in answers)
        assert again == first


def test_padding_fills_the_bucket_and_changes_nothing(denoiser: Denoiser) -> None:
    found = []
    for padded, length in ((False, 21), (True, 64)):
        window = denoiser.window([21], 6, 6, cached=True, padded=padded)
        assert (window.canvas_start, window.size) == (length, (1, 64, 8))
        rows = fill(window, [21], 6)
        found.append(np.concatenate((window.refresh(rows), window.step(rows))))
    np.testing.assert_allclose(*found, atol=2e-5)


def test_buffers_are_used_again_where_they_fit(denoiser: Denoiser) -> None:
    first = denoiser.window([21], 6, 6, cached=True)
    assert denoiser.window([40], 8, 8, cached=False) is first
    assert denoiser.window([21], 9, 9, cached=True) is not first


def test_what_fits_no_bucket_is_named(denoiser: Denoiser) -> None:
    with pytest.raises(PromptError, match="513 positions fits no bucket"):
        denoiser.window([513], 6, 6)
    with pytest.raises(OptionError, match="513 positions fits no bucket"):
        denoiser.window([5], 6, 513)


def test_older_bundle_is_to_be_exported_again(bundle_copy: Path) -> None:
    manifest = Manifest.read(bundle_copy)
    graphs = {name: graph for name, graph in manifest.graphs.items() if name != "denoiser_cpu"}
    manifest.model_copy(update={"graphs": graphs}).write(bundle_copy)
    with pytest.raises(BundleError, match="older lladav exported it") as caught:
        Denoiser(Bundle.open(bundle_copy))
    assert "export the checkpoint again" in caught.value.cure
