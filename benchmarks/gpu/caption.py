"""The time of a whole 128-token caption: a picture of 2 x 2 crops, 3,699 prompt positions and its question, `fast`."""

from __future__ import annotations

from statistics import median
from typing import Any

import numpy as np

from benchmarks.gpu.finding import Finding, Table, verdict
from benchmarks.gpu.rig import Rig, each_backend
from lladav.backends import Limits
from lladav.bundle import Bundle
from lladav.runtime.config import GenerationConfig

MOST_MS = 900.0
QUESTION = "Describe the picture."


def caption(rig: Rig, bundle: Bundle, length: int, rounds: int) -> Finding:
    """Captions of new pictures, one after the other.

    Random weights are sure of nothing, so the selector commits one token a pass: as many passes as tokens, which
    no real model needs.

    Args:
        rig: what answers.
        bundle: with a vision tower.
        length: tokens.
        rounds: captions that count, after one that warms up.
    """
    vision = bundle.manifest.geometry.vision
    assert vision is not None
    draw = np.random.default_rng(0)
    side = 2 * vision.image_size
    config = GenerationConfig(preset="fast", gen_length=length, stop=())

    def measure(backend: str) -> dict[str, Any]:
        with rig.pipeline(backend, bundle, Limits(canvas=length)) as pipeline:
            answers = [
                pipeline.generate(QUESTION, images=[draw.integers(0, 256, (side, side, 3), np.uint8)], config=config)
                for _ in range(rounds + 1)
            ]
        last = answers[-1]
        return {
            "prompt_tokens": last.prompt_tokens,
            "tokens": len(last.token_ids),
            "passes": last.passes,
            "fallbacks": list(last.fallbacks),
            "timings_ms": {name: median(answer.timings_ms[name] for answer in answers[1:]) for name in last.timings_ms},
        }

    found, refused = each_backend(rig, measure)
    rows = [
        (
            *(backend, f"{own['prompt_tokens']:,}", str(own["tokens"])),
            ", ".join(f"{count} {kind}" for kind, count in own["passes"].items()),
            f"{own['timings_ms']['denoise']:.0f}",
            verdict(own["timings_ms"]["total"], MOST_MS, ".0f"),
        )
        for backend, own in found.items()
    ]
    columns = ("backend", "prompt", "tokens", "passes", "denoise ms", f"total ms (at most {MOST_MS:g})")
    table = Table("Captions with preset `fast`, medians", columns, tuple(rows))
    return Finding({"backends": found, "refused": refused}, (table,))
