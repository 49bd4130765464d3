"""Embeddings of a prompt: table rows for text, merged features for pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lladav.bundle import Bundle
from lladav.errors import BundleError, PromptError
from lladav.manifest import TableSpec
from lladav.runtime.prompt import IMAGE_TOKEN

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

# numpy has no bfloat16: its bits are the upper half of a float32.
_STORED: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
}


class EmbeddingTable:
    """Rows of a bundle's embedding, read from its file only when they are asked for.

    Args:
        file: the raw array.
        spec: its shape `[rows, D]` and type.

    Raises:
        BundleError: the file is missing, or not of the size that `spec` says.
    """

    def __init__(self, file: Path, spec: TableSpec) -> None:
        cure = "copy the bundle again from where it was exported, or export it again"
        if spec.dtype not in _STORED or len(spec.shape) != 2:
            raise BundleError(f"{file} is listed as {spec.dtype} {list(spec.shape)}, which is no embedding", cure=cure)
        dtype = _STORED[spec.dtype]
        self.rows, self.width = spec.shape
        expected = self.rows * self.width * dtype.itemsize
        try:
            size = file.stat().st_size
            if size != expected:
                raise BundleError(f"{file} has {size:,} bytes instead of {expected:,}", cure=cure)
            # Seen as a plain array, which is read by row in a third of the time.
            self._table = np.asarray(np.memmap(file, dtype, "r", shape=(self.rows, self.width)))
        except (OSError, ValueError) as error:
            raise BundleError(f"{file} cannot be mapped: {error}", cure=cure) from error
        self._bfloat16 = spec.dtype == "bfloat16"

    @classmethod
    def of(cls, bundle: Bundle) -> EmbeddingTable:
        """The table of a bundle."""
        spec = bundle.manifest.tables["embed_tokens"]
        return cls(bundle.file(spec.file), spec)

    def gather(self, ids: Sequence[int] | Ids, out: Floats | None = None) -> Floats:
        """Rows of `ids` as float32 `[len(ids), D]`, written to `out` where given.

        Raises:
            PromptError: an id that the table has no row for.
        """
        wanted = np.asarray(ids, np.int64)
        # A negative id is a huge one without a sign.
        outside = wanted.view(np.uint64) >= self.rows
        if outside.any():
            raise PromptError(
                f"token id {wanted[outside][0]} has no embedding; the model has ids 0 to {self.rows - 1}",
                cure="encode the prompt with the tokenizer of this bundle",
            )
        rows = self._table[wanted]
        if out is None:
            if rows.dtype == np.float32:
                return rows
            out = np.empty((len(wanted), self.width), np.float32)
        if self._bfloat16:
            np.left_shift(rows, 16, out=out.view(np.uint32), dtype=np.uint32)
        else:
            out[...] = rows
        return out


def merge_prompt(
    ids: Sequence[int] | Ids, table: EmbeddingTable, images: Sequence[Floats], max_prompt: int
) -> tuple[Floats, Ids]:
    """Puts text and pictures together, as `prepare_inputs_labels_for_multimodal` in `llava/model/llava_arch.py`.

    Args:
        ids: prompt ids with `IMAGE_TOKEN` for each picture.
        table: embeddings of text.
        images: merged features `[n, D]` of each picture, in order. One that is missing at the end
            is replaced by the last one, and those without a place are ignored, as the reference does.
        max_prompt: positions to keep; the end of a longer prompt is cut off, question and all. The
            reference cuts only prompts with pictures.

    Returns:
        Embeddings float32 `[P, D]`, and int64 `[P]` the token id of each position, or
        `IMAGE_TOKEN` for rows of a picture.

    Raises:
        PromptError: an id without an embedding, or two pictures or more too few.
    """
    tokens = np.asarray(ids, np.int64)
    places = np.flatnonzero(tokens == IMAGE_TOKEN)
    if len(places) > len(images) + bool(images):
        raise PromptError(
            f"the prompt has places for {len(places)} pictures, but {len(images)} were given",
            cure="pass one picture for every <image> in the text",
        )
    pictures = [images[min(i, len(images) - 1)] for i in range(len(places))]
    counts = np.ones(len(tokens), np.int64)
    counts[places] = [len(picture) for picture in pictures]
    kinds = np.repeat(tokens, counts)[: max_prompt if images else None]
    embeds = np.empty((len(kinds), table.width), np.float32)
    is_text = kinds != IMAGE_TOKEN
    embeds[is_text] = table.gather(kinds[is_text])
    starts = (np.cumsum(counts) - counts)[places]
    for start, picture in zip(starts, pictures, strict=True):
        room = embeds[start : start + len(picture)]
        room[...] = picture[: len(room)]
    return embeds, kinds
