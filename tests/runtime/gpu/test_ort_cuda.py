"""ONNX Runtime's CUDA provider: asked of a fake, and the rest of the path run for real on the CPU."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

import lladav.runtime.gpu.ort_cuda as module
from lladav.bundle import Bundle
from lladav.errors import BackendError
from lladav.runtime.gpu.executable import Tensor
from lladav.runtime.gpu.ort_cuda import CudaSession
from lladav.runtime.sessions import NUMPY_TYPES, open_session

DEVICE: Any = SimpleNamespace(ordinal=1, stream=77)


class FakeRuntime(ModuleType):
    """ONNX Runtime with a CUDA provider.

    Attributes:
        sessions: provider options of those that were opened.
        runs: options of all runs.
        faults: what opening a session shall raise, by `enable_cuda_graph`.
        fallback: the provider that sessions say they use.
    """

    __version__ = "1.31.1"

    def __init__(self) -> None:
        super().__init__("onnxruntime")
        self.available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        self.sessions: list[dict[str, str]] = []
        self.bound: list[tuple[Any, ...]] = []
        self.runs: list[dict[str, str]] = []
        self.faults: dict[str, Exception] = {}
        self.run_fault: Exception | None = None
        self.fallback = ""

    def get_available_providers(self) -> list[str]:
        return self.available

    def SessionOptions(self) -> Any:  # noqa: N802 - the library's name
        return SimpleNamespace()

    def RunOptions(self) -> Any:  # noqa: N802 - the library's name
        entries: dict[str, str] = {}
        return SimpleNamespace(add_run_config_entry=entries.__setitem__, entries=entries)

    def InferenceSession(self, _path: str, _options: Any, providers: Any) -> Any:  # noqa: N802 - the library's name
        ((name, options),) = providers
        self.sessions.append(options)
        if fault := self.faults.get(options["enable_cuda_graph"]):
            raise fault

        def run(_binding: Any, run_options: Any) -> None:
            self.runs.append(run_options.entries)
            if self.run_fault:
                raise self.run_fault

        def binding() -> Any:
            return SimpleNamespace(
                bind_input=lambda *given: self.bound.append(given), bind_output=lambda *given: self.bound.append(given)
            )

        return SimpleNamespace(
            get_providers=lambda: [self.fallback or name], io_binding=binding, run_with_iobinding=run
        )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    runtime = FakeRuntime()
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    return runtime


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: Tensor(array.ctypes.data, array.shape) for name, array in arrays.items()}


def step_arrays(bundle: Bundle) -> dict[str, np.ndarray]:
    """Inputs and outputs of a step; random where the values matter."""
    sizes = {"batch": 1, "window": 8, "past": 16, "keys": 24, "rows": 3, "kept": 0}
    spec, random = bundle.manifest.graphs["denoiser"], np.random.default_rng(0)
    arrays = {}
    for tensor in (*spec.inputs, *spec.outputs):
        shape = tuple(size if isinstance(size, int) else sizes[size] for size in tensor.shape)
        arrays[tensor.name] = random.normal(size=shape).astype(NUMPY_TYPES[tensor.dtype])
    arrays["rows"][:] = [1, 4, 7]
    arrays["position_ids"][:] = np.arange(16, 24)
    arrays["logits"][:] = 0
    return arrays


def test_it_computes_on_our_stream_and_captures_every_pass(fake: FakeRuntime, bundle: Bundle) -> None:
    session = CudaSession(bundle, "denoiser", DEVICE)
    assert fake.sessions == [
        {
            "device_id": "1",
            "user_compute_stream": "77",
            "enable_cuda_graph": "1",
            "arena_extend_strategy": "kSameAsRequested",
        }
    ]
    assert (session.scratch, session.not_captured) == (0, "")
    assert session.weights == (bundle.path / "denoiser.weights").stat().st_size
    arrays = step_arrays(bundle)
    passes = [session.bind(tensors(arrays), profile=name) for name in ("refresh", "step")]
    assert {given[0] for given in fake.bound} == arrays.keys()
    assert ("rows", "cuda", 1, np.int64, (3,), arrays["rows"].ctypes.data) in fake.bound
    for bound in (*passes, passes[0]):
        assert not bound.capturable
        bound.enqueue()
    assert [run["gpu_graph_id"] for run in fake.runs] == ["1", "2", "1"]
    assert {run["disable_synchronize_execution_providers"] for run in fake.runs} == {"1"}


def test_graph_that_it_cannot_capture_is_run_without(fake: FakeRuntime, bundle: Bundle) -> None:
    fake.faults = {"1": RuntimeError("cannot use the graph capture feature")}
    session = CudaSession(bundle, "denoiser", DEVICE)
    assert session.not_captured == "cannot use the graph capture feature"
    assert [options["enable_cuda_graph"] for options in fake.sessions] == ["1", "0"]


def test_graph_that_it_cannot_run(fake: FakeRuntime, bundle: Bundle) -> None:
    fake.faults = {"1": RuntimeError("no graphs"), "0": RuntimeError("out of memory")}
    with pytest.raises(BackendError, match=r"1\.31\.1 cannot load denoiser\.onnx on the GPU: out of memory"):
        CudaSession(bundle, "denoiser", DEVICE)


def test_falling_back_to_the_cpu_is_an_error(fake: FakeRuntime, bundle: Bundle) -> None:
    fake.fallback = "CPUExecutionProvider"
    with pytest.raises(BackendError, match="fell back to CPUExecutionProvider") as caught:
        CudaSession(bundle, "denoiser", DEVICE)
    assert "onnxruntime-gpu" in caught.value.cure


def test_pass_that_it_refuses(fake: FakeRuntime, bundle: Bundle) -> None:
    bound = CudaSession(bundle, "denoiser", DEVICE).bind(tensors(step_arrays(bundle)), profile="step")
    fake.run_fault = RuntimeError("BFC arena")
    with pytest.raises(BackendError, match="refuses to run step of denoiser: BFC arena"):
        bound.enqueue()


def test_build_without_cuda(bundle: Bundle, fake: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.available = ["CPUExecutionProvider"]
    with pytest.raises(BackendError, match="built without CUDAExecutionProvider"):
        CudaSession(bundle, "denoiser", DEVICE)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match="cannot be imported"):
        CudaSession(bundle, "denoiser", DEVICE)


def test_real_runtime_takes_addresses_and_options(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """On its CPU provider, with host memory in the place of the device's."""
    monkeypatch.setattr(module, "_PROVIDER", "CPUExecutionProvider")
    monkeypatch.setattr(module, "_MEMORY", "cpu")
    arrays = step_arrays(bundle)
    device: Any = SimpleNamespace(ordinal=0, stream=0)
    bound = CudaSession(bundle, "denoiser", device).bind(tensors(arrays), profile="step")
    bound.enqueue()
    names = [spec.name for spec in bundle.manifest.graphs["denoiser"].inputs]
    (expected,) = open_session(bundle, "denoiser", 1).run(["logits"], {name: arrays[name] for name in names})
    np.testing.assert_allclose(arrays["logits"], expected, rtol=1e-5, atol=1e-5)


def test_real_runtime_knows_the_options_of_a_run() -> None:
    library = next(Path(onnxruntime.__file__).parent.glob("capi/onnxruntime_pybind11_state*.so")).read_bytes()
    for option in (b"gpu_graph_id", b"disable_synchronize_execution_providers", b"arena_extend_strategy"):
        assert option + b"\0" in library
