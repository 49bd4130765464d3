"""The denoising loop as the GPU runs it alone: the host launches steps and reads what they decided, one behind."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lladav.errors import BackendError
from lladav.manifest import SpecialTokens
from lladav.runtime.embedding import EmbeddingTable
from lladav.runtime.gpu.device import Event
from lladav.runtime.gpu.loop_state import Rules
from lladav.runtime.gpu.steps import Launched
from lladav.runtime.loop import Loop, Request
from lladav.runtime.pacing import PassTimes, pass_key
from lladav.runtime.results import PassKind, StepEvent
from lladav.runtime.tracing import span

if TYPE_CHECKING:
    from lladav.runtime.gpu.window import GpuDenoiser

_AHEAD = 2
"""Steps that may be on their way before the host reads the first of them."""


@dataclass(frozen=True)
class Flight:
    """A step that was launched."""

    step: int
    kind: PassKind
    launched: Launched


class DeviceLoop(Loop):
    """The loop that decides on the GPU.

    A step is launched before the one before it has been read while many masks are left. The last few
    are awaited one by one, because a step too many changes nothing and takes as long as any other.

    Args:
        maker, table, tokens, request, times: see `Loop`. The request has no template, no deadline and
            no masks inside its prompts, which are the host's business.
    """

    def __init__(
        self, maker: GpuDenoiser, table: EmbeddingTable, tokens: SpecialTokens, request: Request, times: PassTimes
    ) -> None:
        super().__init__(maker, table, tokens, request, times)
        self._runner = maker.runner(self._window.size, len(self.canvases), guided=self._guided)
        self._runner.start(
            Rules(
                request.schedule,
                self._selector,
                request.config,
                suppressed=self._suppressed,
                aliases=tokens.mask_aliases,
                stops=request.stops,
            ),
            tokens.mask,
        )
        schedule = request.schedule
        # Most that a step has committed so far; nothing is known of an adaptive selector before the first.
        self._pace = schedule.transfers(schedule.block_length)[0] if self._scheduled else schedule.gen_length
        self._paced = self._scheduled
        self._earlier: Event | None = None

    def __iter__(self) -> Iterator[tuple[StepEvent | None, ...]]:
        flying: deque[Flight] = deque()
        launched = 0
        while True:
            self._claim()
            while len(flying) < _AHEAD and (not flying or self._undecided > (len(flying) + 1) * self._pace):
                kind = self._kind(launched)
                with span("launch"):
                    flying.append(Flight(launched, kind, self._runner.launch(kind)))
                launched += 1
            flight = flying.popleft()
            with span("wait"):
                flight.launched.done.wait()
            done = bool(flight.launched.canvases["state"]["done"].all())
            yield self._read(flight)
            if done:
                return

    @property
    def _undecided(self) -> int:
        return max(canvas.undecided for canvas in self.canvases)

    def _read(self, flight: Flight) -> tuple[StepEvent | None, ...]:
        """What a step decided, and how long it took."""
        launched = flight.launched
        graph_ms = launched.done.ms_since(launched.began)
        ms = launched.done.ms_since(self._earlier) if self._earlier is not None else graph_ms
        self._earlier = launched.done
        return self._tell(flight, ms, graph_ms)

    def _tell(self, flight: Flight, ms: float, graph_ms: float) -> tuple[StepEvent | None, ...]:
        """Tells the host's canvases what a step decided.

        Raises:
            BackendError: logits that are no numbers.
        """
        launched = flight.launched
        self._step = flight.step
        events: list[StepEvent | None] = []
        most = 0
        for canvas, log, after in zip(self.canvases, launched.log, launched.canvases, strict=True):
            state = log["state"]
            if state["step"] != flight.step or after["state"]["step"] <= flight.step:
                events.append(None)
                continue
            if state["invalid"]:
                raise BackendError(
                    f"pass {flight.step + 1} gave logits that are no numbers for {state['invalid']} positions",
                    cure="run `lladav verify BUNDLE CHECKPOINT`; export again with --dtype bf16 or fp32 if float16 "
                    "overflows",
                )
            chosen, forced = int(state["chosen"]), int(state["forced"])
            decided = log["decided"][: chosen + forced]
            canvas.tokens[: canvas.length] = after["tokens"][: canvas.length]
            canvas.confidences[: canvas.length] = after["confidences"][: canvas.length]
            rows = decided["position"].astype("int64")
            canvas.tokens[rows], canvas.confidences[rows] = decided["token"], decided["confidence"]
            canvas.block = int(state["block"])
            canvas.commit(rows)
            canvas.scan()
            most = max(most, chosen)
            events.append(self._event(canvas, flight.kind, rows[:chosen], rows[chosen:], ms, graph_ms))
        self._pace = max(self._pace, most) if self._paced else most
        self._paced = True
        self._times.add(pass_key(flight.kind, self._window.size), ms)
        self._step = flight.step + 1
        return tuple(events)
