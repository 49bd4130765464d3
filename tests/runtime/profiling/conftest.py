"""One measured profile for everything that reads profiles."""

from __future__ import annotations

from pathlib import Path

import pytest

from lladav.runtime import GenerationConfig, Pipeline
from lladav.runtime.profiling import Measured, MemoryLedger, profile, synthetic
from lladav.runtime.tracing import traced

PASSES = 6


@pytest.fixture(scope="session")
def ledger(tiny_bundle: Path) -> MemoryLedger:
    return MemoryLedger(tiny_bundle)


@pytest.fixture(scope="session")
def pipeline(tiny_bundle: Path, ledger: MemoryLedger, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        with traced(ledger):
            loaded = Pipeline.load(tiny_bundle, threads=1, feature_cache_bytes=0)
            loaded.pictures.load()
    ledger.loaded()
    return loaded


@pytest.fixture(scope="session")
def config() -> GenerationConfig:
    return GenerationConfig(preset="quality", gen_length=12, steps=PASSES)


@pytest.fixture(scope="session")
def measured(pipeline: Pipeline, ledger: MemoryLedger, config: GenerationConfig) -> Measured:
    return profile(pipeline, synthetic(pipeline, config), runs=4, warmup=1, ledger=ledger, sweeping=True)
