"""Whatever is wrong with a bundle shows before it is used."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lladav.bundle import Bundle
from lladav.errors import BundleError
from lladav.manifest import MANIFEST_NAME, Manifest, sealed

Edit = Callable[[dict[str, Any]], object]


def rewrite(bundle: Path, edit: Edit) -> None:
    """Edits the manifest as a program would, its own sha256 included."""
    values = json.loads((bundle / MANIFEST_NAME).read_text("utf-8"))
    edit(values)
    (bundle / MANIFEST_NAME).write_text(sealed(values), "utf-8")


def test_whole_bundle_opens(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    seen: list[int] = []
    bundle.check_contents(seen.append)
    assert sum(seen) == sum(entry.bytes for entry in bundle.manifest.files)


def test_every_file_is_listed(tiny_bundle: Path) -> None:
    listed = {entry.path for entry in Bundle.open(tiny_bundle).manifest.files}
    assert listed | {MANIFEST_NAME} == {file.name for file in tiny_bundle.iterdir()}


def test_bundle_may_be_moved(bundle_copy: Path, tmp_path: Path) -> None:
    moved = bundle_copy.rename(tmp_path / "elsewhere")
    Bundle.open(moved).check_contents()


def test_manifest_survives_writing(tiny_bundle: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(tiny_bundle)
    manifest.write(tmp_path)
    assert (tmp_path / MANIFEST_NAME).read_bytes() == (tiny_bundle / MANIFEST_NAME).read_bytes()


def test_all_missing_and_truncated_files_are_named(bundle_copy: Path) -> None:
    (bundle_copy / "denoiser.onnx").unlink()
    weights = bundle_copy / "denoiser.weights"
    os.truncate(weights, weights.stat().st_size - 1)
    (bundle_copy / "tokenizer.json").write_bytes(b"")
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle_copy)
    for part in ("denoiser.onnx is missing", "denoiser.weights has", "tokenizer.json has 0 bytes instead of"):
        assert part in caught.value.what


def test_altered_file_is_named(bundle_copy: Path) -> None:
    data = bytearray((bundle_copy / "embed_tokens.bin").read_bytes())
    data[100] ^= 1
    (bundle_copy / "embed_tokens.bin").write_bytes(data)
    with pytest.raises(BundleError, match=r"embed_tokens\.bin differ"):
        Bundle.open(bundle_copy).check_contents()


def test_unfinished_export_is_no_bundle(bundle_copy: Path) -> None:
    (bundle_copy / MANIFEST_NAME).unlink()
    with pytest.raises(BundleError, match="its export never finished"):
        Bundle.open(bundle_copy)


@pytest.mark.parametrize("kind", ["absent", "file"])
def test_no_folder_is_no_bundle(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "bundle"
    if kind == "file":
        path.write_text("{}")
    with pytest.raises(BundleError, match="is not a folder"):
        Bundle.open(path)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b"null", b"{}"], ids=lambda text: repr(text[:4])
)
def test_manifest_that_is_none(bundle_copy: Path, text: bytes) -> None:
    (bundle_copy / MANIFEST_NAME).write_bytes(text)
    with pytest.raises(BundleError):
        Bundle.open(bundle_copy)


EDITS: dict[str, tuple[Edit, str]] = {
    "newer": (lambda m: m.update(schema_version=2, novelty=1), "schema version 2; this lladav reads up to 1"),
    "unknown key": (lambda m: m.update(novelty=1), "novelty: Extra inputs are not permitted"),
    "missing key": (lambda m: m.pop("buckets"), "buckets: Field required"),
    "impossible size": (lambda m: m["geometry"]["language"].update(heads=3, kv_heads=2), "3 heads cannot share 2"),
    "parent folder": (lambda m: m["files"][0].update(path="../outside"), "points outside the bundle"),
    "absolute path": (lambda m: m["files"][0].update(path="/etc/passwd"), "files.0.path"),
    "NUL in a path": (lambda m: m["files"][0].update(path="a\0b"), "files.0.path"),
    "unlisted table": (lambda m: m["tables"]["embed_tokens"].update(file="other.bin"), "other.bin is used"),
    "unlisted graph": (lambda m: m["graphs"]["denoiser"].update(weights="x.weights"), "x.weights is used"),
}


@pytest.mark.parametrize("name", EDITS)
def test_manifest_that_is_another(bundle_copy: Path, name: str) -> None:
    edit, message = EDITS[name]
    rewrite(bundle_copy, edit)
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle_copy)
    assert message in caught.value.what
    assert caught.value.cure


def test_file_that_links_outside_is_refused(bundle_copy: Path, tmp_path: Path) -> None:
    outside = (bundle_copy / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    (bundle_copy / "tokenizer.json").symlink_to(outside)
    with pytest.raises(BundleError, match=r"tokenizer\.json points outside"):
        Bundle.open(bundle_copy)


def test_manifest_edited_by_hand_is_refused(bundle_copy: Path) -> None:
    path = bundle_copy / MANIFEST_NAME
    path.write_text(path.read_text("utf-8").replace('"gen_length": 128', '"gen_length": 129'), "utf-8")
    with pytest.raises(BundleError, match="was altered"):
        Bundle.open(bundle_copy)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_flipped_byte_is_noticed(
    tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    files = sorted(tiny_bundle.iterdir())
    file = data.draw(st.sampled_from(files))
    place = data.draw(st.integers(0, file.stat().st_size - 1))
    change = data.draw(st.integers(1, 255))
    # Links instead of copies: only one file differs.
    bundle = tmp_path_factory.mktemp("flipped")
    for other in files:
        os.link(other, bundle / other.name)
    contents = bytearray(file.read_bytes())
    contents[place] ^= change
    (bundle / file.name).unlink()
    (bundle / file.name).write_bytes(contents)
    with pytest.raises(BundleError, match=file.name.replace(".", r"\.")):
        Bundle.open(bundle).check_contents()
