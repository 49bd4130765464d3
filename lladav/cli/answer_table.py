"""What `lladav run` says of an answer beside its text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lladav.cli import screen

if TYPE_CHECKING:
    from lladav.runtime import Answer


def warn_if_cut(answer: Answer, which: str = "") -> None:
    """Tells on stderr that the prompt of an answer, or of `which`, was too long."""
    if answer.truncated_tokens:
        screen.stderr().print(
            f"warning: {which}the last {answer.truncated_tokens:,} of "
            f"{answer.prompt_tokens + answer.truncated_tokens:,} prompt positions were cut off at the model's limit"
        )


def print_timings(answer: Answer, loading: float) -> None:
    """A table of stages on stderr; `loading` are the milliseconds that the bundle took."""
    table = screen.table(None, "stage", "ms", "", numbers=(1,))
    table.add_row("load", f"{loading:,.1f}", f"backend {answer.backend}; not in the total")
    for stage, spent in answer.timings_ms.items():
        note = ""
        if stage == "denoise" and answer.steps:
            note = f"{_passes(answer)} ({answer.knobs.preset})"
        elif stage == "preprocess" and answer.tiles:
            crops = sum(answer.tiles)
            note = f"{crops} crop{'s' if crops > 1 else ''}, {sum(answer.image_tokens):,} tokens"
        elif stage == "feature_cache" and answer.reused_pictures:
            note = f"{answer.reused_pictures} of {len(answer.tiles)} pictures known from before"
        elif stage == "warm_up":
            note = "not counted against the deadline"
        elif stage == "total":
            table.add_section()
            tokens = f"{answer.prompt_tokens} prompt and {len(answer.token_ids)} answer tokens"
            note = f"{tokens}, ended by {answer.finish_reason}"
            if answer.forced_tokens:
                note += f", {answer.forced_tokens} forced by it"
        table.add_row(stage.replace("_", " "), f"{spent:,.1f}", note)
    screen.stderr().print(table)


def _passes(answer: Answer) -> str:
    """For example `1 refresh of 40.2 ms, 3 steps of 9.1 ms`."""
    parts = []
    for kind, plural in (("refresh", "refreshes"), ("step", "steps")):
        spent = [step.ms for step in answer.steps if step.kind == kind]
        if spent:
            parts.append(f"{len(spent)} {kind if len(spent) == 1 else plural} of {sum(spent) / len(spent):,.1f} ms")
    return ", ".join(parts)
