"""The sizes of the demo model: LLaDA-V's architecture, small."""

from __future__ import annotations

from lladav.geometry import Geometry, LanguageGeometry, VisionGeometry

# Five layers run; the tower's config.json says six, because LLaDA-V drops the last one.
VISION = VisionGeometry(
    hidden_size=256,
    intermediate_size=768,
    layers=5,
    heads=4,
    image_size=96,
    patch_size=12,
    layer_norm_eps=1e-6,
)
CANVAS = 16
"""Tokens of an answer."""
PINPOINTS = [(1, 1), (2, 1), (1, 2), (3, 1), (1, 3), (2, 2)]


def geometry(vocab_rows: int) -> Geometry:
    """The whole model for a tokenizer of `vocab_rows` entries."""
    language = LanguageGeometry(
        hidden_size=256,
        intermediate_size=1024,
        layers=4,
        heads=4,
        kv_heads=4,
        head_size=64,
        vocab_rows=vocab_rows,
        rope_theta=500000.0,
        rms_norm_eps=1e-5,
        max_positions=1024,
    )
    return Geometry(language=language, vision=VISION)
