"""The baseline of the speed benchmark answers as the authors' code does."""

from __future__ import annotations

import pytest

from benchmarks.authors import AuthorsLoop
from benchmarks.golden import GoldenSet
from lladav.runtime.embedding import merge_prompt

CASES = ("text_32_32_8", "stop_in_second_block")


@pytest.mark.parametrize("name", CASES)
def test_baseline_gives_the_golden_answer(golden_set: GoldenSet, name: str) -> None:
    case = golden_set.cases[name]
    pipeline = golden_set.pipeline(case["checkpoint"], case["rows"])
    manifest = pipeline.bundle.manifest
    images = [pipeline.image_rows(path) for path in golden_set.images(case.get("images", []))]
    prompt, _ = merge_prompt(case["ids"], pipeline.table, images, manifest.max_prompt)
    loop = AuthorsLoop.of(golden_set.checkpoint(case["checkpoint"]), manifest)
    ids, passes = loop.generate(
        prompt,
        case["gen_length"],
        block=case["block_length"],
        steps=case["steps"],
        stops=case.get("stop_ids", []),
    )
    assert ids == case["output_ids"]
    assert passes == case["n_forward"]
