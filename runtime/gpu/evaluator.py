"""Picks from logits on the device, for a loop that decides on the host: a few bytes per row come back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from lladav.errors import BackendError
from lladav.memory_plan import IDS
from lladav.runtime.config import GenerationConfig, Schedule
from lladav.runtime.evaluation import Sampling
from lladav.runtime.gpu import kernels
from lladav.runtime.gpu.device import Address, Device
from lladav.runtime.gpu.loop_state import ALL_BUT, FREE, ONLY, RESTRICTION, LoopMemory, Rules, canvas_dtype
from lladav.runtime.gpu.memory import DeviceMemory
from lladav.runtime.sampling import Picks
from lladav.runtime.selectors import Fixed
from lladav.runtime.template import Restriction


@dataclasses.dataclass(frozen=True)
class DeviceLogits:
    """Logits of a pass that wait on the device.

    Attributes:
        address: of `[B, C, V]` float32.
        count: rows of each sequence that were asked for, the first ones.
    """

    address: Address
    count: int


class DeviceEvaluator:
    """An `Evaluator` of `DeviceLogits`; noise comes from the kernels' own generator.

    Args:
        device: that everything runs on.
        memory: where everything lies.
        loop: records of as many canvases as there are answers.
        sampling: of every pass.
        vocabulary: length V of a row of logits.
        canvas_start: window position of the first canvas position.
    """

    def __init__(
        self,
        device: Device,
        memory: DeviceMemory,
        loop: LoopMemory,
        sampling: Sampling,
        vocabulary: int,
        canvas_start: int,
    ) -> None:
        self._device = device
        self._at = memory.addresses
        self._loop = loop
        self._vocabulary = vocabulary
        self._canvas_start = canvas_start
        self._guided = sampling.cfg_scale > 0
        capacity = loop.capacity
        # The host decides; to the kernel this is a canvas without blocks or stops, all of whose rows count.
        rules = Rules(
            Schedule(gen_length=capacity, block_length=capacity, steps=capacity),
            Fixed(),
            GenerationConfig(temperature=sampling.temperature, cfg_scale=sampling.cfg_scale, seed=sampling.seed),
            suppressed=sampling.suppressed,
        )
        self._ids = _Spans(device, self._at["ids"], rules.ids())
        self._restrictions = device.pinned((capacity,), RESTRICTION)
        self._picked = device.pinned((1,), canvas_dtype(capacity))
        self._canvases = rules.canvases(capacity, loop.sequences, 0)
        self._logits: Address = 0
        self._sequence = 0
        self._rows = np.zeros(0, np.int64)
        device.upload(self._at["rules"], rules.record(self._at["ids"], self._at["restrictions"], every_row=True))
        device.upload(self._at["whole"], np.zeros(1, np.int32))

    def pick(self, logits: DeviceLogits, sequence: int, rows: np.ndarray, rules: Mapping[int, Restriction]) -> Picks:
        """See `Evaluator`.

        Raises:
            BackendError: the rules name more ids than there is room for.
        """
        self._logits = logits.address + self._offset(sequence)
        self._sequence = sequence
        self._rows = rows
        if self._guided:
            unconditional = logits.address + self._offset(self._loop.sequences + sequence)
            kernels.guide(self._device, self._loop, self._logits, unconditional, logits.count * self._vocabulary)
        self._restrict({int(rows[index]): rule for index, rule in rules.items()})
        picked = self._evaluate(0, logits.count)
        self._canvases["state"]["step"][sequence] += 1
        return Picks(picked["tokens"][rows].astype(np.int64), picked["confidences"][rows], picked["entropies"][rows])

    def pick_again(self, index: int, rule: Restriction) -> tuple[int, float]:
        """See `Evaluator`; forbidden entries of the row are overwritten, and a rule only ever narrows."""
        row = int(self._rows[index])
        self._restrict({0: rule})
        picked = self._evaluate(row, 1)
        return int(picked["tokens"][0]), float(picked["confidences"][0])

    def _offset(self, sequence: int) -> int:
        return sequence * self._loop.capacity * self._vocabulary * 4

    def _evaluate(self, first: int, count: int) -> np.void:
        """Evaluates some rows of the last pass; its picks are numbered from 0.

        The host waits here, once per pass.
        """
        canvases = self._loop.canvases + self._sequence * self._canvases.itemsize
        own = dataclasses.replace(self._loop, canvases=canvases, sequences=1)
        self._picked[0] = self._canvases[self._sequence]
        self._device.upload(canvases, self._picked)
        kernels.evaluate(
            self._device,
            own,
            self._logits + first * self._vocabulary * 4,
            self._at["rows"] + first * 8,
            count,
            self._vocabulary,
            first=self._canvas_start,
        )
        self._device.download(self._picked, canvases)
        self._device.synchronize()
        picked: np.void = self._picked[0].copy()
        return picked

    def _restrict(self, rules: Mapping[int, Restriction]) -> None:
        """Uploads what may stand in which row."""
        self._device.synchronize()
        self._restrictions["mode"] = FREE
        for row, rule in rules.items():
            begin = self._ids.begin(rule.ids)
            self._restrictions[row] = (ONLY if rule.allowed else ALL_BUT, begin, begin + len(rule.ids))
        self._device.upload(self._at["restrictions"], self._restrictions)


class _Spans:
    """Sets of ids on the device; each is uploaded when it is first met.

    Args:
        device: that they are uploaded to.
        start: of the region.
        first: int32 ids that are there from the beginning.
    """

    def __init__(self, device: Device, start: Address, first: np.ndarray) -> None:
        self._device = device
        self._start = start
        self._begins: dict[bytes, int] = {}
        self._end = 0
        self._append(first)

    def begin(self, ids: np.ndarray) -> int:
        """Where a set `[n]` int64 begins.

        Raises:
            BackendError: there is no room for it.
        """
        key = ids.tobytes()
        if key not in self._begins:
            self._begins[key] = self._append(ids.astype(np.int32))
        return self._begins[key]

    def _append(self, ids: np.ndarray) -> int:
        begin, self._end = self._end, self._end + len(ids)
        if self._end > IDS:
            raise BackendError(
                f"the holes of this template name more than {IDS:,} tokens in all, and the GPU has no room for more",
                cure="use fewer different kinds of holes, or --backend cpu",
            )
        if len(ids):
            self._device.upload(self._start + begin * ids.itemsize, ids)
        return begin
