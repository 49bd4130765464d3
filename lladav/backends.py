"""Which backend answers: engines, ONNX Runtime on the GPU, or ONNX Runtime on the CPU.

Here runtime and engines meet, which know nothing of one another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from lladav.bundle import Bundle
from lladav.errors import LladavError, OptionError
from lladav.machine import check_threads, examine
from lladav.memory_plan import Sizes, default_canvas, most_tiles
from lladav.records import Library
from lladav.runtime.backend import Backend, CpuBackend
from lladav.runtime.images import MAX_PIXELS
from lladav.runtime.pictures import FEATURE_CACHE_BYTES
from lladav.runtime.pipeline import Pipeline

if TYPE_CHECKING:
    from lladav.runtime.gpu.device import Device
    from lladav.runtime.gpu.executable import Executable

BackendName = Literal["tensorrt", "tensorrt-rtx", "ort-cuda", "cpu"]
NAMES: tuple[BackendName, ...] = get_args(BackendName)
"""The best first."""

_LIBRARIES: dict[str, Library] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


@dataclass(frozen=True)
class Limits:
    """What answers on a GPU may need at most; its memory is laid out for it when a bundle is loaded.

    Attributes:
        prompt: positions; None is the largest bucket for which there is memory.
        canvas: positions of answer and suffix; None is what an answer of the bundle's default length takes.
        sequences: side by side; guidance takes two for every answer.
    """

    prompt: int | None = None
    canvas: int | None = None
    sequences: int = 1

    def sizes(self, bundle: Bundle) -> Sizes:
        """As buckets of a bundle; a prompt of 0 is left open.

        Raises:
            OptionError: no bucket is large enough.
        """
        buckets = bundle.manifest.buckets
        prompt = _bucket("--max-prompt", self.prompt, buckets.prompt) if self.prompt is not None else 0
        canvas = default_canvas(bundle.manifest)
        if self.canvas is not None:
            canvas = _bucket("--max-canvas", self.canvas, buckets.canvas)
        return Sizes(self.sequences, prompt, canvas, most_tiles(bundle.manifest))


@dataclass(frozen=True)
class Choice:
    """A backend, and why better ones were passed over on a machine that has a GPU.

    Attributes:
        passed_over: what each said, by name; empty where the backend was asked for by name or there is no GPU.
    """

    backend: Backend
    passed_over: Mapping[str, str] = field(default_factory=dict)


def load(
    bundle: str | Path,
    backend: BackendName | Literal["auto"] = "auto",
    *,
    limits: Limits = Limits(),
    threads: int | None = None,
    max_pixels: int = MAX_PIXELS,
    feature_cache_bytes: int = FEATURE_CACHE_BYTES,
) -> Pipeline:
    """Loads a bundle on a backend.

    Args:
        bundle: folder made by `lladav export`.
        backend: `auto` takes the best that really loads; `pipeline.backend.name` says which.
        limits: of answers, on a GPU.
        threads: of one operator, on the CPU.
        max_pixels, feature_cache_bytes: see `Pipeline.load`.

    Raises:
        BundleError: the bundle is damaged.
        OptionError: a limit that no bucket holds, or threads that there are no cores for.
        BackendError, EngineError: the backend that was asked for does not load.
    """
    opened = Bundle.open(bundle)
    return Pipeline(opened, choose(opened, backend, limits, threads).backend, max_pixels, feature_cache_bytes)


def choose(bundle: Bundle, name: BackendName | Literal["auto"], limits: Limits, threads: int | None = None) -> Choice:
    """Opens the backend of that name, or the best that loads; arguments and errors as in `load`."""
    check_threads(threads)
    if name == "cpu":
        return Choice(CpuBackend(bundle, threads))
    sizes = limits.sizes(bundle)
    if name != "auto":
        return Choice(_open(name, bundle, _open_device(), sizes))
    try:
        device = _open_device()
    except LladavError as error:
        machine = examine()
        there = bool(machine.gpus or machine.l4t)
        return Choice(CpuBackend(bundle, threads), {"its backend": str(error)} if there else {})
    passed_over: dict[str, str] = {}
    for candidate in NAMES:
        if candidate != "cpu":
            try:
                return Choice(_open(candidate, bundle, device, sizes), passed_over)
            except LladavError as error:
                passed_over[candidate] = str(error)
    return Choice(CpuBackend(bundle, threads), passed_over)


def _bucket(option: str, wanted: int, buckets: tuple[int, ...]) -> int:
    fitting = next((bucket for bucket in buckets if bucket >= wanted), None)
    if fitting is None or wanted < 1:
        raise OptionError(
            f"{option} {wanted:,} fits no bucket: they are {', '.join(map(str, buckets))}",
            cure=f"pass {option} 1 to {buckets[-1]}, or export again with other buckets",
        )
    return fitting


def _open_device() -> Device:
    from lladav.runtime.gpu.cuda_device import CudaDevice
    from lladav.runtime.gpu.kernels import load_kernels

    return CudaDevice(load_kernels())


def _open(name: str, bundle: Bundle, device: Device, sizes: Sizes) -> Backend:
    from lladav.runtime.gpu.backend import GpuBackend

    return GpuBackend(name, device, bundle, executables(name, bundle, device, sizes), sizes)


def executables(name: str, bundle: Bundle, device: Device, sizes: Sizes) -> Callable[[str], Executable]:
    """What loads a graph of a bundle on a GPU.

    Args:
        name: of a backend.
        bundle: with engines, if the backend needs them.
        device: the GPU.
        sizes: largest that answers may have.

    Raises:
        EngineError: there are no engines for this machine.
    """
    if name in _LIBRARIES:
        return _plan_loader(_LIBRARIES[name], bundle, device, sizes)
    return _session_loader(bundle, device)


def _session_loader(bundle: Bundle, device: Device) -> Callable[[str], Executable]:
    from lladav.runtime.gpu.ort_cuda import CudaSession

    return lambda graph: CudaSession(bundle, graph, device)


def _plan_loader(library: Library, bundle: Bundle, device: Device, sizes: Sizes) -> Callable[[str], Executable]:
    """Plans for this machine's GPU, once it is sure that they may be loaded."""
    from lladav.engines.execution import load_plan
    from lladav.engines.preflight import check_engines, find_engines

    prompt = sizes.prompt or bundle.manifest.buckets.prompt[0]
    target = find_engines(bundle, library)
    records = {r.graph: r for r in check_engines(bundle, target, prompt, sizes.canvas, sizes.batch)}
    return lambda graph: load_plan(records[graph], bundle, device.stream)
