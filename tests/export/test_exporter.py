"""A bundle appears whole or not at all."""

from __future__ import annotations

import errno
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import Tensors, write_tiny_checkpoint

from lladav.bundle import Bundle
from lladav.errors import CheckpointError, ExportError
from lladav.export.config import ExportConfig
from lladav.export.exporter import export
from lladav.export.progress import Progress
from lladav.export.weights import HashedFile
from lladav.runtime import GenerationConfig, Pipeline

PLAIN = ExportConfig(verify=False)
INTEGERS = ExportConfig(quantize="w8", verify=False)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "checkpoint")


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_bundle_holds_all_it_needs_and_can_be_moved(checkpoint: Path, tmp_path: Path) -> None:
    export(checkpoint, tmp_path / "bundle", PLAIN)
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "bundle").rename(tmp_path / "elsewhere" / "moved")
    for file in checkpoint.rglob("*.*"):
        file.unlink()
    Bundle.open(moved).check_contents()
    assert names(moved) == sorted([*(e.path for e in Bundle.open(moved).manifest.files), "manifest.json"])
    assert Pipeline.load(moved).generate(prompt_ids=[1, 2], config=GenerationConfig(gen_length=2)).token_ids


def test_same_checkpoint_same_bundle(checkpoint: Path, tmp_path: Path) -> None:
    first, second = (export(checkpoint, tmp_path / name, PLAIN).manifest for name in ("a", "b"))
    assert first == second


def test_fingerprint_follows_values_and_ignores_shards(checkpoint: Path, tmp_path: Path) -> None:
    def nudge(tensors: Tensors, _: dict[str, Any]) -> None:
        tensors["model.norm.weight"][0] += 1e-3

    same = export(checkpoint, tmp_path / "a", PLAIN).manifest.checkpoint.fingerprint
    rows = export(checkpoint, tmp_path / "b", ExportConfig(verify=False, vocab_rows="all"))
    other = write_tiny_checkpoint(tmp_path / "other", edit=nudge)
    assert rows.manifest.checkpoint.fingerprint == same
    assert export(other, tmp_path / "c", PLAIN).manifest.checkpoint.fingerprint != same


def test_vocabulary_rows(checkpoint: Path, tmp_path: Path) -> None:
    cut = export(checkpoint, tmp_path / "cut", PLAIN).manifest.geometry.language.vocab_rows
    every = export(checkpoint, tmp_path / "all", ExportConfig(verify=False, vocab_rows="all")).manifest
    assert cut < every.geometry.language.vocab_rows == 320


def test_ids_beside_the_mask_count_as_masks(tmp_path: Path) -> None:
    def alias(tensors: Tensors, _: dict[str, Any]) -> None:
        table = tensors["model.embed_tokens.weight"]
        mask = export(write_tiny_checkpoint(tmp_path / "plain"), tmp_path / "p", PLAIN).manifest.tokens.mask
        table[7] = table[mask] + np.float32(5e-6)
        table[8] = table[mask] + np.float32(5e-5)

    tokens = export(write_tiny_checkpoint(tmp_path / "c", edit=alias), tmp_path / "b", PLAIN).manifest.tokens
    assert tokens.mask_aliases == (7, tokens.mask)


def test_existing_target_is_left_alone(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "mine").write_text("keep")
    stages: list[str] = []
    with pytest.raises(ExportError, match="exists already"):
        export(checkpoint, tmp_path / "bundle", INTEGERS, Progress(lambda stage, _: stages.append(stage)))
    assert stages == []  # the search for scales takes minutes at the real size
    assert names(tmp_path / "bundle") == ["mine"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_named(tmp_path: Path, value: float) -> None:
    def edit(tensors: Tensors, _: dict[str, Any]) -> None:
        tensors["model.layers.1.self_attn.k_proj.weight"][3, 4] = value

    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.k_proj\.weight holds NaN or infinity"):
        export(write_tiny_checkpoint(tmp_path / "c", edit=edit), tmp_path / "bundle", PLAIN)
    assert names(tmp_path) == ["c"]


def test_faulty_tensors_are_listed_before_anything_is_written(tmp_path: Path) -> None:
    def edit(tensors: Tensors, _: dict[str, Any]) -> None:
        del tensors["model.norm.weight"]
        tensors["model.extra.weight"] = np.zeros(3, np.float32)
        tensors["model.layers.0.mlp.up_proj.weight"] = np.zeros((5, 6), np.float32)

    with pytest.raises(CheckpointError) as caught:
        export(write_tiny_checkpoint(tmp_path / "c", edit=edit), tmp_path / "bundle", PLAIN)
    for word in ("model.norm.weight", "model.extra.weight", "model.layers.0.mlp.up_proj.weight"):
        assert word in caught.value.what
    assert names(tmp_path) == ["c"]


def test_too_little_space_is_seen_before_anything_is_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(100, 99, 1))
    with pytest.raises(ExportError, match=r"0\.00 GB free"):
        export(checkpoint, tmp_path / "bundle", PLAIN)
    assert names(tmp_path) == ["checkpoint"]


def test_disk_that_runs_full_leaves_nothing(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = HashedFile.write

    def full(self: HashedFile, data: Any) -> None:
        if self.entry.bytes > 50_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, data)

    monkeypatch.setattr(HashedFile, "write", full)
    with pytest.raises(ExportError, match="No space left on device; nothing was left behind"):
        export(checkpoint, tmp_path / "bundle", PLAIN)
    assert names(tmp_path) == ["checkpoint"]


def test_interrupt_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(checkpoint, tmp_path / "bundle", PLAIN, Progress(advance=interrupt))
    assert names(tmp_path) == ["checkpoint"]


KILLED = """
    import os, signal, sys
    from lladav.export.config import ExportConfig
    from lladav.export.exporter import export
    from lladav.export.progress import Progress

    left = int(sys.argv[3])
    def advance(_):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    export(sys.argv[1], sys.argv[2], ExportConfig(verify=False), Progress(advance=advance))
"""


@pytest.mark.parametrize("moment", [1, 30, 60])
def test_killed_export_leaves_no_bundle_and_the_next_one_succeeds(
    checkpoint: Path, tmp_path: Path, moment: int
) -> None:
    target = tmp_path / "bundle"
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(checkpoint), str(target), str(moment)]
    assert subprocess.run(command, check=False).returncode == -9
    assert not target.exists()
    export(checkpoint, target, PLAIN).check_contents()
    assert names(tmp_path) == ["bundle", "checkpoint"]


def test_config_is_kept_and_strict(checkpoint: Path, tmp_path: Path) -> None:
    config = ExportConfig(verify=False, canvas_buckets=(16, 4, 16), tile_buckets=(2,))
    bundle = export(checkpoint, tmp_path / "bundle", config)
    assert ExportConfig.model_validate_json(bundle.file("export.json").read_text("utf-8")) == config
    assert bundle.manifest.buckets.canvas == (4, 16)
    assert bundle.manifest.buckets.tiles == (1, 2)
    assert bundle.manifest.max_prompt == 384
    assert bundle.manifest.buckets.prompt == (64, 128, 256, 384, 512)
    with pytest.raises(ValueError, match="buckets"):
        ExportConfig(buckets=(1,))  # type: ignore[call-arg]
