"""The figures of `benchmarks/peers.py` as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

LEAST_PASS, LEAST_ANSWER = 2.0, 30.0
"""Ratios that are asked for, over the best that llama.cpp can do."""


def report(results: dict[str, Any]) -> str:
    """The whole page."""
    machine = results["machine"]
    parts = [
        "# Beside other runtimes, on the CPU",
        "Written by `python -m benchmarks.peers`: the same random text model (width 1024, 8 layers, FFN 3072, "
        "vocabulary 126,464), one thread, processor time, contestants in turns; a ratio is the median over the rounds "
        f"of the other's time over ours in the same round. {machine['processor']}, {machine['cores']} cores, load "
        f"{machine['load']} when it began and {machine['load_after']} at its end; PyTorch {machine['torch']}, ONNX "
        f"Runtime {machine['onnxruntime']}.",
        "## One pass without a cache",
        "1,000 prompt tokens and 64 masks. llama.cpp's example and the authors' loop compute logits of all 1,064 rows, "
        "as they do in every pass of theirs; we compute those of the 64 masks. The share of the "
        "masks for which llama.cpp's first pass picks the token that our fp32 picks says whether weights and work are "
        "the same. GFLOPS are the products that a contestant runs, over its time.",
        "\n".join(_passes(results)),
        "## A whole answer of 64 tokens",
        "\n".join(_answers(results)),
    ]
    return "\n\n".join(parts) + "\n"


def _passes(results: dict[str, Any]) -> Iterator[str]:
    ours = list(results["answers"]["ours"])
    yield f"| contestant | ms | GFLOPS | same picks | {' | '.join(f'{name} is faster by' for name in ours)} |"
    yield "|---" * (4 + len(ours)) + "|"
    for name, times in results["passes"].items():
        picks = results["same_picks"].get(name)
        rate = results["operations"][name] / median(times) / 1e9
        cells = [name, f"{1e3 * median(times):,.0f}", f"{rate:.0f}", "" if picks is None else f"{picks:.0%}"]
        cells += [f"{results['ratios'][name][own]:.2f}" for own in ours]
        yield f"| {' | '.join(cells)} |"
    best = results["answers"]["best"]
    reached = {own: results["ratios"][best][own] for own in ours}
    yield ""
    yield f"Asked for: {LEAST_PASS:.0f} times as fast as the best of llama.cpp, which here is {best}:"
    yield "; ".join(f"{own} {_verdict(found, LEAST_PASS)}" for own, found in reached.items()) + "."


def _answers(results: dict[str, Any]) -> Iterator[str]:
    answers = results["answers"]
    presets = list(next(iter(answers["ours"].values())))
    yield f"{answers['best']} commits one token in each of 64 such passes: {answers['best_seconds']:,.1f} s with"
    yield "loading. A random model is sure of nothing, so our selectors commit one token a pass too, except `realtime`,"
    yield "which takes 8 passes in all. What differs is how many of them go over the prompt: every 8th of `balanced`,"
    yield "every 32nd of `fast`, the first of `realtime`. What a trained model gains from committing several is not in"
    yield "here."
    yield ""
    heads = [*(f"{preset}, s" for preset in presets), *(f"{preset} is faster by" for preset in presets)]
    yield f"| | {' | '.join(heads)} |"
    yield "|---" * (1 + 2 * len(presets)) + "|"
    for name, own in answers["ours"].items():
        cells = [name, *(f"{median(own[preset]):.1f}" for preset in presets)]
        cells += [f"{found:.1f}, {_verdict(found, LEAST_ANSWER)}" for found in answers["ratios"][name].values()]
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield f"Asked for: {LEAST_ANSWER:.0f} times."


def _verdict(found: float, least: float) -> str:
    return "reached" if found >= least else "**missed**"
