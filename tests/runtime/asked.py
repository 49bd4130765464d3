"""What several tests ask the tiny model."""

from __future__ import annotations

import numpy as np
from PIL import Image

PROMPT = [5, 17, 80, 33, 60]
TEMPLATE = '{"a": "{{4}}", "b": {{bool}}, "n": {{int}}, "side": "{{1|2|3}}"}'


def picture(seed: int = 0, size: tuple[int, int] = (80, 60)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)
