"""Embedding rows of every type, and the prompt that text and pictures make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lladav.errors import BundleError, PromptError
from lladav.manifest import TableSpec
from lladav.runtime.embedding import EmbeddingTable, merge_prompt
from lladav.runtime.prompt import IMAGE_TOKEN

Tables = dict[str, tuple[EmbeddingTable, np.ndarray]]


def bfloat16_bits(values: np.ndarray) -> np.ndarray:
    return (values.view(np.uint32) >> 16).astype(np.uint16)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """A table of 50 rows and 6 columns in every type, and the values that each stands for."""
    folder = tmp_path_factory.mktemp("tables")
    values = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)
    stored = {"float32": values, "float16": values.astype(np.float16), "bfloat16": bfloat16_bits(values)}
    meant = {
        "float32": values,
        "float16": stored["float16"].astype(np.float32),
        "bfloat16": (stored["bfloat16"].astype(np.uint32) << 16).view(np.float32),
    }
    made = {}
    for dtype, array in stored.items():
        array.tofile(folder / dtype)
        made[dtype] = EmbeddingTable(folder / dtype, TableSpec(file=dtype, dtype=dtype, shape=(50, 6))), meant[dtype]
    return made


# ------------------------------------------------------------------------------------------ table


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rows_of_every_type_come_out_as_float32(tables: Tables, dtype: Any) -> None:
    table, values = tables[dtype]
    ids = [3, 49, 0, 3]
    np.testing.assert_array_equal(table.gather(ids), values[ids])
    out = np.empty((6, 6), np.float32)
    assert np.shares_memory(table.gather(ids, out[1:5]), out)
    np.testing.assert_array_equal(out[1:5], values[ids])
    assert table.gather([]).shape == (0, 6)


@pytest.mark.parametrize("bad", [50, -1, IMAGE_TOKEN, 2**40])
def test_an_id_without_a_row_is_named(tables: Tables, bad: int) -> None:
    with pytest.raises(PromptError, match=f"token id {bad} has no embedding; the model has ids 0 to 49"):
        tables["float32"][0].gather([1, bad, 2])


@pytest.mark.parametrize(
    ("dtype", "shape", "message"),
    [
        ("float32", (51, 6), "1,200 bytes instead of 1,224"),
        ("int64", (25, 6), "no embedding"),
        ("float32", (300,), "no embedding"),
    ],
)
def test_a_file_of_another_size_or_type_is_refused(
    tmp_path: Path, dtype: Any, shape: tuple[int, ...], message: str
) -> None:
    file = tmp_path / "table.bin"
    np.zeros((50, 6), np.float32).tofile(file)
    with pytest.raises(BundleError, match=message):
        EmbeddingTable(file, TableSpec(file="table.bin", dtype=dtype, shape=shape))


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be mapped"):
        EmbeddingTable(tmp_path / "gone.bin", TableSpec(file="gone.bin", dtype="float32", shape=(1, 1)))


# ------------------------------------------------------------------------------------------ merge


@given(
    st.lists(st.integers(0, 49) | st.just(IMAGE_TOKEN), max_size=20),
    st.lists(st.integers(0, 9), max_size=4),
    st.integers(1, 60),
)
@settings(max_examples=200, deadline=None)
def test_prompt_equals_the_slow_version(tables: Tables, ids: list[int], lengths: list[int], max_prompt: int) -> None:
    table, values = tables["float32"]
    images = [np.full((length, 6), 100 + i, np.float32) for i, length in enumerate(lengths)]
    parts, kinds, seen = [], [], 0
    for token in ids:
        if token != IMAGE_TOKEN:
            parts.append(values[[token]])
        elif seen < len(images):
            parts.append(images[seen])
        elif images and seen == len(images):
            parts.append(images[-1])
        else:
            with pytest.raises(PromptError, match=f"{ids.count(IMAGE_TOKEN)} pictures, but {len(images)}"):
                merge_prompt(ids, table, images, max_prompt)
            return
        seen += token == IMAGE_TOKEN
        kinds += [token] * len(parts[-1])
    got, got_kinds = merge_prompt(ids, table, images, max_prompt)
    cut = max_prompt if images else None
    np.testing.assert_array_equal(got, np.concatenate([np.empty((0, 6)), *parts])[:cut])
    assert (got.dtype, got_kinds.dtype) == (np.float32, np.int64)
    assert got_kinds.tolist() == kinds[:cut]
