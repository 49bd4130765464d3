"""Which backend is taken, with the host's memory in place of a GPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lladav import backends
from lladav.backends import Limits, choose, load
from lladav.bundle import Bundle
from lladav.cli import loading
from lladav.errors import BackendError, EngineError, OptionError
from lladav.runtime import GenerationConfig


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


class _Loaded:
    """What loads of a backend; nothing of it runs here."""

    def __init__(self, name: str, *_: Any) -> None:
        self.name = name


def machine(monkeypatch: pytest.MonkeyPatch, *, gpu: bool, loads: tuple[str, ...] = ()) -> list[str]:
    """A machine with or without a GPU, on which some backends load; returns the names that were tried."""
    tried: list[str] = []

    def device() -> object:
        if not gpu:
            raise BackendError("there is no driver", cure="install one")
        return object()

    def attempt(name: str, *_: Any) -> _Loaded:
        tried.append(name)
        if name not in loads:
            raise EngineError(f"{name} is broken", cure="mend it")
        return _Loaded(name)

    monkeypatch.setattr(backends, "_open_device", device)
    monkeypatch.setattr(backends, "_open", attempt)
    return tried


def test_auto_without_a_gpu_is_the_cpu_and_says_nothing(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = machine(monkeypatch, gpu=False)
    choice = choose(bundle, "auto", Limits())
    assert (choice.backend.name, choice.passed_over, tried) == ("cpu", {}, [])


def test_gpu_that_cannot_be_opened_is_not_passed_over_silently(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as where the kernels were not built."""
    machine(monkeypatch, gpu=False)
    found = SimpleNamespace(gpus=("a GPU",), l4t="")
    monkeypatch.setattr(backends, "examine", lambda: found)
    choice = choose(bundle, "auto", Limits())
    assert choice.backend.name == "cpu"
    assert "there is no driver" in choice.passed_over["its backend"]


def test_auto_takes_the_best_that_loads(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, gpu=True, loads=("tensorrt", "tensorrt-rtx", "ort-cuda"))
    assert choose(bundle, "auto", Limits()).backend.name == "tensorrt"
    tried = machine(monkeypatch, gpu=True, loads=("ort-cuda",))
    choice = choose(bundle, "auto", Limits())
    assert (choice.backend.name, tried) == ("ort-cuda", ["tensorrt", "tensorrt-rtx", "ort-cuda"])
    assert choice.passed_over["tensorrt"] == "tensorrt is broken\n  -> mend it"


def test_cpu_in_place_of_a_gpu_is_never_silent(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(monkeypatch, gpu=True)
    pipeline = loading.load_pipeline(tiny_bundle, "auto", GenerationConfig(), threads=1)
    assert pipeline.backend.name == "cpu"
    said = capsys.readouterr().err
    for name in ("tensorrt", "tensorrt-rtx", "ort-cuda"):
        assert f"{name} does not load" in said


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx", "ort-cuda"])
def test_backend_asked_for_by_name_is_never_another(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, name: Any) -> None:
    machine(monkeypatch, gpu=False)
    with pytest.raises(BackendError, match="there is no driver"):
        choose(bundle, name, Limits())
    tried = machine(monkeypatch, gpu=True)
    with pytest.raises(EngineError, match=f"{name} is broken"):
        choose(bundle, name, Limits())
    assert tried == [name]


def test_unknown_backend_names_the_known_ones(tiny_bundle: Path) -> None:
    with pytest.raises(OptionError, match="no backend 'gpu'") as caught:
        loading.load_pipeline(tiny_bundle, "gpu", GenerationConfig())
    assert "auto, tensorrt, tensorrt-rtx, ort-cuda, cpu" in str(caught.value)


def test_limits_become_buckets(bundle: Bundle) -> None:
    buckets = bundle.manifest.buckets
    assert Limits().sizes(bundle).prompt == 0
    sizes = Limits(prompt=buckets.prompt[0] + 1, canvas=1, sequences=2).sizes(bundle)
    assert (sizes.batch, sizes.prompt, sizes.canvas) == (2, buckets.prompt[1], buckets.canvas[0])
    with pytest.raises(OptionError, match="--max-prompt"):
        Limits(prompt=buckets.prompt[-1] + 1).sizes(bundle)
    with pytest.raises(OptionError, match="--max-canvas"):
        Limits(canvas=0).sizes(bundle)


def test_loaded_pipeline_answers(tiny_bundle: Path) -> None:
    pipeline = load(tiny_bundle, "cpu", threads=1)
    assert pipeline.generate(prompt_ids=[3, 4, 5], config=GenerationConfig(gen_length=4)).backend == "cpu"
