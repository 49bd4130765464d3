"""Reading .safetensors files, and refusing what only looks like one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import write_safetensors

from lladav.errors import CheckpointError
from lladav.export.safetensors import read_header, read_rows

TENSORS = {
    "a.weight": np.arange(24, dtype=np.float32).reshape(4, 6),
    "b.weight": np.arange(10, dtype=np.float16),
    "c.weight": np.arange(12).reshape(3, 2, 2).astype(ml_dtypes.bfloat16),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, TENSORS)
    return path


def with_header(path: Path, header: object, data: int) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(data))
    return path


def entry(start: int, stop: int, shape: list[Any] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(stop - start) // 4] if shape is None else shape, "data_offsets": [start, stop]}


def test_reads_what_was_written(file: Path) -> None:
    infos = read_header(file)
    assert list(infos) == list(TENSORS)
    for name, values in TENSORS.items():
        got = read_rows(infos[name], 0, len(values))
        assert infos[name].dtype == str(values.dtype) == str(got.dtype)
        assert infos[name].shape == values.shape
        assert infos[name].bytes == values.nbytes
        np.testing.assert_array_equal(got, values)


def test_agrees_with_the_safetensors_library(file: Path) -> None:
    library = pytest.importorskip("safetensors.numpy")
    read = library.load_file(file)
    infos = read_header(file)
    assert infos.keys() == read.keys()
    for name in ("a.weight", "b.weight"):
        np.testing.assert_array_equal(read_rows(infos[name], 0, infos[name].rows), read[name])


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (0, 1), (1, 3), (3, 4), (4, 4)])
def test_reads_a_block_of_rows(file: Path, start: int, stop: int) -> None:
    np.testing.assert_array_equal(
        read_rows(read_header(file)["a.weight"], start, stop), TENSORS["a.weight"][start:stop]
    )


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 5)])
def test_refuses_rows_that_do_not_exist(file: Path, start: int, stop: int) -> None:
    with pytest.raises(IndexError, match="4 rows"):
        read_rows(read_header(file)["a.weight"], start, stop)


def test_continues_after_a_short_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: whole(fd, [buffers[0][:7]], offset))
    np.testing.assert_array_equal(read_rows(read_header(file)["a.weight"], 0, 4), TENSORS["a.weight"])


def test_accepts_any_order_in_the_header(tmp_path: Path) -> None:
    path = with_header(tmp_path / "x", {"late": entry(8, 16), "early": entry(0, 8)}, 16)
    assert list(read_header(path)) == ["early", "late"]


def test_reads_a_tensor_without_axes_as_one_row(tmp_path: Path) -> None:
    info = read_header(with_header(tmp_path / "x", {"scalar": entry(0, 4, [])}, 4))["scalar"]
    assert info.shape == ()
    assert read_rows(info, 0, 1).shape == (1,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes, fewer than the 8"),
        (b"\x01\x02", "2 bytes, fewer than the 8"),
        ((1 << 40).to_bytes(8, "little") + b"{}", "announces a header of 1,099,511,627,776 bytes"),
        ((50).to_bytes(8, "little") + b"{}", "announces a header of 50 bytes, but has 10"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (bytes(64), "not JSON"),
    ],
)
def test_refuses_what_is_no_safetensors_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(path)
    assert str(path) in caught.value.what


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"{,}", 0, "not JSON"),
        (b"\xff\xfe", 0, "not JSON"),
        (b"[" * 200_000, 0, "not JSON"),
        (b'{"t":{}, "t":{}}', 0, "occurs twice"),
        ([], 0, "no object"),
        ({"t": 3}, 0, "tensor t is not described"),
        ({"t": {"dtype": "F32", "shape": [1]}}, 0, "tensor t is not described"),
        ({"t": entry(0, 8, dtype="F64")}, 8, "tensor t .* dtype 'F64'; lladav reads BF16, F16, F32"),
        ({"t": entry(0, 8, dtype="I8")}, 8, "tensor t .* dtype 'I8'"),
        ({"t": {**entry(0, 8), "dtype": ["F32"]}}, 8, "tensor t .* dtype"),
        ({"t": entry(0, 8, [3])}, 8, "tensor t of shape .3. in F32 needs 12 bytes, but has 8"),
        ({"t": entry(0, 8, [-2])}, 8, "tensor t has shape"),
        ({"t": entry(0, 8, [2.0])}, 8, "tensor t has shape"),
        ({"t": entry(0, 4, [True])}, 4, "tensor t has shape"),
        ({"t": entry(0, 8, [1 << 62] * 300)}, 8, "tensor t has shape"),
        ({"t": {**entry(0, 8), "data_offsets": [0, 4, 8]}}, 8, "data_offsets"),
        ({"t": entry(0, 8), "u": entry(4, 12)}, 12, "tensor u .* overlaps"),
        ({"t": entry(0, 8), "u": entry(12, 16)}, 16, "tensor u .* leaves a gap"),
        ({"t": entry(0, 8)}, 4, "tensor t ends at byte"),
        ({"t": entry(0, 8)}, 11, "3 bytes after its last tensor"),
    ],
)
def test_refuses_a_header_that_contradicts_itself(tmp_path: Path, header: object, data: int, message: str) -> None:
    path = with_header(tmp_path / "x.safetensors", header, data)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(path)
    assert str(path) in caught.value.what


def test_refuses_a_header_cut_short_while_reading(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = file.stat()
    file.write_bytes(file.read_bytes()[:40])
    monkeypatch.setattr(os, "fstat", lambda _: size)
    with pytest.raises(CheckpointError, match="ends after 32"):
        read_header(file)


def test_refuses_a_file_that_does_not_open(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_header(tmp_path / "absent.safetensors")


def test_refuses_a_file_that_shrank_or_vanished_since(file: Path) -> None:
    last = read_header(file)["c.weight"]
    os.truncate(file, file.stat().st_size - 5)
    with pytest.raises(CheckpointError, match=r"ends 5 bytes before the end of rows 0-3 of c\.weight"):
        read_rows(last, 0, 3)
    file.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_rows(last, 0, 3)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_gives_an_error_or_the_same_tensors(file: Path, data: st.DataObject) -> None:
    write_safetensors(file, TENSORS)
    whole = file.read_bytes()
    head = 8 + int.from_bytes(whole[:8], "little")
    if data.draw(st.booleans(), "truncate"):
        damaged = whole[: data.draw(st.integers(0, len(whole) - 1), "length")]
    else:
        at = data.draw(st.integers(0, head - 1), "position")
        damaged = whole[:at] + bytes([data.draw(st.integers(0, 255), "byte")]) + whole[at + 1 :]
    file.write_bytes(damaged)
    try:
        infos = read_header(file)
    except CheckpointError:
        return
    # A changed letter in a name is a valid file; the index of a checkpoint finds it out.
    assert [(i.dtype, i.shape) for i in infos.values()] == [(str(t.dtype), t.shape) for t in TENSORS.values()]
    for info, values in zip(infos.values(), TENSORS.values(), strict=True):
        np.testing.assert_array_equal(read_rows(info, 0, info.rows), values)
