"""What checks run on: a device, and the backends that may load a bundle on it."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.finding import CannotRunError
from lladav.backends import NAMES, Limits, executables
from lladav.bundle import Bundle
from lladav.errors import LladavError
from lladav.memory_plan import Sizes
from lladav.records import Library, read_records
from lladav.runtime.gpu.backend import GpuBackend
from lladav.runtime.gpu.cuda_device import CudaDevice
from lladav.runtime.gpu.device import Address, Device
from lladav.runtime.gpu.executable import BoundPass, Executable
from lladav.runtime.gpu.kernels import load_kernels
from lladav.runtime.gpu.ort_cuda import CudaSession
from lladav.runtime.pipeline import Pipeline

Load = Callable[[str], Executable]
_LIBRARIES: dict[str, Library] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


@dataclass(frozen=True)
class Rig:
    """A device and its backends.

    Attributes:
        backends: names, the best first.
        open_device: opens the GPU; called once.
        loader: what loads graphs, from the backend's name, the bundle, the device, the sizes and whether the
            library may capture by itself.
    """

    backends: tuple[str, ...]
    open_device: Callable[[], Device]
    loader: Callable[[str, Bundle, Device, Sizes, bool], Load]

    @functools.cached_property
    def device(self) -> Device:
        """The GPU; open as long as the process lives, since graphs and events of every check refer to it.

        Raises:
            CannotRunError: there is none, or it cannot be used.
        """
        try:
            return self.open_device()
        except LladavError as error:
            raise CannotRunError(f"no GPU can be used: {error}") from error

    @contextmanager
    def pipeline(
        self, backend: str, bundle: Bundle, limits: Limits, *, captured: bool = True, bursts: bool = False
    ) -> Iterator[Pipeline]:
        """A bundle loaded; its memory is given back at the end.

        Args:
            backend: one of `backends`.
            bundle: an open bundle.
            limits: of answers.
            captured: whether passes are replayed as graphs; else each is enqueued anew.
            bursts: whether the GPU repeats the steps between two refreshes by itself.

        Raises:
            LladavError: the backend does not load.
        """
        sizes = limits.sizes(bundle)
        load = self.loader(backend, bundle, self.device, sizes, captured)
        wanted = load if captured else lambda graph: Plain(load(graph))
        loaded = GpuBackend(backend, self.device, bundle, wanted, sizes, bursts=bursts)
        try:
            yield Pipeline(bundle, loaded)
        finally:
            self.device.synchronize()
            loaded.memory.free()


def real_rig() -> Rig:
    """This machine's GPU with every backend but the CPU's."""
    names = tuple(name for name in NAMES if name != "cpu")
    return Rig(names, lambda: CudaDevice(load_kernels()), load_graphs)


def load_graphs(name: str, bundle: Bundle, device: Device, sizes: Sizes, captured: bool) -> Load:
    """As `lladav.backends` does; engines that are missing are built first."""
    if name in _LIBRARIES:
        _build_engines(bundle, _LIBRARIES[name], device)
    elif not captured:
        return lambda graph: CudaSession(bundle, graph, device, captures=False)
    return executables(name, bundle, device, sizes)


def _build_engines(bundle: Bundle, library: Library, device: Device) -> None:
    from lladav.engines import build, load_target, target_names

    targets = [
        target.name
        for target in map(load_target, target_names())
        if (target.library, target.compute_capability) == (library, device.compute_capability)
    ]
    if targets and not any(read_records(bundle.path, target) for target in targets):
        build(bundle.path, targets[0])


class Plain:
    """An `Executable` whose passes are not captured."""

    def __init__(self, graph: Executable) -> None:
        self._graph = graph
        self.weights, self.scratch = graph.weights, graph.scratch

    def bind(self, tensors: Any, *, profile: str, scratch: Address = 0) -> BoundPass:
        bound = self._graph.bind(tensors, profile=profile, scratch=scratch)
        bound.capturable = False
        return bound


def each_backend(rig: Rig, measure: Callable[[str], Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Runs a measurement on every backend.

    Returns:
        What it gave, and why other backends gave nothing, by name.

    Raises:
        CannotRunError: no backend works; with the reason of each.
    """
    rig.device  # noqa: B018 - without a device there is one reason, and not one per backend
    found, refused = {}, {}
    for name in rig.backends:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what could not be captured is among the figures
            try:
                found[name] = measure(name)
            except (LladavError, CannotRunError) as error:
                refused[name] = str(error)
    if not found:
        raise CannotRunError("no backend works: " + "; ".join(f"{name}: {why}" for name, why in refused.items()))
    return found, refused
