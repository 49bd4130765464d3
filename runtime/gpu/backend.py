"""A bundle's graphs on one GPU, with all memory laid out when they are loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lladav.bundle import Bundle
from lladav.errors import BackendError
from lladav.memory_plan import MemoryPlan, Sizes, plan_memory
from lladav.runtime.embedding import EmbeddingTable
from lladav.runtime.gpu.device import Address, Device
from lladav.runtime.gpu.executable import BoundPass, Executable, LayerTime, Tensor
from lladav.runtime.gpu.memory import DeviceMemory
from lladav.runtime.gpu.replay import Fallbacks, Replayed
from lladav.runtime.gpu.usage import DeviceUsage
from lladav.runtime.gpu.window import GpuDenoiser, GpuModel

if TYPE_CHECKING:
    from lladav.runtime.gpu.frame_reader import FrameReader

Floats = npt.NDArray[np.float32]

_GRAPHS = ("denoiser", "vision_encoder", "connector")
# Of what is free after weights: libraries allocate a little by themselves when they first run.
_SHARE = 0.95
_BLOCK = 64 << 20


class GpuBackend:
    """See `Backend`.

    Args:
        name: of the backend.
        device: the GPU.
        bundle: an open bundle.
        load: loads one of the bundle's graphs.
        sizes: largest that answers may have; a prompt of 0 takes the largest bucket for which there is memory.
        bursts: whether the GPU repeats the steps between two refreshes by itself, where it can; see `while_graph`.

    Raises:
        BackendError: a graph cannot be loaded, or there is not enough memory; it says how much is missing.
    """

    def __init__(
        self,
        name: str,
        device: Device,
        bundle: Bundle,
        load: Callable[[str], Executable],
        sizes: Sizes,
        *,
        bursts: bool = False,
    ) -> None:
        self.name = name
        self._bursts = bursts
        self.setup = device.name
        self.sequences: int | None = sizes.batch
        self._device = device
        self._bundle = bundle
        before, _ = device.memory()
        self._graphs = {graph: load(graph) for graph in _GRAPHS if graph in bundle.manifest.graphs}
        self._weights = before - device.memory()[0]
        self.memory = DeviceMemory(device, self._plan(sizes))
        self._free, _ = device.memory()
        self._fallbacks = Fallbacks()
        self._encoder: GpuTileEncoder | None = None
        self._frames: FrameReader | None = None
        _upload_table(device, bundle, self.memory)

    def _plan(self, sizes: Sizes) -> MemoryPlan:
        """For the sizes asked for, or the largest prompt that fits."""
        scratch = max(graph.scratch for graph in self._graphs.values())

        def planned(prompt: int) -> MemoryPlan:
            return plan_memory(self._bundle.manifest, replace(sizes, prompt=prompt), scratch=scratch)

        if sizes.prompt:
            return planned(sizes.prompt)
        free = self._device.memory()[0] * _SHARE
        plans = [planned(prompt) for prompt in self._bundle.manifest.buckets.prompt]
        # Where nothing fits, the smallest is refused with its numbers.
        return max((plan for plan in plans if plan.total <= free), key=lambda plan: plan.total, default=plans[0])

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """Why some passes are not captured although they should be."""
        return self._fallbacks.reasons

    def usage(self) -> DeviceUsage:
        """What of the device's memory is taken now."""
        return DeviceUsage(
            weights=self._weights,
            files=sum(graph.weights for graph in self._graphs.values()),
            plan=self.memory.plan,
            later=self._free - self._device.memory()[0],
            shared=self._device.shares_memory,
        )

    def keep(self) -> None:
        """See `Backend`."""
        for graph in self._graphs.values():
            graph.keep_compiled()

    def denoiser(self, table: EmbeddingTable) -> GpuDenoiser:
        """See `Backend`."""
        manifest = self._bundle.manifest
        graph = self._graphs["denoiser"]
        model = GpuModel(self._device, graph, manifest, table, self.memory, self._fallbacks)
        return GpuDenoiser(model, bursts=self._bursts)

    def tile_encoder(self) -> GpuTileEncoder:
        """See `Backend`."""
        if self._encoder is None:
            graphs = self._graphs["vision_encoder"], self._graphs["connector"]
            self._encoder = GpuTileEncoder(self._device, *graphs, self.memory, self._fallbacks)
        return self._encoder

    def frames(self) -> FrameReader:
        """See `Backend`."""
        if self._frames is None:
            from lladav.runtime.gpu.frame_reader import FrameReader

            vision = self._bundle.manifest.geometry.vision
            assert vision is not None
            file = self._bundle.file(self._bundle.manifest.tables["image_newline"].file)
            self._frames = FrameReader(self._device, self.tile_encoder(), vision.side, np.fromfile(file, "<f4"))
        return self._frames


class GpuTileEncoder:
    """A `TileEncoder` on a GPU; every bucket of crops is captured once.

    Args:
        device: that everything runs on.
        encoder, connector: the graphs.
        memory: laid out for the largest bucket.
        fallbacks: gets why passes could not be captured.
    """

    def __init__(
        self,
        device: Device,
        encoder: Executable,
        connector: Executable,
        memory: DeviceMemory,
        fallbacks: Fallbacks,
    ) -> None:
        self._device = device
        self._graphs = {"vision_encoder": encoder, "connector": connector}
        self._memory = memory
        self._fallbacks = fallbacks
        self._passes: dict[int, dict[str, Replayed]] = {}
        self._points = [device.event() for _ in range(1 + len(self._graphs))]

    def encode(self, pixels: Floats, out: Floats) -> dict[str, float]:
        """See `TileEncoder`."""
        self._device.upload(self._memory.addresses["pixel_values"], pixels)
        self._enqueue(len(pixels))
        self._device.download(out, self._memory.addresses["image_features"])
        self._device.synchronize()
        return self._spent()

    def encode_there(self, crops: Address, part: slice, features: Address) -> dict[str, float]:
        """As `encode`, from and to the device.

        Args:
            crops: of `[T, 3, S, S]` float32.
            part: one bucket of them.
            features: of `[T, N, D]` float32, whose part is written.
        """
        count, sizes = part.stop - part.start, {}
        for name in ("pixel_values", "image_features"):
            sizes[name] = 4 * math.prod(self._memory.region(name).shape[1:])
        at, device = self._memory.addresses, self._device
        device.copy(at["pixel_values"], crops + part.start * sizes["pixel_values"], count * sizes["pixel_values"])
        self._enqueue(count)
        target = features + part.start * sizes["image_features"]
        device.copy(target, at["image_features"], count * sizes["image_features"])
        device.synchronize()
        return self._spent()

    def time_layers(self, tiles: int, runs: int) -> dict[str, Sequence[Sequence[LayerTime]]]:
        """Of both graphs, for a bucket of crops; see `BoundPass`."""
        return {name: bound.time_layers(runs) for name, bound in self._bind(tiles).items()}

    def _enqueue(self, tiles: int) -> None:
        """Puts both graphs on the stream, with points around them."""
        if tiles not in self._passes:
            self._passes[tiles] = {
                name: Replayed(self._device, bound.enqueue, self._fallbacks, capturable=bound.capturable)
                for name, bound in self._bind(tiles).items()
            }
        self._points[0].record()
        for replayed, point in zip(self._passes[tiles].values(), self._points[1:], strict=True):
            replayed.run()
            point.record()

    def _spent(self) -> dict[str, float]:
        pairs = zip(self._graphs, self._points, self._points[1:], strict=False)
        return {name: after.ms_since(before) for name, before, after in pairs}

    def _bind(self, tiles: int) -> dict[str, BoundPass]:
        at = self._memory.addresses
        tensors = {
            name: Tensor(at[name], (tiles, *self._memory.region(name).shape[1:]))
            for name in ("pixel_values", "vision_features", "image_features")
        }
        encoder = self._graphs["vision_encoder"].bind(
            {name: tensors[name] for name in ("pixel_values", "vision_features")},
            profile="tiles",
            scratch=at["scratch"],
        )
        connector = self._graphs["connector"].bind(
            {name: tensors[name] for name in ("vision_features", "image_features")},
            profile="tiles",
            scratch=at["scratch"],
        )
        return {"vision_encoder": encoder, "connector": connector}


def _upload_table(device: Device, bundle: Bundle, memory: DeviceMemory) -> None:
    """Copies the embedding table, a part at a time.

    Raises:
        BackendError: its file is not as large as the plan has it.
    """
    file = bundle.file(bundle.manifest.tables["embed_tokens"].file)
    region = memory.region("embed_tokens")
    table = np.memmap(file, np.uint8, "r")
    if table.nbytes != region.bytes:
        raise BackendError(
            f"{file} has {table.nbytes:,} bytes instead of {region.bytes:,}",
            cure="copy the bundle again from where it was exported, or export it again",
        )
    for start in range(0, table.nbytes, _BLOCK):
        device.upload(memory.addresses["embed_tokens"] + start, np.ascontiguousarray(table[start : start + _BLOCK]))
