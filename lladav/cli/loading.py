"""From options to a loaded pipeline, for every verb that answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lladav.cli import screen
from lladav.errors import OptionError

if TYPE_CHECKING:
    from lladav.manifest import Buckets
    from lladav.runtime import GenerationConfig, Pipeline


def load_pipeline(
    bundle: Path,
    backend: str,
    config: GenerationConfig,
    *,
    threads: int | None = None,
    max_prompt: int | None = None,
    max_pixels: int | None = None,
    feature_cache_bytes: int | None = None,
) -> Pipeline:
    """Loads a bundle for answers like `config` asks for; says why a GPU is not used although there is one.

    Raises:
        OptionError: there is no such backend, or as `lladav.backends.load`.
    """
    from lladav.backends import NAMES, BackendName, Limits, choose
    from lladav.bundle import Bundle
    from lladav.runtime import Pipeline
    from lladav.runtime.images import MAX_PIXELS
    from lladav.runtime.pictures import FEATURE_CACHE_BYTES

    names: tuple[BackendName | Literal["auto"], ...] = ("auto", *NAMES)
    found = next((name for name in names if name == backend), None)
    if found is None:
        raise OptionError(f"there is no backend {backend!r}", cure=f"choose one of {', '.join(names)}")
    opened = Bundle.open(bundle)
    canvas = _canvas(config, opened.manifest.buckets)
    limits = Limits(prompt=max_prompt, canvas=canvas, sequences=2 if config.cfg_scale > 0 else 1)
    choice = choose(opened, found, limits, threads)
    for name, reason in choice.passed_over.items() if choice.backend.name == "cpu" else ():
        screen.stderr().print(f"warning: there is a GPU, but {name} does not load: {reason}", highlight=False)
    return Pipeline(
        opened,
        choice.backend,
        MAX_PIXELS if max_pixels is None else max_pixels,
        FEATURE_CACHE_BYTES if feature_cache_bytes is None else feature_cache_bytes,
    )


def _canvas(config: GenerationConfig, buckets: Buckets) -> int | None:
    """Positions to lay memory out for; how long a template or a suffix is shows only when it is tokenized."""
    if config.template is not None or config.suffix:
        return buckets.canvas[-1]
    if config.gen_length is None:
        return None
    return min(config.gen_length + len(config.suffix_ids), buckets.canvas[-1])
