"""The answer filling in, step by step."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from lladav.runtime import Answer, Pipeline, StepEvent

_MASK = "░░"
# Colour of a token by the confidence it was committed with, from the top.
_COLOURS = ((0.9, "green"), (0.6, "yellow"), (0.3, "dark_orange"), (0.0, "red"))


def follow(pipe: Pipeline, events: Iterator[StepEvent | Answer], console: Console) -> Answer:
    """Shows every step on `console` and returns the answer; one line per step where it is no terminal.

    Args:
        pipe: whose tokenizer names the tokens.
        events: from `pipe.stream`.
        console: live only where it is a terminal.
    """
    canvas = _Canvas(pipe)
    if not console.is_terminal:
        for event in events:
            if isinstance(event, Answer):
                return event
            console.print(canvas.line(event), soft_wrap=True)
    with Live(Text("reading the prompt ...", "dim"), console=console, transient=True, auto_refresh=False) as live:
        for event in events:
            if isinstance(event, Answer):
                return event
            live.update(canvas.picture(event), refresh=True)
    raise AssertionError("a stream ends with its answer")


class _Canvas:
    """Remembers how sure every position was."""

    def __init__(self, pipe: Pipeline) -> None:
        self._tokenizer = pipe.tokenizer
        self._masks = frozenset(pipe.bundle.manifest.tokens.mask_aliases)
        self._confidences: dict[int, float] = {}
        self._names: dict[int, str] = {}

    def picture(self, event: StepEvent) -> Group:
        self._confidences.update(zip(event.positions, event.confidences, strict=True))
        fresh = set(event.positions)
        text = Text()
        for position, (token, guess) in enumerate(zip(event.canvas, event.provisional, strict=True)):
            if token in self._masks:
                text.append(_MASK if guess in self._masks else self._name(guess), "dim")
            else:
                colour = next(c for least, c in _COLOURS if self._confidences.get(position, 1.0) >= least)
                text.append(self._name(token), f"bold reverse {colour}" if position in fresh else colour)
        return Group(text, Text(f"\n{self._status(event)}", "dim"))

    def line(self, event: StepEvent) -> Text:
        pieces = zip(event.positions, event.tokens, event.confidences, strict=True)
        committed = "  ".join(f"{position}:{self._name(token)!r} {sure:.2f}" for position, token, sure in pieces)
        return Text(f"{self._status(event)}  {committed}")

    def _status(self, event: StepEvent) -> str:
        return f"step {event.step + 1}  block {event.block + 1}  {event.masks_left} masks  {event.ms:.1f} ms" + (
            ", prompt refreshed" if event.kind == "refresh" else ""
        )

    def _name(self, token: int) -> str:
        if token not in self._names:
            self._names[token] = self._tokenizer.decode([token], skip_special=False)
        return self._names[token]
