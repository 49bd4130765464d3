"""The sizes of a LLaDA-V model, read from a checkpoint once and kept in the bundle."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class VisionGeometry(_Frozen):
    """Sizes of the SigLIP2 vision tower, counting only the layers that run.

    Attributes:
        layers: encoder layers in use. The authors' tower drops the last layer of the
            published SigLIP2 and applies no final LayerNorm.
        image_size: side of one crop in pixels.
    """

    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    image_size: PositiveInt
    patch_size: PositiveInt
    layer_norm_eps: PositiveFloat

    @property
    def side(self) -> int:
        """Patches along one side of a crop; pixels that fill no whole patch are unused."""
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        """Feature rows per crop."""
        return self.side * self.side

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.heads

    @model_validator(mode="after")
    def _divisible(self) -> VisionGeometry:
        if self.hidden_size % self.heads:
            raise ValueError(f"vision hidden_size {self.hidden_size} is not a multiple of {self.heads} heads")
        return self


class LanguageGeometry(_Frozen):
    """Sizes of the bidirectional language model (Llama-like, no causal mask)."""

    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    kv_heads: PositiveInt
    head_size: PositiveInt
    vocab_rows: PositiveInt = Field(description="rows of embedding and head that are in use")
    rope_theta: PositiveFloat
    rms_norm_eps: PositiveFloat
    max_positions: PositiveInt

    @model_validator(mode="after")
    def _divisible(self) -> LanguageGeometry:
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} key-value heads evenly")
        if self.head_size % 2:
            raise ValueError(f"rotary embedding needs an even head size, not {self.head_size}")
        return self


class Geometry(_Frozen):
    """The whole model. A text-only LLaDA has no vision tower."""

    language: LanguageGeometry
    vision: VisionGeometry | None
