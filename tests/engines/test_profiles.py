"""The shapes that engines are built for are those that the runtime asks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lladav.engines.profiles import graph_profiles, input_shapes
from lladav.manifest import Manifest, Precision
from lladav.records import Profile


def test_denoiser_has_a_profile_per_pass(bundle_in: Callable[[Precision], Path]) -> None:
    manifest = Manifest.read(bundle_in("fp16"))
    profiles = graph_profiles(manifest)
    assert list(profiles) == ["denoiser", "vision_encoder", "connector"]
    refresh, step = profiles["denoiser"]
    shapes = {spec.name: spec for spec in manifest.graphs["denoiser"].inputs}

    def of(name: str, profile: Profile) -> tuple[tuple[int, ...], ...]:
        return input_shapes(shapes[name], profile)

    # Prompts of 64 and 128, canvases of 8 and 32, answers of 128 tokens by default.
    assert of("inputs_embeds", refresh) == ((1, 72, 32), (1, 160, 32), (2, 160, 32))
    assert of("inputs_embeds", step) == ((1, 8, 32), (1, 32, 32), (2, 32, 32))
    assert of("past_key_values.1.value", refresh) == ((1, 2, 0, 16), (1, 2, 0, 16), (2, 2, 0, 16))
    assert of("past_key_values.1.value", step) == ((1, 2, 64, 16), (1, 2, 128, 16), (2, 2, 128, 16))
    for profile in (refresh, step):
        assert of("attention_bias", profile) == ((1, 1, 1, 72), (1, 1, 1, 160), (2, 1, 1, 160))
        assert of("rows", profile) == ((1,), (32,), (32,))
    assert of("kept", refresh) == ((64,), (128,), (128,))
    assert of("kept", step) == ((0,), (0,), (0,))


def test_tower_and_connector_have_one(bundle_in: Callable[[Precision], Path]) -> None:
    manifest = Manifest.read(bundle_in("fp16"))
    (tiles,) = graph_profiles(manifest)["vision_encoder"]
    (pixels,) = manifest.graphs["vision_encoder"].inputs
    assert input_shapes(pixels, tiles) == ((1, 3, 56, 56), (4, 3, 56, 56), (4, 3, 56, 56))


def test_every_named_dimension_has_a_size(bundle_in: Callable[[Precision], Path]) -> None:
    manifest = Manifest.read(bundle_in("fp16"))
    for name, profiles in graph_profiles(manifest).items():
        for spec in manifest.graphs[name].inputs:
            for profile in profiles:
                for least, tuned, most in zip(*input_shapes(spec, profile), strict=True):
                    assert 0 <= least <= tuned <= most
