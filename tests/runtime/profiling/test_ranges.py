"""NVTX ranges, with a stand-in for the package."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from lladav.errors import BackendError
from lladav.runtime import GenerationConfig, Pipeline
from lladav.runtime.profiling import profile, synthetic


def test_spans_become_ranges_only_when_asked(
    pipeline: Pipeline, config: GenerationConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    marked: list[str] = []

    @contextmanager
    def annotate(name: str, domain: str) -> Iterator[None]:
        assert domain == "lladav"
        marked.append(name)
        yield

    monkeypatch.setitem(sys.modules, "nvtx", SimpleNamespace(annotate=annotate))
    asking = synthetic(pipeline, config)
    profile(pipeline, asking, runs=1, layers=False)
    assert marked == []
    profile(pipeline, asking, runs=1, layers=False, nvtx=True)
    assert {"vision_encoder", "connector", "refresh", "step", "sampling", "commit"} <= set(marked)


def test_a_missing_package_is_said(
    pipeline: Pipeline, config: GenerationConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nvtx", None)
    with pytest.raises(BackendError) as caught:
        profile(pipeline, synthetic(pipeline, config), runs=1, nvtx=True)
    assert "lladav[nvtx]" in caught.value.cure
