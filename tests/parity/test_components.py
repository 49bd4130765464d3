"""The exported graphs against intermediate results of the authors' code."""

from __future__ import annotations

import pytest

from benchmarks.golden import CONNECTOR_TOLERANCE, FEATURE_TOLERANCE, LOGIT_TOLERANCE, GoldenSet
from lladav.runtime.images import pixel_values
from lladav.runtime.sessions import open_session

PICTURES = ("synthetic_2crops", "square", "photo43", "sliver_a", "gray", "alpha")
PROMPTS = (
    *("one_photo43", "one_tall", "one_sliver_a", "two_slivers", "two_mixed", "three_truncated_8192", "no_image"),
    *("more_placeholders_than_images", "more_images_than_placeholders", "one_pad_4d", "two_pad_4d"),
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


@pytest.mark.parametrize("name", PROMPTS)
def test_merged_prompt(golden_set: GoldenSet, name: str) -> None:
    case = golden_set.facts["merge"]["cases"][name]
    rows = golden_set.prompt_rows(golden_set.pipeline(), case)
    assert len(rows) == case["length"]
    assert golden_set.error(case["embeds"], rows) < CONNECTOR_TOLERANCE


@pytest.mark.parametrize("name", ["synthetic_48", "synthetic_333", "text_then_32_masks", "image_then_16_masks"])
def test_logits_in_a_window_with_padding(golden_set: GoldenSet, name: str) -> None:
    found = golden_set.logits(golden_set.pipeline(), name)
    assert golden_set.error(golden_set.facts["fwd"]["cases"][name]["logits_tail"], found) < LOGIT_TOLERANCE
