"""Questions about pictures, end to end, on a model of a few hundred kilobytes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from asked import picture
from tiny import without_pictures, write_tiny_checkpoint

from lladav.bundle import Bundle
from lladav.errors import BackendError, BundleError, ImageError, OptionError, PromptError
from lladav.export.config import ExportConfig
from lladav.export.exporter import export
from lladav.runtime import Answer, GenerationConfig, Message, Pipeline, StepEvent
from lladav.runtime.images import pixel_values

SHORT = GenerationConfig(gen_length=4, stop=())


def test_stream_yields_steps_and_ends_with_the_answer(pipeline: Pipeline) -> None:
    items = list(pipeline.stream("What is this?", images=[picture()], config=SHORT))
    assert [type(item) for item in items] == [StepEvent] * 4 + [Answer]
    answer = items[-1]
    assert isinstance(answer, Answer)
    again = pipeline.generate("What is this?", images=[picture()], config=SHORT)
    assert (again.token_ids, again.text) == (answer.token_ids, answer.text)
    assert list(answer.timings_ms) == [
        *(
            "tokenize",
            "preprocess",
            "feature_cache",
            "vision_encoder",
            "connector",
            "merge",
            "denoise",
            "detokenize",
            "total",
        )
    ]
    assert answer.timings_ms["total"] == pytest.approx(sum(answer.timings_ms.values()) / 2)
    assert answer.timings_ms["denoise"] == pytest.approx(sum(step.ms for step in answer.steps))


def test_json_is_plain_data(pipeline: Pipeline) -> None:
    answer = pipeline.generate("Hi", config=SHORT)
    parsed = json.loads(json.dumps(answer.to_json()))
    assert {"token_ids", "text", "finish_reason", "prompt_tokens", "steps", "timings_ms"} <= set(parsed)
    assert {"positions", "tokens", "confidences", "ms"} <= set(parsed["steps"][0])


def test_every_source_of_a_picture_gives_the_same_answer(pipeline: Pipeline, tmp_path: Path) -> None:
    image = picture()
    image.save(tmp_path / "a.png")
    stream = io.BytesIO()
    image.save(stream, "PNG")
    sources = [image, np.asarray(image), tmp_path / "a.png", str(tmp_path / "a.png"), stream.getvalue()]
    assert len({pipeline.generate("?", images=[source], config=SHORT).token_ids for source in sources}) == 1


def test_places_of_pictures(pipeline: Pipeline) -> None:
    images = [picture(seed=1), picture(seed=2)]
    before = pipeline.generate("Compare.", images=images, config=SHORT)
    marked = pipeline.generate("<image>\n<image>\nCompare.", images=images, config=SHORT)
    swapped = pipeline.generate("Compare.", images=images[::-1], config=SHORT)
    assert before.token_ids == marked.token_ids
    assert before.prompt_tokens == swapped.prompt_tokens
    with pytest.raises(PromptError, match="places for 3 pictures, but 1 were given"):
        pipeline.generate("<image><image><image>", images=images[:1], config=SHORT)


def test_conversation_of_several_turns(pipeline: Pipeline) -> None:
    turns = [Message("user", "What is it?"), Message("assistant", "A cat."), Message("user", "And the colour?")]
    one = pipeline.generate(turns[:1], images=[picture()], config=SHORT)
    three = pipeline.generate(turns, images=[picture()], config=SHORT)
    assert three.prompt_tokens > one.prompt_tokens
    assert turns[0].content == "What is it?"


def test_text_prompt_stops_at_the_end_of_the_turn_and_ids_do_not(pipeline: Pipeline) -> None:
    end = pipeline.bundle.manifest.tokens.end_of_turn
    ids = pipeline.tokenizer.chat([Message("user", "Hi")])
    config = GenerationConfig(gen_length=64)
    by_ids = pipeline.generate(prompt_ids=ids, config=config)
    stop = config.model_copy(update={"stop_ids": ((end,),)})
    assert pipeline.generate("Hi", config=config).token_ids == pipeline.generate(prompt_ids=ids, config=stop).token_ids
    assert len(by_ids.token_ids) == 64


def test_video_is_pooled_per_frame(pipeline: Pipeline, tmp_path: Path) -> None:
    for i in range(5):
        picture(seed=i).save(tmp_path / f"{i}.png")
    text = len(pipeline.tokenizer.chat([Message("user", "<image>\nWhat happens?")])) - 1
    few = pipeline.generate("What happens?", video=tmp_path, video_frames=3, config=SHORT)
    # 4 x 4 features of a frame are pooled to 2 x 2, each row ended by a newline.
    assert few.prompt_tokens == text + 3 * 2 * (2 + 1)
    assert pipeline.generate("What happens?", video=tmp_path, config=SHORT).prompt_tokens == text + 5 * 6
    paths = [tmp_path / f"{i}.png" for i in (0, 2, 4)]
    assert pipeline.generate("What happens?", video=paths, config=SHORT).token_ids == few.token_ids


def test_crops_are_encoded_alike_whatever_the_buckets(tiny_checkpoint: Path, tmp_path: Path) -> None:
    crops = np.random.default_rng(0).integers(0, 256, (7, 56, 56, 3), dtype=np.uint8)
    found = []
    for buckets in ((1,), (1, 3), (1, 2, 4, 8)):
        folder = tmp_path / "-".join(map(str, buckets))
        export(tiny_checkpoint, folder, ExportConfig(dtype="fp32", tile_buckets=buckets, verify=False))
        found.append(Pipeline.load(folder).pictures.encoder.encode(crops)[0])
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    np.testing.assert_allclose(found[0], found[2], atol=1e-5)
    assert pixel_values(crops).shape == (7, 3, 56, 56)


def test_prompt_beyond_the_models_limit_is_cut_and_says_so(pipeline: Pipeline) -> None:
    limit = pipeline.bundle.manifest.max_prompt
    answer = pipeline.generate(
        prompt_ids=[5] * (limit - 6) + [-200], images=[np.zeros((56, 56, 3), np.uint8)], config=SHORT
    )
    rows = len(pipeline.image_rows(np.zeros((56, 56, 3), np.uint8)))
    assert (answer.prompt_tokens, answer.truncated_tokens) == (limit, rows - 6)


def test_text_alone_is_never_cut(pipeline: Pipeline) -> None:
    limit = pipeline.bundle.manifest.max_prompt
    answer = pipeline.generate(prompt_ids=[5] * (limit + 10), config=SHORT)
    assert (answer.prompt_tokens, answer.truncated_tokens) == (limit + 10, 0)


def test_prompt_that_fits_no_bucket_says_what_would(tiny_checkpoint: Path, tmp_path: Path) -> None:
    export(tiny_checkpoint, tmp_path / "b", ExportConfig(dtype="fp32", prompt_buckets=(16, 32), verify=False))
    with pytest.raises(
        PromptError, match=r"40 positions fits no bucket: the largest is 32\n.*--prompt-buckets \.\.\.,64"
    ):
        Pipeline.load(tmp_path / "b").generate(prompt_ids=[5] * 40, config=SHORT)


@pytest.mark.parametrize("data", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n broken"], ids=["empty", "text", "broken"])
def test_files_that_are_no_pictures(pipeline: Pipeline, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(ImageError, match=r"x\.png"):
        pipeline.generate("?", images=[tmp_path / "x.png"], config=SHORT)


def test_picture_with_too_many_pixels_is_refused_before_it_is_decoded(tiny_bundle: Path) -> None:
    with pytest.raises(ImageError, match="4,800 pixels"):
        Pipeline.load(tiny_bundle, max_pixels=4_000).generate("?", images=[picture()], config=SHORT)


def test_text_only_model_says_so(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "c", edit=without_pictures)
    bundle = export(checkpoint, tmp_path / "b", ExportConfig(dtype="fp32", verify=False))
    assert bundle.manifest.preprocessing is None
    pipeline = Pipeline.load(bundle.path)
    assert len(pipeline.generate("Hi", config=SHORT).steps) > 0
    with pytest.raises(BundleError, match="text-only"):
        pipeline.generate("Hi", images=[picture()], config=SHORT)


def test_bf16_bundle_says_that_it_is_for_engines(tiny_checkpoint: Path, tmp_path: Path) -> None:
    export(tiny_checkpoint, tmp_path / "b", ExportConfig(dtype="bf16", verify=False))
    with pytest.raises(BackendError, match="--dtype fp32 or --dtype fp16"):
        Pipeline.load(tmp_path / "b")


def test_other_pillow_is_warned_of(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lladav.runtime.pictures.resampling_is_reference", lambda: False)
    with pytest.warns(UserWarning, match=rf"Pillow {PIL.__version__} scales pictures"):
        Pipeline.load(tiny_bundle).generate("?", images=[picture()], config=SHORT)


def test_graph_that_cannot_be_loaded(bundle_copy: Path) -> None:
    graph = bundle_copy / "denoiser_cpu.onnx"
    graph.write_bytes(b"\0" * graph.stat().st_size)
    with pytest.raises(BackendError, match=r"denoiser_cpu\.onnx.*\n.*--checksums"):
        Pipeline.load(bundle_copy)
    assert Bundle.open(bundle_copy)


def test_no_threads(tiny_bundle: Path) -> None:
    with pytest.raises(OptionError):
        Pipeline.load(tiny_bundle, threads=0)


@pytest.mark.parametrize("options", [{"gen_length": 10**11}, {"gen_length": 10**11, "block_length": 1}])
def test_canvas_beyond_all_memory_is_refused_before_it_is_made(pipeline: Pipeline, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=r"canvas of 100,000,000,000 positions fits no bucket.*\n.*--gen-length"):
        pipeline.generate("hm", config=GenerationConfig(**options))
