"""Which shapes an engine is built for: the sizes of a bundle's buckets, as optimisation profiles."""

from __future__ import annotations

from lladav.manifest import CPU_DENOISER, Manifest, TensorSpec
from lladav.memory_plan import default_canvas
from lladav.records import Profile, Range

BATCH = Range(1, 1, 2)
"""Sequences side by side; classifier-free guidance computes two."""
NONE = Range(0, 0, 0)


def graph_profiles(manifest: Manifest) -> dict[str, tuple[Profile, ...]]:
    """The graphs that become engines, largest first, each with its profiles.

    The denoiser gets one profile per pass over the same weights. What is tuned for are the middle
    buckets of crops and of prompts, and the canvas that the default length of an answer takes.
    """
    buckets = manifest.buckets
    canvas = Range(buckets.canvas[0], default_canvas(manifest), buckets.canvas[-1])
    prompt = _ends_and_middle(buckets.prompt)
    both = Range(*(p + c for p, c in zip(prompt, canvas, strict=True)))
    # Rows of logits shrink to one as an answer fills.
    shared = {"batch": BATCH, "rows": Range(1, canvas.tuned, canvas.most), "keys": both}
    refresh = Profile(name="refresh", sizes={**shared, "window": both, "past": NONE, "kept": prompt})
    step = Profile(name="step", sizes={**shared, "window": canvas, "past": prompt, "kept": NONE})
    profiles: dict[str, tuple[Profile, ...]] = {"denoiser": (refresh, step)}
    tiles = Profile(name="tiles", sizes={"tiles": _ends_and_middle(buckets.tiles)})
    return profiles | {name: (tiles,) for name in manifest.graphs if name not in ("denoiser", CPU_DENOISER)}


def input_shapes(spec: TensorSpec, profile: Profile) -> tuple[tuple[int, ...], ...]:
    """Smallest, tuned and largest shape of an input."""
    return tuple(
        tuple(size if isinstance(size, int) else profile.sizes[size][kind] for size in spec.shape)
        for kind in range(len(Range._fields))
    )


def _ends_and_middle(sizes: tuple[int, ...]) -> Range:
    return Range(sizes[0], sizes[len(sizes) // 2], sizes[-1])
