"""What engines are built for: facts about a board or a GPU, one file each in `targets/`."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError, model_validator

from lladav.errors import EngineError, OptionError, faults_of
from lladav.records import Library

_FOLDER = Path(__file__).resolve().parent / "targets"

EnginePrecision = Literal["fp16", "bf16", "int8", "int4", "fp8", "fp4"]

# The first compute capability whose matrix units take the type.
_FIRST_WITH: dict[EnginePrecision, tuple[int, int]] = {"bf16": (8, 0), "fp8": (8, 9), "fp4": (10, 0)}
_WITHOUT_SOURCE = frozenset({"name", "title", "sources"})


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Versions(_Frozen):
    """Versions of the library that run on a target: from `least` on, and before `below`."""

    least: str = Field(pattern=r"^\d+(\.\d+)*$")
    below: str = Field(pattern=r"^\d+(\.\d+)*$")

    def __contains__(self, version: str) -> bool:
        return version_key(self.least) <= version_key(version) < version_key(self.below)


class Target(_Frozen):
    """A board, or the card of a series that its numbers are those of.

    Attributes:
        title: what it is called.
        library: what builds and runs its engines.
        compute_capability: such as 8.7.
        memory_gb: 10^9 bytes that a process sees, where that is known; else the nominal size.
        unified_memory: whether CPU and GPU share it.
        bandwidth_gb_s: of the memory, 10^9 bytes a second.
        fp16_tflops: of the matrix units, dense, with float32 accumulation; bf16 runs as fast.
        int8_tops: of the matrix units, dense.
        precisions: what its matrix units and its library take.
        splits_head: whether builders on it failed at a head of the size of LLaDA's in one product.
        sources: where each of the other values comes from.
    """

    name: str
    title: str
    library: Library
    versions: Versions
    compute_capability: str = Field(pattern=r"^\d+\.\d$")
    memory_gb: PositiveFloat
    unified_memory: bool
    bandwidth_gb_s: PositiveFloat
    fp16_tflops: PositiveFloat
    int8_tops: PositiveFloat
    precisions: tuple[EnginePrecision, ...]
    splits_head: bool
    sources: dict[str, str]

    @model_validator(mode="after")
    def _consistent(self) -> Target:
        for precision in self.precisions:
            first = _FIRST_WITH.get(precision, (0, 0))
            if version_key(self.compute_capability) < first:
                raise ValueError(f"{precision} needs compute capability {first[0]}.{first[1]}")
        expected = set(type(self).model_fields) - _WITHOUT_SOURCE
        if self.sources.keys() != expected:
            raise ValueError(f"sources are needed for exactly {', '.join(sorted(expected))}")
        return self

    @classmethod
    def read(cls, path: Path) -> Target:
        """Reads and validates a file of `targets/`.

        Raises:
            EngineError: it is not JSON, or has unknown, missing or impossible values.
        """
        cure = "correct the file, or install lladav again"
        try:
            target = cls.model_validate(json.loads(path.read_text("utf-8")))
        except ValidationError as error:
            raise EngineError(f"{path} is no valid target: {faults_of(error, 'target')}", cure=cure) from error
        except (OSError, ValueError, RecursionError) as error:
            raise EngineError(f"{path} cannot be read as JSON: {error}", cure=cure) from error
        if target.name != path.stem:
            raise EngineError(f"{path} describes a target of another name, {target.name}", cure=cure)
        return target


def version_key(version: str) -> tuple[int, ...]:
    """Numbers of a version, for comparing: `10.3.0` is (10, 3, 0)."""
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def target_names() -> tuple[str, ...]:
    """All targets."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.json")))


@cache
def load_target(name: str) -> Target:
    """The target of that name.

    Raises:
        OptionError: there is none.
    """
    if name not in target_names():
        raise OptionError(f"there is no target {name!r}", cure=f"choose one of {', '.join(target_names())}")
    return Target.read(_FOLDER / f"{name}.json")
