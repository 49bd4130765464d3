"""What runs in an engine, as its library describes it: which nodes of the graph a layer computes, and on which types.

TensorRT describes an engine that is loaded (`IEngineInspector`). TensorRT-RTX builds where nothing can be loaded, and
keeps the program of an engine in the plan, as text. That text is documented nowhere: it was read in plans of 1.7.1, and
a plan of a version that writes another has no layers here.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
"""In what libraries say of a layer: a node of the graph."""

_INTEGER = re.compile(r"\bu?int[48]\b", re.IGNORECASE)

# Programs of a whole profile; those of single fused layers, of version 4, lie between them.
_PROGRAM = b"header {\n  version = 5\n"
_TENSOR = re.compile(r"^  (?:sub_)?tensor=\{.* name=\"(?P<name>[^\"]+)\".* type=(?P<type>\w+) \}", re.MULTILINE)
_LAYER = re.compile(r"^  \w+=\{ name=\"?(?P<name>[^\s\"]+)\"?(?P<rest>.* layers=\"\[.*)", re.MULTILINE)
_READS = re.compile(r" input(?:_args)?=\{([^}]*)\}")
_WRITES = re.compile(r" output(?:_args)?=\{([^}]*)\}")
_QUOTED = re.compile(r'"([^"]+)"')


@dataclass(frozen=True)
class Layer:
    """What runs as one.

    Attributes:
        name: that the library gave it.
        nodes: of the graph, whose work or a part of it this is.
        integer_weights: whether constants that it reads are integers of 8 or 4 bits; None where the library does not
            say, or it reads none.
        integers: whether anything that it reads or writes is.
        copies: whether the library put it in to change types or layouts.
    """

    name: str
    nodes: frozenset[str]
    integer_weights: bool | None
    integers: bool
    copies: bool = False


def layers_in_plan(plan: Path, profiles: int) -> tuple[Layer, ...]:
    """The layers of all profiles of a plan of TensorRT-RTX; none where it has no such text.

    Args:
        plan: its file.
        profiles: of the engine.
    """
    with plan.open("rb") as file, closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as contents:
        return tuple(layer for program in _programs(contents, profiles) for layer in _layers(program))


def layers_of(trt: Any, engine: Any, context: Any) -> tuple[Layer, ...]:
    """The layers of a loaded engine, in the types that they have for a context's shapes; none where it tells none.

    Args:
        trt: the library's module.
        engine: of the library, built with detailed descriptions.
        context: with all input shapes set.
    """
    inspector = engine.create_engine_inspector()
    inspector.execution_context = context
    try:
        # The characters between names may stand there as they are.
        described = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON), strict=False)
        # Of an engine without detailed descriptions there are the names alone.
        return tuple(_described(layer) for layer in described.get("Layers", ()) if isinstance(layer, dict))
    except (ValueError, KeyError, TypeError, AttributeError):
        # No version promises its fields to the next.
        return ()


def _described(layer: dict[str, Any]) -> Layer:
    # Until TensorRT 10 types and layouts are one text, such as `Row major linear FP16 format`.
    tensors = (*layer.get("Inputs", ()), *layer.get("Outputs", ()))
    types = " ".join(str(tensor.get("Format/Datatype") or tensor.get("Datatype")) for tensor in tensors)
    weights = layer.get("Weights", {}).get("Type")
    return Layer(
        name=layer["Name"],
        nodes=frozenset(NODE.findall(layer.get("Metadata", ""))),
        integer_weights=bool(_INTEGER.search(weights)) if weights else None,
        integers=bool(_INTEGER.search(types)),
        copies=layer.get("LayerType") == "Reformat",
    )


def _programs(contents: mmap.mmap, profiles: int) -> Iterator[str]:
    # They stand before the weights: a plan is not searched to its end for more than there are.
    start = -1
    for _ in range(profiles):
        if (start := contents.find(_PROGRAM, start + 1)) < 0:
            return
        yield contents[start : contents.find(b"\0", start)].decode("utf-8", "replace")


def _layers(program: str) -> Iterator[Layer]:
    types, constants = dict[str, str](), set[str]()
    for tensor in _TENSOR.finditer(program):
        types[tensor["name"]] = tensor["type"]
        if " const_payload_size=" in tensor[0]:
            constants.add(tensor["name"])

    def integers(names: Iterable[str]) -> bool:
        return any(_INTEGER.fullmatch(types.get(name, "")) for name in names)

    for found in _LAYER.finditer(program):
        reads, writes = (
            [name for part in pattern.findall(found["rest"]) for name in _QUOTED.findall(part)]
            for pattern in (_READS, _WRITES)
        )
        weights = constants.intersection(reads)
        yield Layer(
            name=found["name"],
            nodes=frozenset(NODE.findall(found["rest"])),
            integer_weights=integers(weights) if weights else None,
            integers=integers((*reads, *writes)),
        )
