"""The figures of `benchmarks/cpu.py` as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

TARGETS = {"refresh": 6.0, "step": 40.0, "exact, R=8": 24.0}
"""Least ratios that are asked for, on the mid-size model and one thread."""


def report(results: dict[str, Any]) -> str:
    """The whole page."""
    machine = results["machine"]
    parts = [
        "# Speed on the CPU",
        "Written by `python -m benchmarks.cpu`. Every figure of a table comes from one process run in which the "
        "contestants took turns; a ratio is the median of the authors' time over ours in the same round, times are "
        f"medians. {machine['processor']}, {machine['cores']} cores, load {machine['load']} when it began and "
        f"{machine['load_after']} at its end; PyTorch {machine['torch']}, ONNX Runtime {machine['onnxruntime']}. "
        "Both sides compute in float32."
        + (
            " The mid-size model's times are processor times of one thread, because other programs kept the cores busy."
            if machine["clock"] == "processor"
            else ""
        ),
        "The authors' loop is our copy of their procedure (`benchmarks/authors.py`), costs included: logits of every "
        "row of prompt and canvas and a float64 softmax over the vocabulary, in every pass.",
    ]
    for key, measured in results.items():
        if key.startswith("threads="):
            count = int(key.partition("=")[2])
            parts += [f"## {count} thread" + ("s" if count > 1 else "")]
            parts += ["\n".join(_sections(measured, judged=count == 1))]
    return "\n\n".join(parts) + "\n"


def _sections(measured: dict[str, Any], *, judged: bool) -> Iterator[str]:
    yield "Mid-size random model: width 1024, 8 layers, FFN 3072, vocabulary 126,464, prompt 1,000, canvas 64."
    yield "One pass, logits of the whole canvas wanted unless it says otherwise:"
    yield ""
    yield "| pass | ms | times as fast as the authors' | asked for |"
    yield "|---|---|---|---|"
    passes = measured["passes"]
    for name, taken in passes["seconds"].items():
        found = passes["ratios"][name]
        yield f"| {name} | {1e3 * median(taken):.1f} | {found:.1f} | {_verdict(found, TARGETS.get(name), judged)} |"
    yield ""
    yield "Its whole answers of 64 tokens. A random model is sure of nothing, so selectors commit one token a pass:"
    yield ""
    yield from _answers(measured["answers"], judged)
    yield ""
    yield "A step for one row of logits against prompts of several lengths. Joining keys and values copies"
    yield f"{measured['lengths']['bytes_per_position']:,} bytes per prompt position and step, reading in place none:"
    yield ""
    yield "| prompt positions | in place, ms | keys and values joined, ms | joined over in place |"
    yield "|---|---|---|---|"
    for length, times in measured["lengths"]["seconds"].items():
        ours, joined = times["in place"], times["joined"]
        share = median(b / a for a, b in zip(ours, joined, strict=True))
        yield f"| {int(length):,} | {1e3 * median(ours):.1f} | {1e3 * median(joined):.1f} | {share:.2f} |"
    yield ""
    some = next(iter(measured["demo"].values()))
    yield f"Demo checkpoint, {some['questions']} questions about its pictures, denoising alone; the authors' loop takes"
    yield f"{1e3 * median(some['authors_seconds']):.0f} ms for {some['authors_passes']:.1f} passes:"
    yield ""
    yield from _answers(measured["demo"], judged)
    yield ""
    holes = measured["template"]
    host = " and ".join(f"{ms:.2f} ms of a {kind}" for kind, ms in holes["host_ms"].items())
    yield f"With the template `{holes['template']}`, which takes {holes['passes']:.1f} passes, the host takes {host}."


def _answers(answers: dict[str, Any], judged: bool) -> Iterator[str]:
    same = all("same_as_authors" in own for own in answers.values())
    heads = ["configuration", "seconds", "passes (of which refreshes)", "times as fast as the authors'"]
    heads += ["host ms per step", "host's share of a step", "same answer" if same else "asked for"]
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for name, own in answers.items():
        kind = "step" if "step" in own["host_ms"] else "refresh"
        cells = [
            name,
            f"{median(own['seconds']):.3g}",
            f"{own['passes']:.1f} ({own['refreshes']:.1f})",
            f"{own['ratio']:.1f}",
            f"{own['host_ms'][kind]:.2f}",
            f"{100 * own['host_share'][kind]:.1f} %",
            f"{own['same_as_authors']} of {own['questions']}"
            if same
            else _verdict(own["ratio"], TARGETS.get(name), judged),
        ]
        yield f"| {' | '.join(cells)} |"


def _verdict(found: float, target: float | None, judged: bool) -> str:
    if target is None or not judged:
        return ""
    return f"{target:.0f}: " + ("reached" if found >= target else "**missed**")
