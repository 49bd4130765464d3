"""The authors' loop on a GPU in fp16, eager and compiled: what one of its passes takes, which are as many as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.gpu.finding import Finding, Table
from benchmarks.gpu.roofline import cuda_torch
from lladav.geometry import Geometry
from lladav.manifest import SpecialTokens

if TYPE_CHECKING:
    import torch

    from benchmarks.authors import AuthorsLoop


def authors(geometry: Geometry, tokens: SpecialTokens, prompts: Sequence[int], canvases: Sequence[int]) -> Finding:
    """Every prompt and canvas, on random weights.

    Raises:
        CannotRunError: PyTorch for CUDA is missing.
    """
    torch = cuda_torch()
    sizes = [(prompt, canvas) for prompt in prompts for canvas in canvases]
    figures: dict[str, dict[str, float]] = {}
    with torch.device("cuda"):
        for name, compiled in (("eager", False), ("compiled", True)):
            loop = random_loop(geometry, tokens, torch.float16, compiled=compiled)
            figures[name] = {f"{p}+{c}": pass_ms(loop, p, c, torch.cuda.synchronize) for p, c in sizes}
            del loop
            torch.cuda.empty_cache()
    rows = [(f"{p} + {c}", *(f"{figures[name][f'{p}+{c}']:.1f}" for name in figures)) for p, c in sizes]
    table = Table("Milliseconds per pass of the authors' loop, fp16", ("prompt + canvas", *figures), tuple(rows))
    return Finding({"ms_per_pass": figures}, (table,))


def random_loop(geometry: Geometry, tokens: SpecialTokens, dtype: torch.dtype, *, compiled: bool) -> AuthorsLoop:
    """The language model on PyTorch's default device."""
    import torch

    from benchmarks.authors import AuthorsLoop
    from lladav.export.reference import LladaV

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        model: Any = LladaV(geometry.model_copy(update={"vision": None})).eval()
    finally:
        torch.set_default_dtype(before)
    embedding = model.model.embed_tokens.weight.detach()
    return AuthorsLoop(torch.compile(model) if compiled else model, embedding, tokens)


def pass_ms(loop: AuthorsLoop, prompt: int, canvas: int, synchronize: Any, rounds: int = 5) -> float:
    """Median time of a pass that commits one position, after three that warm up and compile."""
    width = loop._embedding.shape[1]
    state = loop.start(np.random.default_rng(0).standard_normal((prompt, width), np.float32), canvas)
    times = []
    for _ in range(3 + rounds):
        synchronize()
        began = perf_counter()
        loop.step(state, prompt + canvas, 1)
        synchronize()
        times.append(1e3 * (perf_counter() - began))
    return median(times[3:])
