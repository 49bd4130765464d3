"""Questions to the GPU's loop on the host, and what of its answers has to be as on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from host_device import HostDevice

from lladav.runtime import Answer, Pipeline

PROMPT = [5, 17, 230, 7, 11, 29]

MakeGpu = Callable[..., tuple[Pipeline, HostDevice]]
"""Loads the tiny bundle on a device that is the host."""

CONFIGS: dict[str, dict[str, Any]] = {
    "authors": {"preset": "exact"},
    "blocks": {"preset": "exact", "block_length": 4, "steps": 8},
    "cached": {"preset": "exact", "refresh_interval": 4},
    "quality": {"preset": "quality"},
    "balanced": {"preset": "balanced"},
    "fast": {"preset": "fast"},
    "threshold": {"selector": "threshold", "threshold": 0.01, "refresh_interval": 0},
    "entropy": {"selector": "entropy", "gamma": 8.0},
    "guided": {"preset": "exact", "cfg_scale": 1.5, "steps": 8},
    "guided, cached": {"cfg_scale": 0.5, "refresh_interval": 2},
    "suffix": {"suffix_ids": (9, 8), "preset": "exact"},
    "template": {"template": '{"a": "{{3}}", "b": {{bool}}, "n": {{int:2}}}'},
}


def told(answer: Answer) -> list[tuple[Any, ...]]:
    return [(s.step, s.kind, s.block, s.positions, s.tokens, s.canvas, s.masks_left) for s in answer.steps]
