"""The authors' loop on a GPU in fp16, eager and compiled: what one of its passes takes, which are as many as tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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

WARM_UP, ROUNDS = 3, 5


def authors(
    geometry: Geometry,
    tokens: SpecialTokens,
    prompts: Sequence[int],
    canvases: Sequence[int],
    ours: Mapping[str, float],
) -> Finding:
    """Every prompt and canvas, on random weights.

    Args:
        geometry: of the language model.
        tokens: ids with a role.
        prompts: positions.
        canvases: positions.
        ours: milliseconds of our steps, by size, as far as they were measured.

    Raises:
        CannotRunError: PyTorch for CUDA is missing.
    """
    torch = cuda_torch()
    sizes = [(prompt, canvas) for prompt in prompts for canvas in canvases]
    rows = np.random.default_rng(0).standard_normal((max(prompts), geometry.language.hidden_size), np.float32)
    figures: dict[str, dict[str, float]] = {}
    with torch.device("cuda"):
        for name, compiled in (("eager", False), ("compiled", True)):
            loop = random_loop(geometry, tokens, torch.float16, compiled=compiled)
            figures[name] = {f"{p}+{c}": pass_ms(loop, rows[:p], c, torch.cuda.synchronize) for p, c in sizes}
            del loop
            torch.cuda.empty_cache()
    return Finding({"ms_per_pass": figures, "our_steps_ms": dict(ours)}, (table(figures, ours),))


def table(figures: Mapping[str, Mapping[str, float]], ours: Mapping[str, float]) -> Table:
    """A pass of the authors' loop beside our step, which takes its place between two refreshes."""
    columns = ("prompt + canvas", *(f"{name}, ms" for name in figures), "our step, ms")
    columns += tuple(f"times as fast as {name}" for name in figures)
    rows = []
    for size in next(iter(figures.values())):
        times = [own[size] for own in figures.values()]
        step = ours.get(size)
        compared = [f"{step:.2f}", *(f"{taken / step:.1f}" for taken in times)] if step else [""] * (1 + len(times))
        rows.append((size.replace("+", " + "), *(f"{taken:.1f}" for taken in times), *compared))
    return Table("Passes of the authors' loop, fp16", columns, tuple(rows))


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


def pass_ms(loop: AuthorsLoop, prompt: np.ndarray, canvas: int, synchronize: Callable[[], None]) -> float:
    """Median time of passes that commit one position behind a prompt `[P, D]`, after some that warm up and compile."""
    state = loop.start(prompt, canvas)
    times = []
    for _ in range(WARM_UP + ROUNDS):
        synchronize()
        began = perf_counter()
        loop.step(state, len(prompt) + canvas, 1)
        synchronize()
        times.append(1e3 * (perf_counter() - began))
    return median(times[WARM_UP:])
