"""What the checks of `benchmarks.gpu` run on here."""

from __future__ import annotations

from pathlib import Path

import pytest
from host_library import compiler
from host_rig import Host

from benchmarks.gpu.rig import Rig
from lladav.bundle import Bundle


@pytest.fixture
def rig(compiled_kernels: None) -> Rig:  # noqa: ARG001
    return Host()


@pytest.fixture
def compiled_kernels() -> None:
    """They can be run on the host."""
    if compiler() is None:
        pytest.skip("no C++ compiler is on this machine, which the kernels are compiled with for the host")


@pytest.fixture
def bundle(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bundle:
    """The tiny model's, with nothing remembered about it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return Bundle.open(tiny_bundle)
