"""The exported graphs against intermediate results of the authors' code.

Tolerances are those the golden set suggests for fp32 (about a tenth of what changes a
decision): its own rounding noise, fp32 against fp64, is 1.4e-5 for features, 3e-6 for the
connector and 1.7e-4 for logits.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest
from conftest import Goldens

from benchmarks.parity import GoldenSet
from lladav.runtime.embedding import merge_prompt
from lladav.runtime.images import open_image, preprocess
from lladav.runtime.sessions import open_session

FEATURES, CONNECTOR, LOGITS = 1e-3, 1e-4, 2e-3


def error(goldens: Goldens, spec: dict[str, Any], got: np.ndarray) -> float:
    assert list(got.shape) == spec["shape"]
    samples, values = goldens.arrays[spec["npz"] + "/idx"], goldens.arrays[spec["npz"] + "/val"]
    return float(np.abs(got.reshape(-1)[samples] - values).max())


def synthetic_crops() -> np.ndarray:
    seed = np.random.SeedSequence([51, zlib.crc32(b"synthetic_2crops"), 2])
    return np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (2, 384, 384, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["synthetic_2crops", "square", "photo43", "sliver_a", "gray", "alpha"])
def test_tower_and_connector(golden_set: GoldenSet, goldens: Goldens, name: str) -> None:
    pipeline = golden_set.pipeline()
    if name == "synthetic_2crops":
        crops = synthetic_crops()
    else:
        crops = preprocess(open_image(golden_set.images([name])[0]), pipeline.vision.preprocessing).pixels
    features, hidden = pipeline.vision.encode(crops), goldens.facts["vis"]["features"][name]
    assert error(goldens, hidden["connector"], features[0]) < CONNECTOR


def test_tower_ends_without_post_layernorm(golden_set: GoldenSet, goldens: Goldens) -> None:
    from lladav.runtime.images import pixel_values

    session = open_session(golden_set.pipeline().bundle, "vision_encoder", None)
    (hidden,) = session.run(None, {"pixel_values": pixel_values(synthetic_crops())})
    facts = goldens.facts["vis"]["features"]["synthetic_2crops"]
    assert error(goldens, facts["features"], hidden) < FEATURES
    assert error(goldens, facts["post_layernorm_unused"], hidden) > 100 * FEATURES


@pytest.mark.parametrize(
    "name", ["one_photo43", "one_tall", "one_sliver_a", "two_slivers", "two_mixed", "three_truncated_8192", "no_image"]
)
def test_merged_prompt(golden_set: GoldenSet, goldens: Goldens, name: str) -> None:
    pipeline, case = golden_set.pipeline(), goldens.facts["merge"]["cases"][name]
    rows = [pipeline.image_rows(path) for path in golden_set.images(case["images"])]
    embeds, _ = merge_prompt(case["ids"], pipeline.table, rows, pipeline.bundle.manifest.max_prompt)
    assert len(embeds) == case["length"]
    assert error(goldens, case["embeds"], embeds) < CONNECTOR


@pytest.mark.parametrize("name", ["one_pad_4d", "two_pad_4d"])
def test_padded_pictures(golden_set: GoldenSet, goldens: Goldens, name: str) -> None:
    pipeline, case = golden_set.pipeline(), goldens.facts["merge"]["cases"][name]
    rows = [pipeline.image_rows(path, "pad") for path in golden_set.images(case["images"])]
    embeds, _ = merge_prompt(case["ids"], pipeline.table, rows, pipeline.bundle.manifest.max_prompt)
    assert error(goldens, case["embeds"], embeds) < CONNECTOR


@pytest.mark.parametrize("name", ["synthetic_48", "synthetic_333", "text_then_32_masks", "image_then_16_masks"])
def test_logits(golden_set: GoldenSet, goldens: Goldens, name: str) -> None:
    """Padding fills both buckets of the window here, and must change nothing."""
    pipeline, case = golden_set.pipeline(), goldens.facts["fwd"]["cases"][name]
    if case["ids"] is None:
        embeds = goldens.arrays[f"fwd/{name}/embeds"].reshape(1, case["length"], -1)[0]
    else:
        rows = [pipeline.image_rows(path) for path in golden_set.images([case["image"]] if case["image"] else [])]
        text, _ = merge_prompt(case["ids"], pipeline.table, rows, 8192)
        masks = pipeline.table.gather([pipeline.bundle.manifest.tokens.mask] * (case["length"] - len(text)))
        embeds = np.concatenate((text, masks))
    tail = case["tail"]
    window = pipeline.denoiser.window(case["length"] - tail, tail, tail, 1)
    assert window.size[2] > tail
    window.prompt[0, : case["length"] - tail] = embeds[:-tail]
    window.canvas[0, :tail] = embeds[-tail:]
    window.rows[:tail] = window.canvas_start + np.arange(tail)
    window.run()
    assert error(goldens, case["logits_tail"], window.logits[0, :tail]) < LOGITS
