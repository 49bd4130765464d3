"""The records in device memory that the loop's kernels work on; `runtime/kernels/loop.cuh` has the same in C++.

What differs between answers is in these records, never among a kernel's arguments: a captured graph
keeps its arguments, and so one serves all answers of its size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lladav.runtime.config import GenerationConfig, Schedule
from lladav.runtime.gpu.device import Address
from lladav.runtime.selectors import Entropy, Factor, Fixed, Frechet, Selector, Threshold

_WORD = 1 << 64

RULES = np.dtype(
    [
        ("ids", "<u8"),
        ("restrictions", "<u8"),
        ("seed", "<u8"),
        ("parameter", "<f8"),
        ("length", "<i4"),
        ("block_length", "<i4"),
        ("steps_per_block", "<i4"),
        ("selector", "<i4"),
        ("accept_last", "<i4"),
        ("random_ranks", "<i4"),
        ("every_row", "<i4"),
        ("suppressed", "<i4"),
        ("aliases", "<i4"),
        ("stops", "<i4"),
        ("temperature", "<f4"),
        ("guidance", "<f4"),
    ]
)
"""How one answer is made."""

STATE = np.dtype(
    [
        ("step", "<i4"),
        ("block", "<i4"),
        ("block_step", "<i4"),
        ("block_masks", "<i4"),
        ("stop", "<i4"),
        ("masks_left", "<i4"),
        ("undecided", "<i4"),
        ("done", "<i4"),
        ("chosen", "<i4"),
        ("forced", "<i4"),
        ("invalid", "<i4"),
        ("unused", "<i4", 5),
    ]
)
"""How far one canvas is: `stop` is a position or -1; `done` makes every kernel pass the canvas over.

The last three are counts of the last step: rows that the selector chose, rows that were committed because
of the deadline, and rows whose logits were no numbers, in which case nothing was committed.
"""

DECISION = np.dtype([("position", "<i4"), ("token", "<i4"), ("confidence", "<f8")])
"""One row that a step decided."""

RESTRICTION = np.dtype([("mode", "<i4"), ("begin", "<i4"), ("end", "<i4")])
"""What may stand in one row: a mode and a span of the answer's ids."""

FREE, ONLY, ALL_BUT = range(3)
"""The modes: anything, only these ids, all but these."""


def canvas_dtype(capacity: int) -> np.dtype[np.void]:
    """One canvas on the device.

    Args:
        capacity: rows C that there is room for.
    """
    fields = [
        ("state", STATE),
        ("confidences", "<f8", capacity),
        ("entropies", "<f8", capacity),
        ("tokens", "<i4", capacity),
        ("ids", "<i4", capacity),
        ("decided", "<i4", 2 * capacity),
        ("masked", "u1", capacity),
    ]
    packed = np.dtype(fields)
    padding = -packed.itemsize % 16
    return np.dtype([*fields, ("padding", "u1", padding)])


def log_dtype(capacity: int) -> np.dtype[np.void]:
    """The record of one step of one canvas.

    `state` has the number and the block of the step, and counts what is left after it. The first
    `chosen + forced` of `decided` are what it decided, the best first, and then what was forced. A row can
    be both if the model picked a mask for it, which is why there is room for twice the canvas.
    """
    return np.dtype([("state", STATE), ("decided", DECISION, 2 * capacity)])


@dataclass(frozen=True)
class LoopMemory:
    """Where the records lie.

    Attributes:
        rules: one `RULES`.
        canvases: `[sequences]` of `canvas_dtype(capacity)`.
        whole: one int32; not 0 makes the next step commit everything and end.
        log: `[slots, sequences]` of `log_dtype(capacity)`; step s writes to slot s modulo `slots`.
        capacity: the canvas bucket.
        sequences: canvases, without the second sequences of guidance.
    """

    rules: Address
    canvases: Address
    whole: Address
    log: Address
    capacity: int
    sequences: int
    slots: int


@dataclass(frozen=True)
class Rules:
    """How one answer is made.

    Attributes:
        suppressed: ids that are never picked.
        aliases: ids that leave their row masked.
        stops: sequences of ids that end the answer, in the order they are looked for.
    """

    schedule: Schedule
    selector: Selector
    config: GenerationConfig
    suppressed: tuple[int, ...] = ()
    aliases: tuple[int, ...] = ()
    stops: tuple[tuple[int, ...], ...] = ()

    def ids(self) -> np.ndarray:
        """Int32 ids that `record` refers to; those of restrictions may follow behind them."""
        stops = [number for stop in self.stops for number in (len(stop), *stop)]
        return np.array([*self.suppressed, *self.aliases, *stops], np.int32)

    def record(self, ids: Address, restrictions: Address = 0, *, every_row: bool = False) -> np.ndarray:
        """`[1]` of `RULES`.

        Args:
            ids: where `ids()` lies.
            restrictions: `[sequences, capacity]` of `RESTRICTION`, or 0.
            every_row: evaluate all rows that are asked for, because the host chose them, and not only
                those that may be committed.
        """
        number, parameter = _number_and_parameter(self.selector)
        record = np.zeros(1, RULES)
        values = {
            "ids": ids,
            "restrictions": restrictions,
            "seed": self.config.seed % _WORD,
            "parameter": parameter,
            "length": self.schedule.gen_length,
            "block_length": self.schedule.block_length,
            "steps_per_block": self.schedule.steps_per_block,
            "selector": number,
            "accept_last": isinstance(self.selector, Factor) and self.selector.accept_last,
            "random_ranks": self.config.remasking == "random",
            "every_row": every_row,
            "suppressed": len(self.suppressed),
            "aliases": len(self.aliases),
            "stops": len(self.stops),
            "temperature": self.config.temperature,
            "guidance": self.config.cfg_scale + 1,
        }
        for name, value in values.items():
            record[name] = value
        return record

    def canvases(self, capacity: int, sequences: int, mask: int) -> np.ndarray:
        """`[sequences]` of `canvas_dtype(capacity)`: nothing is decided yet.

        Args:
            mask: the mask token.
        """
        length = self.schedule.gen_length
        canvases = np.zeros(sequences, canvas_dtype(capacity))
        canvases["state"]["stop"] = -1
        canvases["state"]["block_masks"] = self.schedule.block_length
        canvases["state"]["masks_left"] = canvases["state"]["undecided"] = length
        canvases["ids"] = canvases["tokens"] = mask
        canvases["masked"][:, :length] = True
        return canvases


def _number_and_parameter(selector: Selector) -> tuple[int, float]:
    """As the kernel `lladav_commit` knows a selector."""
    match selector:
        case Fixed():
            return 0, 0.0
        case Threshold():
            return 1, selector.threshold
        case Factor():
            return 2, selector.factor
        case Frechet():
            return 3, selector.delta
        case Entropy():
            return 4, selector.gamma
    raise TypeError(f"no kernel knows the selector {selector}")
