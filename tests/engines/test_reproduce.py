"""The lines for NVIDIA's own tools say what `lladav build` does."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import pytest

from lladav.bundle import Bundle
from lladav.engines import load_target
from lladav.engines.profiles import graph_profiles, input_shapes
from lladav.engines.reproduce import reproduce
from lladav.manifest import Precision

KINDS = ("min", "opt", "max")


@pytest.fixture(scope="module")
def bundle(bundle_in: Callable[[Precision], Path]) -> Bundle:
    return Bundle.open(bundle_in("fp16"))


def lines(bundle: Bundle, target: str) -> dict[str, list[str]]:
    return {line.purpose: shlex.split(line.command) for line in reproduce(bundle, load_target(target))}


def expected(bundle: Bundle, graph: str) -> list[dict[str, list[tuple[int, ...]]]]:
    """Shapes by input, per profile."""
    inputs = bundle.manifest.graphs[graph].inputs
    return [
        {tensor.name: list(input_shapes(tensor, profile)) for tensor in inputs}
        for profile in graph_profiles(bundle.manifest)[graph]
    ]


def test_polygraphy_is_given_every_input_of_every_profile(bundle: Bundle) -> None:
    for graph in graph_profiles(bundle.manifest):
        words = lines(bundle, "orin-agx-64")[f"polygraphy builds {graph}"]
        assert words[:3] == ["polygraphy", "convert", str(bundle.path / f"{graph}.onnx")]
        assert "--strongly-typed" in words
        start = words.index("--trt-min-shapes")
        groups = [list(group) for _, group in groupby(words[start:], lambda word: word.startswith("--trt-"))]
        found = []
        for number, kind in enumerate(KINDS * (len(groups) // 6)):
            assert groups[2 * number] == [f"--trt-{kind}-shapes"]
            shapes = (word.partition(":") for word in groups[2 * number + 1])
            found.append({name: tuple(map(int, text[1:-1].split(","))) for name, _, text in shapes})
        for number, profile in enumerate(expected(bundle, graph)):
            for kind in range(len(KINDS)):
                assert found[3 * number + kind] == {name: shapes[kind] for name, shapes in profile.items()}


def test_trtexec_is_given_the_same(bundle: Bundle) -> None:
    found = lines(bundle, "thor")
    profiles = expected(bundle, "denoiser")
    words = found["trtexec builds denoiser"]
    assert "--stronglyTyped" in words
    for number, profile in enumerate(profiles):
        own = words[words.index(f"--profile={number}") + 1 :][: len(KINDS)]
        for kind, name in enumerate(KINDS):
            option, _, text = own[kind].partition("=")
            shapes = (word.partition(":") for word in text.split(","))
            assert option == f"--{name}Shapes"
            assert {input_: tuple(map(int, shape.split("x"))) for input_, _, shape in shapes} == {
                input_: sizes[kind] for input_, sizes in profile.items()
            }
    running = found["trtexec runs step of denoiser"]
    assert running[:3] == ["trtexec", f"--loadEngine={bundle.path}/engines/thor/denoiser.plan", "--useProfile=1"]


def test_rtx_is_polygraphys_alone(bundle: Bundle) -> None:
    found = lines(bundle, "rtx-40")
    assert not any(purpose.startswith("trtexec") for purpose in found)
    for words in found.values():
        assert words[0] == "POLYGRAPHY_USE_TENSORRT_RTX=1"
    words = found["polygraphy builds connector"]
    assert words[words.index("--compute-capabilities") + 1] == "8.9"
