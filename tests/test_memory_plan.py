"""The plan of GPU memory: what the graphs ask for, each at a place of its own."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lladav.errors import OptionError
from lladav.manifest import Manifest
from lladav.memory_plan import ALIGNMENT, Sizes, check_sizes, default_sizes, plan_memory
from lladav.prompt_kv import PAST

SIZES = Sizes(batch=2, prompt=128, canvas=32, tiles=4)


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return Manifest.read(tiny_bundle)


@pytest.mark.parametrize("kind", ["tiny_bundle", "tiny_bundle_int8_kv"])
def test_every_input_and_output_has_its_place(kind: str, request: pytest.FixtureRequest) -> None:
    manifest = Manifest.read(request.getfixturevalue(kind))
    plan = plan_memory(manifest, SIZES, scratch=1000)
    found = {region.name: (region.dtype, region.shape) for region in plan.regions}
    names = {"batch": 2, "window": 160, "keys": 160, "past": 128, "kept": 128, "rows": 32, "tiles": 4}
    graphs = [manifest.graphs[name] for name in ("denoiser", "vision_encoder", "connector")]
    for spec in (spec for graph in graphs for spec in (*graph.inputs, *graph.outputs)):
        shape = tuple(size if isinstance(size, int) else names[size] for size in spec.shape)
        # A refresh writes the prompt's keys and values to where steps read them.
        assert found[spec.name.replace("present.", PAST)] == (spec.dtype, shape)
    assert found["canvas_embeds"] == ("float32", (2, 32, 32))
    assert found["canvas_positions"] == ("int64", (2, 32))
    assert found["embed_tokens"] == (manifest.tables["embed_tokens"].dtype, manifest.tables["embed_tokens"].shape)
    assert found["scratch"] == ("uint8", (1000,))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    sizes=st.builds(Sizes, st.integers(1, 3), st.integers(1, 300), st.integers(1, 70), st.integers(0, 5)),
    scratch=st.integers(0, 5000),
)
def test_regions_do_not_touch(manifest: Manifest, sizes: Sizes, scratch: int) -> None:
    plan = plan_memory(manifest, sizes, scratch=scratch)
    end = 0
    for region in plan.regions:
        assert region.offset % ALIGNMENT == 0
        assert end <= region.offset < end + ALIGNMENT
        end = region.offset + region.bytes
    assert plan.total == end
    assert len({region.name for region in plan.regions}) == len(plan.regions)
    assert plan.bytes_of("") == sum(region.bytes for region in plan.regions)
    assert ("pixel_values" in {region.name for region in plan.regions}) == (sizes.tiles > 0)


def test_keys_and_values_are_of_the_precision(manifest: Manifest) -> None:
    language = manifest.geometry.language
    values = 2 * language.layers * language.kv_heads * language.head_size * 2 * 128
    assert plan_memory(manifest, SIZES).bytes_of(PAST) == 4 * values
    assert plan_memory(manifest, SIZES, precision="bf16").bytes_of(PAST) == 2 * values
    # A code for each, and a scale for each head of eight.
    integers = manifest.model_copy(update={"prompt_kv": "int8"})
    assert plan_memory(integers, SIZES, precision="bf16").bytes_of(PAST) == values + 4 * values // 8


def test_default_sizes_are_buckets(manifest: Manifest) -> None:
    sizes = default_sizes(manifest)
    check_sizes(manifest, sizes)
    assert sizes.canvas >= min(manifest.generation.gen_length, manifest.buckets.canvas[-1])
    assert (sizes.batch, sizes.tiles) == (1, manifest.buckets.tiles[-1])
    text = manifest.model_copy(update={"geometry": manifest.geometry.model_copy(update={"vision": None})})
    assert default_sizes(text).tiles == 0
    assert math.prod(plan_memory(text, default_sizes(text)).regions[0].shape) > 0


@pytest.mark.parametrize(("prompt", "canvas", "name"), [(1, None, "prompt"), (None, 1, "canvas")])
def test_size_that_is_no_bucket(manifest: Manifest, prompt: int | None, canvas: int | None, name: str) -> None:
    usual = default_sizes(manifest)
    sizes = Sizes(1, prompt or usual.prompt, canvas or usual.canvas, 0)
    with pytest.raises(OptionError, match=f"1 is no {name} bucket of this bundle") as caught:
        check_sizes(manifest, sizes)
    assert str(manifest.buckets.prompt[0]) in caught.value.cure or str(manifest.buckets.canvas[0]) in caught.value.cure
