"""The prompt's keys and values, as passes hand them on: a refresh writes them, and the steps behind it read them.

As int8 they are codes with a scale for every position and head, its largest magnitude over 127, which
the refresh finds itself. So no position and no sequence decides how another one is rounded, padding
included, and no calibration is needed (docs/quantization.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from lladav.geometry import LanguageGeometry
from lladav.manifest import PromptKV, TensorType

PAST, PRESENT = "past_key_values.", "present."
"""What the names of the arrays begin with, as inputs and as outputs of the denoiser."""

_SCALE_BYTES = 4


class KeptArray(NamedTuple):
    """One array `[B, heads, positions, width]`; `name` is `3.key`, say, or `3.key_scale`."""

    name: str
    dtype: TensorType
    heads: int
    width: int


def kept_arrays(g: LanguageGeometry, floats: TensorType, prompt_kv: PromptKV | None) -> Iterator[KeptArray]:
    """The arrays of all layers, in the order of the denoiser's inputs and outputs.

    Args:
        g: sizes.
        floats: type of keys and values that are no integers.
        prompt_kv: integers that they are in; None for none.
    """
    for layer in range(g.layers):
        for part in ("key", "value"):
            yield KeptArray(f"{layer}.{part}", prompt_kv or floats, g.kv_heads, g.head_size)
            if prompt_kv is not None:
                yield KeptArray(f"{layer}.{part}_scale", "float32", g.kv_heads, 1)


def position_bytes(g: LanguageGeometry, width: int, prompt_kv: PromptKV | None) -> int:
    """Bytes of one position's keys and values over all layers.

    Args:
        g: sizes.
        width: bytes of a key or value that is no integer.
        prompt_kv: integers that they are in; None for none.
    """
    vector = g.head_size * width if prompt_kv is None else g.head_size + _SCALE_BYTES
    return 2 * g.layers * g.kv_heads * vector
