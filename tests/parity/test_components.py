"""The exported graphs against intermediate results of the authors' code."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.golden import CONNECTOR_TOLERANCE, FEATURE_TOLERANCE, LOGIT_TOLERANCE, GoldenSet
from lladav.runtime.images import pixel_values
from lladav.runtime.prompt import IMAGE_TOKEN
from lladav.runtime.sessions import open_session

PICTURES = ("synthetic_2crops", "square", "photo43", "sliver_a", "gray", "alpha")
PROMPTS = (
    *("one_photo43", "one_down", "one_tall", "one_wide", "one_ribbon", "one_tiny", "one_odd", "one_sliver_a"),
    *("two_slivers", "two_mixed", "three_truncated_8192", "no_image", "one_pad_4d", "two_pad_4d"),
    *("more_placeholders_than_images", "more_images_than_placeholders"),
)


@pytest.mark.parametrize("name", PICTURES)
def test_connector(golden_set: GoldenSet, name: str) -> None:
    pipeline = golden_set.pipeline()
    features, _ = pipeline.pictures.encoder.encode(golden_set.crops(name, pipeline))
    assert golden_set.error(golden_set.facts["vis"]["features"][name]["connector"], features) < CONNECTOR_TOLERANCE


@pytest.mark.parametrize("name", PICTURES)
def test_tower_ends_without_post_layernorm(golden_set: GoldenSet, name: str) -> None:
    pipeline = golden_set.pipeline()
    session = open_session(pipeline.bundle, "vision_encoder", None)
    (hidden,) = session.run(None, {"pixel_values": pixel_values(golden_set.crops(name, pipeline))})
    facts = golden_set.facts["vis"]["features"][name]
    assert golden_set.error(facts["features"], hidden) < FEATURE_TOLERANCE
    assert golden_set.error(facts["post_layernorm_unused"], hidden) > 100 * FEATURE_TOLERANCE


def test_every_golden_prompt_is_tested(golden_set: GoldenSet) -> None:
    assert set(golden_set.facts["merge"]["cases"]) == set(PROMPTS)


@pytest.mark.parametrize("name", PROMPTS)
def test_merged_prompt(golden_set: GoldenSet, name: str) -> None:
    case = golden_set.facts["merge"]["cases"][name]
    pipeline = golden_set.pipeline()
    rows, tokens = golden_set.merged_prompt(pipeline, case)
    assert len(rows) == case["length"]
    assert golden_set.error(case["embeds"], rows) < CONNECTOR_TOLERANCE
    lengths = golden_set.arrays[f"{case['embeds']['npz']}/row_l2"]
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), lengths, rtol=1e-5, atol=1e-4)
    newlines = np.flatnonzero((rows == pipeline.pictures.encoder.newline).all(axis=1))
    assert newlines.tolist() == case["newline_positions"]
    text = [token for token in case["ids"] if token != IMAGE_TOKEN]
    kept = [(p, token) for p, token in zip(case["text_positions"], text, strict=True) if p is not None]
    assert [(p, tokens[p]) for p in np.flatnonzero(tokens != IMAGE_TOKEN)] == kept


@pytest.mark.parametrize("name", ["synthetic_48", "synthetic_333", "text_then_32_masks", "image_then_16_masks"])
def test_logits_in_a_window_with_padding(golden_set: GoldenSet, name: str) -> None:
    found = golden_set.logits(golden_set.pipeline(), name)
    assert golden_set.error(golden_set.facts["fwd"]["cases"][name]["logits_tail"], found) < LOGIT_TOLERANCE
