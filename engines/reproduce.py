"""The command lines with which NVIDIA's own tools build and run what `lladav build` builds.

Whoever suspects lladav can leave it out: trtexec comes with TensorRT, and Polygraphy is on the package index. Both read
the graphs and the plans of a bundle as they are.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from typing import NamedTuple

from lladav.bundle import Bundle
from lladav.engines.profiles import graph_profiles, input_shapes
from lladav.engines.target import Target
from lladav.manifest import GraphSpec
from lladav.records import FOLDER, Profile

_KINDS = ("min", "opt", "max")
_TUNED = _KINDS.index("opt")
_RTX = "POLYGRAPHY_USE_TENSORRT_RTX=1"


class Line(NamedTuple):
    """One command, and what it does."""

    purpose: str
    command: str


def reproduce(bundle: Bundle, target: Target) -> Iterator[Line]:
    """For every graph the lines that build it for a target, and those that load what `lladav build` made of it.

    trtexec is TensorRT's; for TensorRT-RTX there are Polygraphy's lines alone.
    """
    for name, profiles in graph_profiles(bundle.manifest).items():
        spec = bundle.manifest.graphs[name]
        graph, plan = str(bundle.file(spec.file)), str(bundle.path / FOLDER / target.name / f"{name}.plan")
        yield Line(f"polygraphy builds {name}", _polygraphy_builds(target, graph, name, spec, profiles))
        yield Line(f"polygraphy loads {name}", _polygraphy(target, "inspect", "model", plan, "--model-type", "engine"))
        if target.library == "tensorrt":
            shapes = _each(profiles, spec, _trtexec_shapes)
            building = (f"--onnx={graph}", f"--saveEngine={name}.plan", "--stronglyTyped", "--skipInference")
            yield Line(f"trtexec builds {name}", shlex.join(["trtexec", *building, *shapes]))
            for number, profile in enumerate(profiles):
                tuned = f"--shapes={_trtexec_shape(spec, profile, _TUNED)}"
                running = (f"--loadEngine={plan}", f"--useProfile={number}", tuned)
                yield Line(f"trtexec runs {profile.name} of {name}", shlex.join(["trtexec", *running]))


def _polygraphy_builds(target: Target, graph: str, name: str, spec: GraphSpec, profiles: tuple[Profile, ...]) -> str:
    ahead = ("--compute-capabilities", target.compute_capability) if target.library == "tensorrt_rtx" else ()
    words = ("convert", graph, "--convert-to", "trt", "-o", f"{name}.plan", "--strongly-typed", *ahead)
    return _polygraphy(target, *words, *_each(profiles, spec, _polygraphy_shapes))


def _polygraphy(target: Target, *words: str) -> str:
    line = shlex.join(("polygraphy", *words))
    return f"{_RTX} {line}" if target.library == "tensorrt_rtx" else line


def _each(
    profiles: tuple[Profile, ...], spec: GraphSpec, write: Callable[[GraphSpec, Profile, int], list[str]]
) -> list[str]:
    return [word for number, profile in enumerate(profiles) for word in write(spec, profile, number)]


def _polygraphy_shapes(spec: GraphSpec, profile: Profile, _: int) -> list[str]:
    words = []
    for kind, name in enumerate(_KINDS):
        words.append(f"--trt-{name}-shapes")
        for tensor in spec.inputs:
            shape = ",".join(map(str, input_shapes(tensor, profile)[kind]))
            words.append(f"{tensor.name}:[{shape}]")
    return words


def _trtexec_shapes(spec: GraphSpec, profile: Profile, number: int) -> list[str]:
    shapes = [f"--{name}Shapes={_trtexec_shape(spec, profile, kind)}" for kind, name in enumerate(_KINDS)]
    return [f"--profile={number}", *shapes]


def _trtexec_shape(spec: GraphSpec, profile: Profile, kind: int) -> str:
    shapes = ((tensor.name, input_shapes(tensor, profile)[kind]) for tensor in spec.inputs)
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes)
