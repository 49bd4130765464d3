"""The records of a bundle's compiled engines.

A plan is the only file of a bundle that is bound to a machine, and it comes after the manifest is
sealed. So each lies in `engines/TARGET/` with a small record of its own beside it, sealed like the
manifest, which says what the plan was built from, by what and for what. A plan without a record
does not count: the record is written last.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from lladav.errors import EngineError, faults_of
from lladav.manifest import FileEntry, Manifest, QuantizedForm, is_sealed, sealed

FOLDER = "engines"
SCHEMA_VERSION: Literal[1] = 1

Library = Literal["tensorrt", "tensorrt_rtx"]
BuiltPrecision = Literal["fp32", "fp16", "bf16", "int8", "int4"]
"""Of engines: the type of matrix products, or of the linear layers' weights where these are integers."""

_WEIGHTS: dict[QuantizedForm, BuiltPrecision] = {"w8": "int8", "w8a8": "int8", "w4": "int4"}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Range(NamedTuple):
    """What one dimension may be, and the size that the engine was tuned for."""

    least: NonNegativeInt
    tuned: NonNegativeInt
    most: NonNegativeInt


class Profile(_Frozen):
    """One optimisation profile.

    Attributes:
        name: of the pass that it serves.
        sizes: by the name of the dimension in the manifest's shapes.
    """

    name: str
    sizes: dict[str, Range]


class Conversion(_Frozen):
    """A layer of an engine that does nothing but round to integers or widen them.

    Attributes:
        node: of the graph, or the layer's name where the library put it in.
        values: that it converts, for one position or crop if it is `per_position`; None where that is not known.
        per_position: whether it converts what passes compute, and not weights.
    """

    node: str
    values: NonNegativeInt | None
    per_position: bool


class IntegerUse(_Frozen):
    """What became of a graph's integers in its engine, as the library describes it.

    Attributes:
        weights: matrices that are in integers in the graph and in the engine.
        widened: those that the engine has in floats, by the node that widens them.
        untold: how many the library does not tell of.
        conversions: which run by themselves.
    """

    weights: NonNegativeInt
    widened: tuple[str, ...]
    untold: NonNegativeInt = 0
    conversions: tuple[Conversion, ...]


class EngineRecord(_Frozen):
    """What one plan is.

    Attributes:
        graph: of the manifest.
        target: name of the target it was built for.
        library_version: only this version of the library loads the plan.
        compute_capability: of the GPUs that it runs on, such as 8.7.
        device: the GPU that it was built and timed on; empty where it was built ahead of time.
        bundle: sha256 of the manifest that the graph belongs to.
        profiles: in the plan's order.
        activations: bytes that the library asks for beside the weights, by profile, as it said
            while building; empty where it did not say.
        integers: what became of the graph's; None where it has none, or the library did not say.
        plan: path relative to the bundle, size and sha256.
        sha256: of the record's own file with this value left empty.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    graph: str
    target: str
    precision: BuiltPrecision
    library: Library
    library_version: str
    compute_capability: str = Field(pattern=r"^\d+\.\d$")
    device: str
    bundle: str
    profiles: tuple[Profile, ...]
    activations: tuple[NonNegativeInt, ...]
    integers: IntegerUse | None = None
    plan: FileEntry
    sha256: str = ""

    def text(self) -> str:
        """The contents of its file."""
        return sealed(self.model_dump(mode="json"))

    @classmethod
    def read(cls, path: Path, bundle: Path) -> EngineRecord:
        """Reads and validates one record.

        Raises:
            EngineError: it is altered, not JSON, or has unknown, missing or impossible values.
        """
        cure = build_command(bundle, path.parent.name)
        try:
            text = path.read_bytes().decode("utf-8")
            raw = json.loads(text)
            if not isinstance(raw, dict) or not is_sealed(text, raw):
                raise ValueError("its contents do not match the sha256 in it")
            record = cls.model_validate(raw)
        except ValidationError as error:
            raise EngineError(
                f"{path} is not a valid record of an engine: {faults_of(error, 'record')}", cure=cure
            ) from error
        except (OSError, ValueError, RecursionError) as error:
            raise EngineError(f"{path} is damaged: {error}", cure=cure) from error
        if record.plan.path != f"{FOLDER}/{path.parent.name}/{path.stem}.plan":
            raise EngineError(f"{path} is the record of {record.plan.path}, not of the plan beside it", cure=cure)
        return record

    def check_size(self, bundle: Path) -> None:
        """Looks whether the plan is there at its full size.

        Raises:
            EngineError: it is missing or truncated.
        """
        file = bundle / self.plan.path
        if not file.is_file() or not file.resolve().is_relative_to(bundle.resolve()):
            raise EngineError(f"{file} is missing, or not in the bundle", cure=build_command(bundle, self.target))
        if (size := file.stat().st_size) != self.plan.bytes:
            raise EngineError(
                f"{file} has {size:,} bytes instead of {self.plan.bytes:,}", cure=build_command(bundle, self.target)
            )

    def check_contents(self, bundle: Path, progress: Callable[[int], None] = lambda _: None) -> None:
        """Compares the plan's sha256.

        Args:
            bundle: the folder.
            progress: called with the bytes read since the last call.

        Raises:
            EngineError: the contents are others than were built.
        """
        if not self.plan.is_unaltered(bundle, progress):
            raise EngineError(
                f"{bundle / self.plan.path}: contents differ from the record's sha256",
                cure=build_command(bundle, self.target),
            )


def read_records(bundle: Path, target: str | None = None) -> tuple[EngineRecord, ...]:
    """The records of all engines of a bundle, or of one target, whose plans are all there.

    Raises:
        EngineError: a record or a plan is damaged.
    """
    files = sorted((bundle / FOLDER).glob(f"{target or '*'}/*.json"))
    records = tuple(EngineRecord.read(path, bundle) for path in files)
    for record in records:
        record.check_size(bundle)
    return records


def engine_precision(manifest: Manifest) -> BuiltPrecision:
    """What engines of a bundle are in."""
    return _WEIGHTS[manifest.quantization.form] if manifest.quantization else manifest.precision


def build_command(bundle: Path, target: str) -> str:
    """What builds a target's engines again."""
    return f"lladav build {bundle} --target {target}"
