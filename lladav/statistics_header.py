"""What statistics of activations are of: the header of their file (docs/calibration.md)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from lladav.geometry import Geometry

SCHEMA_VERSION: Literal[2] = 2


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Condition(_Frozen):
    """Under which circumstances rows of an activation were seen.

    Attributes:
        kind: the pass of the denoiser (`refresh`, `step`), or the crop of the vision encoder and the
            connector (`base`, the whole picture; `crop`, a part of it). `any` where it is not known.
        where: what stands at the row's position of the window; None for crops.
        mask_ratio: masks among the canvas positions at that pass, to the nearest that is counted
            apart; None where there is no canvas, or it is not known.
    """

    kind: Literal["refresh", "step", "base", "crop", "any"]
    where: Literal["image", "text", "canvas", "any"] | None = None
    mask_ratio: float | None = Field(default=None, ge=0, le=1)

    @property
    def label(self) -> str:
        """As a person reads it: `refresh, image, 75% masks`."""
        where = f", {self.where}" if self.where else ""
        return self.kind + where + (f", {self.mask_ratio:.0%} masks" if self.mask_ratio is not None else "")


class GraphRecord(_Frozen):
    """What was observed of one graph.

    Attributes:
        conditions: first dimension of its arrays.
        linears: by name of a linear layer in the checkpoint, the layer under whose name its input
            is kept: the first of those that share it.
    """

    conditions: tuple[Condition, ...]
    linears: dict[str, str]

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the inputs, each once."""
        return tuple(dict.fromkeys(self.linears.values()))


class SourceFile(_Frozen):
    """A picture or a file of inputs that was shown to the model."""

    name: str
    sha256: str


class Asked(_Frozen):
    """The questions of a calibration, and how they were answered.

    Attributes:
        prompts: in the order of use.
        gen_length: positions of the canvas.
        steps: passes per answer.
        refresh_interval: a refresh every this many passes.
    """

    prompts: tuple[str, ...]
    gen_length: PositiveInt
    steps: PositiveInt
    refresh_interval: NonNegativeInt


class CalibrationRun(_Frozen):
    """What the model was shown; equal runs of equal bundles give equal statistics, with the same number of threads.

    Attributes:
        sources: pictures, or files of inputs, in the order of use; none for text alone.
        count: questions, or files of inputs.
        asked: None for files of inputs.
    """

    sources: tuple[SourceFile, ...]
    count: PositiveInt
    asked: Asked | None


class Header(_Frozen):
    """What statistics are of.

    Attributes:
        bundle: sha256 of the manifest whose graphs were run.
        checkpoint: fingerprint of the weights.
        done: questions or files that are in the statistics; less than `run.count` while a
            calibration is under way.
    """

    schema_version: Literal[2] = SCHEMA_VERSION
    lladav: str
    bundle: str
    checkpoint: str
    geometry: Geometry
    run: CalibrationRun
    graphs: dict[str, GraphRecord]
    done: NonNegativeInt

    @property
    def tensors(self) -> tuple[str, ...]:
        """Of all graphs."""
        return tuple(tensor for graph in self.graphs.values() for tensor in graph.tensors)
