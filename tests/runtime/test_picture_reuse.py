"""Pictures that were seen before, and those of which less is seen."""

from __future__ import annotations

from pathlib import Path

import pytest
from asked import picture

from lladav.errors import OptionError
from lladav.runtime import GenerationConfig, Pipeline


def test_second_question_about_a_picture_skips_the_encoder(tiny_bundle: Path) -> None:
    pipe = Pipeline.load(tiny_bundle, threads=1)
    first, second = (pipe.generate("Hi", images=[picture()]) for _ in range(2))
    assert (first.reused_pictures, second.reused_pictures) == (0, 1)
    assert "vision_encoder" in first.timings_ms
    assert "vision_encoder" not in second.timings_ms
    assert first.token_ids == second.token_ids
    assert pipe.generate("Hi", images=[picture(1)]).reused_pictures == 0
    # The same crops, merged to other rows, are another picture.
    assert pipe.generate("Hi", images=[picture()], config=GenerationConfig(view="single")).reused_pictures == 0


def test_feature_cache_is_bounded(tiny_bundle: Path) -> None:
    one = Pipeline.load(tiny_bundle, threads=1).image_rows(picture()).nbytes
    pipe = Pipeline.load(tiny_bundle, threads=1, feature_cache_bytes=2 * one)
    reused = [pipe.generate("Hi", images=[picture(i)]).reused_pictures for i in (0, 1, 0, 2, 0, 1)]
    assert reused == [0, 0, 1, 0, 1, 0]
    none = Pipeline.load(tiny_bundle, threads=1, feature_cache_bytes=0)
    assert [none.generate("Hi", images=[picture()]).reused_pictures for _ in range(2)] == [0, 0]


def test_smaller_grids_and_a_single_view_take_fewer_crops(pipeline: Pipeline) -> None:
    wide = picture(0, (300, 120))
    found = [
        pipeline.generate("Hi", images=[wide], config=GenerationConfig(gen_length=4, **options))
        for options in ({}, {"max_grid": (2, 1)}, {"view": "single"}, {"preset": "realtime"})
    ]
    assert [answer.tiles for answer in found[1:]] == [(3,), (1,), (1,)]
    assert found[0].tiles > (3,)
    side = pipeline.pictures.encoder.geometry.side
    assert found[2].image_tokens == (side * side + 1,)
    assert all(sum(a.image_tokens) <= sum(b.image_tokens) for a, b in zip(found[1:], found, strict=False))
    with pytest.raises(OptionError, match="leaves no grid"):
        rule = pipeline.pictures.encoder.preprocessing
        pipeline.pictures._encoder.preprocessing = rule.model_copy(update={"grid_pinpoints": ((112, 112),)})  # type: ignore[union-attr]
        try:
            pipeline.generate("Hi", images=[wide], config=GenerationConfig(max_grid=(1, 1)))
        finally:
            pipeline.pictures._encoder.preprocessing = rule  # type: ignore[union-attr]
