"""Shared fixtures; what needs the golden outputs skips, with the reason, where they are absent."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from golden_cases import SHARED
from tiny import write_tiny_checkpoint

from benchmarks.golden import GoldenSet
from lladav.export import ExportConfig, export


@pytest.fixture(scope="session")
def shared() -> Path:
    if not (SHARED / "parity" / "goldens.json").is_file():
        pytest.skip("the golden outputs (../shared) are not on this machine")
    return SHARED


@pytest.fixture(scope="session")
def golden_set(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> GoldenSet:
    """The golden cases with their checkpoints and bundles, each made once."""
    return GoldenSet(shared, tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="session")
def golden_checkpoint(golden_set: GoldenSet) -> Callable[[str], Path]:
    """The checkpoint that golden cases call "fp32", "bf16" or "patched"."""
    return golden_set.checkpoint


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint of a few hundred kilobytes; not to be changed."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path) -> Path:
    """Its bundle in fp32; not to be changed."""
    return export(tiny_checkpoint, tiny_checkpoint.parent / "bundle", ExportConfig(dtype="fp32", verify=False)).path


@pytest.fixture(scope="session")
def tiny_bundle_int8_kv(tiny_checkpoint: Path) -> Path:
    """The same with the prompt's keys and values in int8."""
    config = ExportConfig(dtype="fp32", prompt_kv="int8", verify=False)
    return export(tiny_checkpoint, tiny_checkpoint.parent / "int8-kv", config).path


@pytest.fixture
def bundle_copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle to be damaged."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
