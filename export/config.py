"""What can be chosen about an export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator

from lladav.manifest import Precision, PromptKV, QuantizedForm

# Four times LLaDA's positions; no machine lays out memory for more.
_Bucket = Annotated[int, Field(gt=0, le=1 << 16)]


class ExportConfig(BaseModel):
    """Options of `lladav export`, kept in the bundle as `export.json`.

    Attributes:
        dtype: type of the weights and of matrix products; None is fp32 for a float32 checkpoint
            and fp16 for the others, so that the bundle is as large as the checkpoint.
        tile_buckets: crops per pass of the vision encoder; 1 is always among them, so that any
            number of crops is a sum of buckets and none is padded.
        prompt_buckets: prompt lengths; those beyond the model's positions become their number.
        canvas_buckets: answer lengths, suffix included.
        vocab_rows: `tokenizer` cuts embedding and head to the tokenizer's length as the authors'
            loader does; `all` keeps every row.
        quantize: integers for the linear layers, see `Quantization`; None leaves them in `dtype`.
        statistics: file of `lladav calibrate` that says how large the inputs of layers are: `w8a8` needs it,
            and `w8` and `w4` are more exact with it.
        keep_layers: linear layers that are no integers all the same, by name in the checkpoint; `*` stands
            for anything.
        quantize_head: 8-bit weights for the head too, where `quantize` is given.
        widen_on_cpu: ONNX Runtime on the CPU shall make 8-bit weights of those of `w4`: faster, in more memory.
        prompt_kv: integers in which a refresh hands the prompt's keys and values to steps: half the memory of
            fp16. None leaves them in `dtype`.
        head_parts: into how many products along the vocabulary the head is split; None is as many as make each
            easily built on every target, and with `quantize_head` small enough for a CPU's caches as well.
        verify: compare the graphs with PyTorch before the bundle appears.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: Precision | None = None
    tile_buckets: tuple[_Bucket, ...] = (1, 2, 4, 8)
    prompt_buckets: tuple[_Bucket, ...] = (
        *(64, 128, 256, 512, 768, 1024, 1280, 1664, 2048, 2560, 3072, 3584, 3968, 4480, 6144, 8192),
    )
    canvas_buckets: tuple[_Bucket, ...] = (2, 8, 16, 32, 64, 96, 128, 256, 512)
    vocab_rows: Literal["tokenizer", "all"] = "tokenizer"
    quantize: QuantizedForm | None = None
    statistics: Path | None = None
    keep_layers: tuple[str, ...] = ()
    quantize_head: bool = False
    widen_on_cpu: bool = False
    prompt_kv: PromptKV | None = None
    head_parts: PositiveInt | None = None
    verify: bool = True

    @field_validator("tile_buckets", "prompt_buckets", "canvas_buckets")
    @classmethod
    def _ascending(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if not sizes:
            raise ValueError("at least one size is needed")
        return tuple(sorted(set(sizes)))

    @field_validator("tile_buckets")
    @classmethod
    def _with_one(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        return sizes if sizes[0] == 1 else (1, *sizes)

    @model_validator(mode="after")
    def _integers(self) -> ExportConfig:
        if self.quantize == "w8a8" and self.statistics is None:
            raise ValueError("w8a8 needs statistics, which `lladav calibrate` records")
        if self.statistics is not None and self.quantize is None:
            raise ValueError("statistics without quantize mean nothing: all layers are kept")
        if self.keep_layers and self.quantize is None:
            raise ValueError("keep_layers without quantize means nothing: all layers are kept")
        if self.quantize_head and self.quantize is None:
            raise ValueError("quantize_head without quantize means nothing: name a form")
        if self.widen_on_cpu and self.quantize != "w4":
            raise ValueError("only w4 has weights that widen_on_cpu makes 8 bits of")
        if self.widen_on_cpu and self.dtype == "bf16":
            raise ValueError("bf16 has no graph for the CPU whose weights widen_on_cpu could make 8 bits of")
        return self
