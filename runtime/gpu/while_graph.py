"""The steps between two refreshes as one graph, which the GPU repeats until a refresh is due or all is decided.

The body is the captured step, and a kernel that decides whether it runs again; the host launches once and reads all
records when the last step is done. Whether this is faster than launching every step was not measured,
so that it is a choice and not the default.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lladav.errors import BackendError
from lladav.memory_plan import SLOTS
from lladav.runtime.gpu import kernels
from lladav.runtime.gpu.device import Graph
from lladav.runtime.gpu.loop import DeviceLoop, Flight
from lladav.runtime.gpu.loop_state import canvas_dtype, log_dtype
from lladav.runtime.gpu.steps import Launched, StepRunner
from lladav.runtime.results import StepEvent
from lladav.runtime.tracing import span

if TYPE_CHECKING:
    from lladav.runtime.gpu.window import GpuWindow


class BurstRunner(StepRunner):
    """Launches several steps at once, beside single ones.

    Args:
        window, answers, guided, dtype: see `StepRunner`.
    """

    def __init__(self, window: GpuWindow, answers: int, *, guided: bool, dtype: str) -> None:
        super().__init__(window, answers, guided=guided, dtype=dtype)
        capacity = window.size[2]
        # In turn, since the end of the one before is what a burst's time is counted from.
        self._bursts = [
            Launched(
                self._device.pinned((SLOTS, answers), log_dtype(capacity)),
                self._device.pinned((answers,), canvas_dtype(capacity)),
                self._device.event(),
                self._device.event(),
            )
            for _ in range(2)
        ]
        self._graphs: dict[int, Graph] = {}
        self._repeats = window.capturable

    def repeats(self, interval: int) -> bool:
        """Whether `burst` works for refreshes at that interval; not before a single step has warmed libraries up."""
        if interval not in self._graphs and self._repeats and self._replayed["step"].warm:
            try:
                self._graphs[interval] = self._device.repeat(lambda handle: self._enqueue_steps(interval, handle))
            except BackendError as error:
                self._repeats = False
                self._window.fallbacks.add(error.what)
        return interval in self._graphs

    def burst(self, interval: int) -> tuple[Launched, ...]:
        """Lets the GPU step until a refresh is due, the log is full or every canvas is done, and waits for it.

        Returns:
            What each step left, of an answer that is not done; canvases are those behind the last, and times those
            of all. The arrays are used again by the next burst but one.
        """
        self._bursts.reverse()
        burst, first = self._bursts[0], self._launched
        burst.began.record()
        self._graphs[interval].launch()
        self._device.download(burst.log, self._loop.log)
        self._device.download(burst.canvases, self._loop.canvases)
        burst.done.record()
        with span("wait"):
            burst.done.wait()
        self._launched = int(burst.canvases["state"]["step"].max())
        return tuple(
            Launched(burst.log[step % SLOTS], burst.canvases, burst.began, burst.done)
            for step in range(first, self._launched)
        )

    def _enqueue_steps(self, interval: int, handle: int) -> None:
        self._enqueue_step()
        kernels.continue_while(self._device, self._loop, handle, interval)


class BurstLoop(DeviceLoop):
    """The loop whose steps between refreshes are one launch; their events come together.

    Until single steps have run once, and where steps cannot be repeated, it is the loop that launches every step.
    """

    _runner: BurstRunner

    def __iter__(self) -> Iterator[tuple[StepEvent | None, ...]]:
        interval = self._request.knobs.refresh_interval
        if not self._runner.repeats(interval):
            yield from super().__iter__()
            return
        step, done = 0, False
        while not done:
            self._claim()
            if self._kind(step) == "refresh":
                launched = self._runner.launch("refresh")
                with span("wait"):
                    launched.done.wait()
                done = bool(launched.canvases["state"]["done"].all())
                yield self._read(Flight(step, "refresh", launched))
                step += 1
            else:
                steps = self._runner.burst(interval)
                done = bool(steps[-1].canvases["state"]["done"].all())
                yield from self._read_all(steps, step)
                step += len(steps)

    def _read_all(self, steps: tuple[Launched, ...], first: int) -> Iterator[tuple[StepEvent | None, ...]]:
        """What the steps of a burst decided; each took its share."""
        last, earlier = steps[-1], self._earlier
        assert earlier is not None, "the first step is a refresh"
        graph_ms = last.done.ms_since(last.began) / len(steps)
        ms = last.done.ms_since(earlier) / len(steps)
        self._earlier = last.done
        for step, launched in enumerate(steps, first):
            self._claim()
            yield self._tell(Flight(step, "step", launched), ms, graph_ms)
