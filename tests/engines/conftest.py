"""Bundles and engines for the tests of this folder; what builds for real skips where nothing can."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import write_tiny_checkpoint

from lladav.engines import build
from lladav.export import ExportConfig, export
from lladav.manifest import Precision

RTX_TARGETS = ("rtx-30", "rtx-40", "rtx-50")


@pytest.fixture(scope="session")
def rtx() -> Any:
    """TensorRT-RTX, which builds ahead of time without a GPU."""
    return pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install '.[tensorrt-rtx]'")


@pytest.fixture(scope="session")
def bundle_in(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Precision], Path]:
    """The tiny model's bundle in a precision, each made once; not to be changed."""
    folder = tmp_path_factory.mktemp("engines")
    # Heads of 16, because TensorRT-RTX does not fuse attention of narrower ones.
    checkpoint = write_tiny_checkpoint(
        folder / "checkpoint", edit=lambda _, config: config.update(num_attention_heads=2, num_key_value_heads=2)
    )

    def bundle(precision: Precision) -> Path:
        path = folder / precision
        if not path.exists():
            sizes = {"prompt_buckets": (64, 128), "canvas_buckets": (8, 32), "tile_buckets": (1, 4)}
            export(checkpoint, path, ExportConfig(dtype=precision, verify=False, **sizes))  # type: ignore[arg-type]
        return path

    return bundle


@pytest.fixture
def fp16_bundle(bundle_in: Callable[[Precision], Path], tmp_path: Path) -> Path:
    """A bundle in fp16 that may be changed, without engines."""
    return Path(shutil.copytree(bundle_in("fp16"), tmp_path / "bundle"))


@pytest.fixture(scope="session")
def engines_in(
    rtx: Any, bundle_in: Callable[[Precision], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Precision], Path]:
    """That bundle with engines for all RTX targets, each made once; not to be changed."""
    folder = tmp_path_factory.mktemp(f"built-{rtx.__version__}")

    def bundle(precision: Precision) -> Path:
        path = folder / precision
        if not path.exists():
            shutil.copytree(bundle_in(precision), path)
            for target in RTX_TARGETS:
                build(path, target)
        return path

    return bundle


@pytest.fixture
def built_bundle(engines_in: Callable[[Precision], Path], tmp_path: Path) -> Path:
    """A bundle in fp16 with engines, which may be changed."""
    return Path(shutil.copytree(engines_in("fp16"), tmp_path / "built"))
