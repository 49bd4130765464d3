"""The manifest: the one description of a bundle that every stage reads.

It is validated strictly: unknown keys are refused, so that a typing error or a newer
bundle never passes unnoticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from math import gcd
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from lladav.errors import BundleError, faults_of
from lladav.geometry import Geometry

SCHEMA_VERSION: Literal[1] = 1
MANIFEST_NAME = "manifest.json"
# The reference takes a position for masked when its embedding is this close to the mask's in every
# component (`modeling_llada.py`).
MASK_DISTANCE = 1e-5
# Input features that share a scale in a 4-bit weight: what engine builders have kernels for.
INT4_BLOCK = 128
# Where no larger block divides a layer's inputs evenly, its weights get 8 bits.
_SMALLEST_BLOCK = 32
# What names of layers in the checkpoint begin with.
LANGUAGE_LAYERS = "model.layers."
TOWER = "model.vision_tower.vision_tower.vision_model"
CONNECTOR = "model.mm_projector"
HEAD = "lm_head"
# The denoiser's graph that ONNX Runtime runs on the CPU.
CPU_DENOISER = "denoiser_cpu"
_OPEN_SEAL = '"sha256": ""'

Precision = Literal["fp32", "fp16", "bf16"]
QuantizedForm = Literal["w8", "w4", "w8a8"]
RoundingName = Literal["nearest", "gptq"]
TensorType = Literal["float32", "float16", "bfloat16", "int64", "int8"]
PromptKV = Literal["int8"]

COMPUTE_TYPES: dict[Precision, TensorType] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""Type of matrix products, and of weights that are no integers."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorSpec(_Frozen):
    """One graph input or output; a string in `shape` names a dimension that a bucket fixes."""

    name: str
    dtype: TensorType
    shape: tuple[int | str, ...]


class GraphSpec(_Frozen):
    """One ONNX graph and the file that holds its weights."""

    file: str
    weights: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Quantization(_Frozen):
    """In which integers the linear layers are; embeddings, norms and softmax never are.

    Attributes:
        form: `w8` is int8 weights with a scale per output feature, `w4` int4 weights with a scale per
            block of inputs, `w8a8` int8 weights and inputs. The vision tower and the connector are
            in `w8` with each of them, and so are layers whose inputs are no multiple of a block.
        block: input features that share a scale, where form is `w4`.
        rounding: how 4-bit integers were chosen; all others are the nearest.
        kept: linear layers, by name in the checkpoint, that stay in the bundle's `precision`.
        head: whether the head's weights are int8 too, with each `form`.
        widened: whether ONNX Runtime on the CPU makes 8-bit weights of 4-bit ones when it loads them.
    """

    form: QuantizedForm
    block: PositiveInt | None = None
    rounding: RoundingName = "nearest"
    kept: tuple[str, ...] = ()
    head: bool = False
    widened: bool = False

    def integers(self, layer: str, inputs: int) -> Integers | None:
        """What a linear layer's weights are; None where they are no integers.

        Args:
            layer: its name in the checkpoint.
            inputs: features.
        """
        if layer in self.kept or (layer == HEAD and not self.head):
            return None
        block = gcd(inputs, self.block or 1)
        four = self.form == "w4" and layer.startswith(LANGUAGE_LAYERS) and block >= _SMALLEST_BLOCK
        return Integers(4, block) if four else Integers(8)


class Integers(NamedTuple):
    """Weights of a linear layer: their bits, and the inputs that share a scale; None for all of them."""

    bits: Literal[4, 8]
    block: int | None = None


class TableSpec(_Frozen):
    """A raw little-endian C-order array that the runtime maps into memory."""

    file: str
    dtype: TensorType
    shape: tuple[int, ...]


class Buckets(_Frozen):
    """The sizes that shapes may take, ascending.

    Attributes:
        tiles: crops per pass of the vision encoder.
        prompt: prompt positions (text and image) in the denoiser's window.
        canvas: answer and suffix positions in the denoiser's window, and rows of logits.
    """

    tiles: tuple[PositiveInt, ...]
    prompt: tuple[PositiveInt, ...]
    canvas: tuple[PositiveInt, ...]


class Preprocessing(_Frozen):
    """The anyres rule of the authors, and how they pool video.

    Attributes:
        grid_pinpoints: candidate canvases (width, height) in pixels, multiples of the crop.
        max_tiles: N of `anyres_max_N`; larger feature maps are interpolated down to it.
            None leaves them as they are (`anyres`).
        video_pool_stride: side of the square of features that one video token stands for.
    """

    crop_size: PositiveInt
    grid_pinpoints: tuple[tuple[PositiveInt, PositiveInt], ...]
    max_tiles: PositiveInt | None
    mean: float = 0.5
    std: float = 0.5
    video_pool_stride: PositiveInt = 2
    video_pool_mode: Literal["bilinear", "average"] = "bilinear"
    video_newline: Literal["grid", "frame", "one_token", "no_token"] = "grid"


class SpecialTokens(_Frozen):
    """Ids with a role, looked up in the checkpoint's tokenizer.

    Attributes:
        mask_aliases: ids whose embedding lies within 1e-5 of the mask embedding in every
            component, the mask itself included: the reference takes all of them for masks.
        suppressed: ids that are never predicted.
    """

    bos: NonNegativeInt
    eos: NonNegativeInt
    mask: NonNegativeInt
    start_header: NonNegativeInt
    end_header: NonNegativeInt
    end_of_turn: NonNegativeInt
    suppressed: tuple[NonNegativeInt, ...]
    mask_aliases: tuple[NonNegativeInt, ...]


class GenerationDefaults(_Frozen):
    """What `run` uses for options that are not given."""

    gen_length: PositiveInt = 128
    stop: tuple[str, ...] = ("<|eot_id|>",)
    system_prompt: str


class CheckpointIdentity(_Frozen):
    """Where the weights came from: `fingerprint` is a sha256 over names, shapes and values."""

    fingerprint: str
    dtype: str
    model_type: str


class FileEntry(_Frozen):
    """One file of the bundle; `path` is relative and uses forward slashes."""

    path: str = Field(pattern=r"^[\w.-]+(/[\w.-]+)*$")
    bytes: NonNegativeInt
    sha256: str

    def is_unaltered(self, folder: Path, progress: Callable[[int], None]) -> bool:
        """Whether the file still has the contents of this sha256; reads all of it.

        Args:
            folder: the bundle's.
            progress: called with the bytes read since the last call.
        """
        digest = hashlib.sha256()
        with (folder / self.path).open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
                progress(len(block))
        return digest.hexdigest() == self.sha256


class Manifest(_Frozen):
    """See docs/bundle.md for the meaning of each part.

    Attributes:
        precision: type of matrix products, and of the weights that are not integers.
        head_parts: into how many products along the vocabulary the head is split.
        prompt_kv: integers in which a refresh hands the prompt's keys and values to steps; None leaves them
            in the type of matrix products.
        sha256: of the manifest's own file with this value left empty, so that no byte of a
            bundle goes unchecked.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    precision: Precision
    quantization: Quantization | None = None
    head_parts: PositiveInt = 1
    prompt_kv: PromptKV | None = None
    geometry: Geometry
    graphs: dict[str, GraphSpec]
    tables: dict[str, TableSpec]
    buckets: Buckets
    preprocessing: Preprocessing | None
    tokens: SpecialTokens
    max_prompt: PositiveInt = Field(description="a prompt with pictures is cut off here, as the authors do")
    generation: GenerationDefaults
    checkpoint: CheckpointIdentity
    versions: dict[str, str]
    files: tuple[FileEntry, ...]
    sha256: str = ""

    @property
    def numbers(self) -> str:
        """What is in which numbers, such as `fp16, linear layers in w8, prompt KV in int8`."""
        linears = f", linear layers in {self.quantization.form}" if self.quantization else ""
        linears += " by GPTQ" if self.quantization and self.quantization.rounding == "gptq" else ""
        linears += ", head in int8" if self.quantization and self.quantization.head else ""
        return self.precision + linears + (f", prompt KV in {self.prompt_kv}" if self.prompt_kv else "")

    def write(self, folder: Path) -> None:
        (folder / MANIFEST_NAME).write_text(sealed(self.model_dump(mode="json")), "utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Reads and validates `folder/manifest.json`.

        Raises:
            BundleError: it is missing, altered, not JSON, of another schema version, or has
                unknown, missing or impossible values.
        """
        path = folder / MANIFEST_NAME
        again = "export the checkpoint again with `lladav export CHECKPOINT BUNDLE`"
        if not folder.is_dir():
            raise BundleError(f"{folder} is not a folder, so it is no bundle", cure="pass the folder that export wrote")
        if not path.is_file():
            raise BundleError(
                f"{folder} holds no {MANIFEST_NAME}: it is no bundle, or its export never finished", cure=again
            )
        try:
            text = path.read_bytes().decode("utf-8")
            raw = json.loads(text)
        except (OSError, ValueError, RecursionError) as error:
            raise BundleError(f"{path} cannot be read as JSON: {error}", cure=again) from error
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise BundleError(
                f"{path} has schema version {version}; this lladav reads up to {SCHEMA_VERSION}",
                cure="upgrade with `pip install -U lladav`, or export again with this version",
            )
        if isinstance(raw, dict) and not is_sealed(text, raw):
            raise BundleError(
                f"{path} was altered: its contents do not match the sha256 in it",
                cure="copy the bundle again from where it was exported, or export it again",
            )
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise BundleError(f"{path} is not a valid manifest: {faults_of(error, 'manifest')}", cure=again) from error


def sealed(values: dict[str, Any]) -> str:
    """Text of a manifest with these values and its own sha256."""
    text = json.dumps({**values, "sha256": ""}, indent=2, ensure_ascii=False) + "\n"
    head, _, tail = text.rpartition(_OPEN_SEAL)
    return f'{head}"sha256": "{hashlib.sha256(text.encode()).hexdigest()}"{tail}'


def is_sealed(text: str, values: dict[str, Any]) -> bool:
    """Whether `text`, which was read as `values`, is as `sealed` wrote it."""
    seal = values.get("sha256")
    head, mark, tail = text.rpartition(f'"sha256": "{seal}"')
    return bool(mark) and hashlib.sha256(f"{head}{_OPEN_SEAL}{tail}".encode()).hexdigest() == seal
