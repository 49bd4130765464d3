"""What works here: the GPU, and every backend that loads the demo checkpoint and answers."""

from __future__ import annotations

from time import perf_counter
from typing import Any

from benchmarks.gpu.bundles import DEMO
from benchmarks.gpu.finding import Finding, Table
from benchmarks.gpu.rig import Rig, each_backend
from lladav.backends import Limits
from lladav.bundle import Bundle
from lladav.runtime.config import GenerationConfig

_PICTURE = DEMO.parent / "pictures" / "00-octopus.png"
_CONFIG = GenerationConfig(gen_length=16)


def look(rig: Rig, bundle: Bundle) -> Finding:
    """One question to every backend, twice: passes are captured the second time."""
    free, total = rig.device.memory()
    gpu = {
        "name": rig.device.name,
        "compute_capability": rig.device.compute_capability,
        "free_bytes": free,
        "bytes": total,
    }

    def answer(name: str) -> dict[str, Any]:
        began = perf_counter()
        with rig.pipeline(name, bundle, Limits(canvas=_CONFIG.gen_length)) as pipeline:
            loaded = perf_counter() - began
            for _ in range(2):
                given = pipeline.generate("What is this?", images=[_PICTURE], config=_CONFIG)
            return {
                "seconds_to_load": loaded,
                "answer": given.text,
                "ms": given.timings_ms["total"],
                "fallbacks": list(given.fallbacks),
            }

    found, refused = each_backend(rig, answer)
    rows = [
        (name, "answers", f"{own['answer']!r} in {own['ms']:.1f} ms; {'; '.join(own['fallbacks']) or 'no fallbacks'}")
        for name, own in found.items()
    ]
    rows += [(name, "does not load", why.replace("\n", " ")) for name, why in refused.items()]
    title = (
        f"{gpu['name']}, compute capability {gpu['compute_capability']}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    )
    table = Table(title, ("backend", "", "answer or reason"), tuple(rows))
    return Finding({"gpu": gpu, "backends": found, "refused": refused}, (table,))
