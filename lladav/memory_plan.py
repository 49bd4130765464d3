"""All GPU memory that answers of one size take beside weights, as one plan.

What a pass reads and writes has an address that never changes, so that passes can be captured;
so everything is laid out at once, from the manifest, before anything is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from lladav.errors import OptionError
from lladav.manifest import COMPUTE_TYPES, Manifest, Precision
from lladav.prompt_kv import PAST, kept_arrays

ALIGNMENT = 256
SLOTS = 32
"""Steps whose records are kept: as many as may run before the host reads them."""
IDS = 1 << 20
"""Ids that the rules and restrictions of one answer may refer to: several vocabularies."""
BYTES: dict[Precision, int] = {"fp32": 4, "fp16": 2, "bf16": 2}
"""Of a value in the compute type."""
_ITEM: dict[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int8": 1, "uint8": 1}


@dataclass(frozen=True)
class Sizes:
    """Of one plan.

    Attributes:
        batch: sequences side by side.
        prompt: positions, a bucket.
        canvas: positions, a bucket.
        tiles: crops per pass of the vision encoder; 0 for text alone.
    """

    batch: int
    prompt: int
    canvas: int
    tiles: int


@dataclass(frozen=True)
class Region:
    """One array.

    Attributes:
        offset: bytes from the start, a multiple of `ALIGNMENT`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * _ITEM[self.dtype]


@dataclass(frozen=True)
class MemoryPlan:
    """Regions that do not overlap, in ascending order."""

    sizes: Sizes
    regions: tuple[Region, ...]

    @property
    def total(self) -> int:
        """Bytes from the start of the first region to the end of the last."""
        return self.regions[-1].offset + self.regions[-1].bytes

    def bytes_of(self, prefix: str) -> int:
        """Bytes of all regions whose names begin so."""
        return sum(region.bytes for region in self.regions if region.name.startswith(prefix))

    def to_json(self) -> dict[str, Any]:
        """The object that `lladav inspect --json` prints."""
        regions = [asdict(region) | {"bytes": region.bytes} for region in self.regions]
        return {**asdict(self.sizes), "total": self.total, "regions": regions}


def default_sizes(manifest: Manifest) -> Sizes:
    """One question: the middle bucket of prompts, the canvas of a default answer, the most crops at once."""
    return Sizes(
        batch=1,
        prompt=manifest.buckets.prompt[len(manifest.buckets.prompt) // 2],
        canvas=default_canvas(manifest),
        tiles=most_tiles(manifest),
    )


def default_canvas(manifest: Manifest) -> int:
    """The canvas bucket that holds an answer of the default length, or the largest."""
    wanted, buckets = manifest.generation.gen_length, manifest.buckets.canvas
    return next((size for size in buckets if size >= wanted), buckets[-1])


def most_tiles(manifest: Manifest) -> int:
    """Crops that one pass of the vision encoder takes; 0 for text alone."""
    return manifest.buckets.tiles[-1] if manifest.geometry.vision is not None else 0


def check_sizes(manifest: Manifest, sizes: Sizes) -> None:
    """Compares sizes with the buckets.

    Raises:
        OptionError: one is no bucket of the bundle, or there is no sequence.
    """
    if sizes.batch < 1:
        raise OptionError(f"a batch of {sizes.batch} holds nothing", cure="pass 1 or more")
    for name, size, buckets in (
        ("prompt", sizes.prompt, manifest.buckets.prompt),
        ("canvas", sizes.canvas, manifest.buckets.canvas),
    ):
        if size not in buckets:
            raise OptionError(
                f"{size} is no {name} bucket of this bundle", cure=f"choose of {', '.join(map(str, buckets))}"
            )


def plan_memory(
    manifest: Manifest,
    sizes: Sizes,
    *,
    precision: Precision | None = None,
    scratch: int = 0,
) -> MemoryPlan:
    """Lays out all memory that passes of one size and the loop over them take.

    The prompt's keys and values are where a refresh writes them and steps read them. The canvas has
    embeddings of its own, because in a window it is not in one piece where there are several sequences.

    Args:
        manifest: of the bundle.
        sizes: of the windows.
        precision: of keys and values that are no integers, if another than the bundle's.
        scratch: bytes of activations, shared by passes that never run at the same time.
    """
    language, vision = manifest.geometry.language, manifest.geometry.vision
    floats = COMPUTE_TYPES[precision or manifest.precision]
    b, p, c, t = sizes.batch, sizes.prompt, sizes.canvas, sizes.tiles
    d, window = language.hidden_size, p + c

    def arrays() -> Iterator[tuple[str, str, tuple[int, ...]]]:
        table = manifest.tables["embed_tokens"]
        yield "embed_tokens", table.dtype, table.shape
        for kept in kept_arrays(language, floats, manifest.prompt_kv):
            yield f"{PAST}{kept.name}", kept.dtype, (b, kept.heads, p, kept.width)
        yield "inputs_embeds", "float32", (b, window, d)
        yield "canvas_embeds", "float32", (b, c, d)
        yield "position_ids", "int64", (b, window)
        yield "canvas_positions", "int64", (b, c)
        yield "attention_bias", "float32", (b, 1, 1, window)
        yield "kept", "int64", (p,)
        yield "rows", "int64", (c,)
        yield "canvas_rows", "int64", (c,)
        yield "logits", "float32", (b, c, language.vocab_rows)
        if vision is not None and t:
            yield "pixel_values", "float32", (t, 3, vision.image_size, vision.image_size)
            yield "vision_features", "float32", (t, vision.tokens, vision.hidden_size)
            yield "image_features", "float32", (t, vision.tokens, d)
        for name, size in _loop(c, b).items():
            yield name, "uint8", (size,)
        yield "scratch", "uint8", (scratch,)

    regions, end = [], 0
    for name, dtype, shape in arrays():
        regions.append(Region(name, dtype, shape, end))
        end += -(-regions[-1].bytes // ALIGNMENT) * ALIGNMENT
    return MemoryPlan(sizes, tuple(regions))


def _loop(capacity: int, sequences: int) -> dict[str, int]:
    """Bytes of the records that the loop's kernels keep, by name; `runtime/gpu/loop_state.py` has their fields."""
    state, decision, rows = 64, 16, 33 * capacity
    return {
        "rules": 80,
        "canvases": sequences * (state + -(-rows // 16) * 16),
        "whole": 4,
        "log": SLOTS * sequences * (state + 2 * capacity * decision),
        "ids": 4 * IDS,
        "restrictions": sequences * capacity * 12,
    }
