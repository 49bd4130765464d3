"""The emoji drawings: which exist, what they show, and their pixels.

Every style is an npm package of SVG (or WebP) drawings keyed, directly or through a name,
by Unicode code point; `emojibase-data` gives each code point one English name, a group and
a subgroup. A style is rendered once into one array of RGBA pixels and cached on disk.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TRAIN_STYLES = ("noto", "noto-v1", "fxemoji", "fluent-emoji", "fluent-emoji-flat", "fluent-emoji-3d", "emojione")
HELD_OUT_STYLES = ("twemoji", "openmoji")

# emojibase groups: 0 smileys, 1 people, 2 components, 3 animals-nature, 4 food-drink,
# 5 travel-places, 6 activities, 7 objects, 8 symbols, 9 flags.
CONCRETE_GROUPS = (3, 4, 5, 6, 7)
FLAG_GROUP = 9

# Pixels are kept larger than the tower's crop so that training can zoom without blur.
RENDER_SIZE = 160


@dataclasses.dataclass(frozen=True)
class Thing:
    """One class: a code point and what emojibase says about it.

    Attributes:
        code: code point(s), lower-case hex joined by "-", without variation selectors.
        name: the one correct answer to "What is this?".
        group: emojibase group index, or None for components.
        subgroup: emojibase subgroup key, e.g. "animal-mammal".
    """

    code: str
    name: str
    group: int | None
    subgroup: str

    @property
    def concrete(self) -> bool:
        return self.group in CONCRETE_GROUPS


@dataclasses.dataclass(frozen=True)
class Style:
    """All drawings of one style.

    Attributes:
        name: style name.
        codes: code point of each drawing.
        pixels: `[N, RENDER_SIZE, RENDER_SIZE, 4]` uint8, straight (not premultiplied) alpha.
    """

    name: str
    codes: list[str]
    pixels: np.ndarray


def _read(path: Path) -> Any:
    return json.loads(path.read_text("utf8"))


def _code(text: str) -> str:
    return re.sub(r"-?fe0f", "", text.lower()).strip("-")


def _flat(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def clean_name(label: str) -> str:
    """Plain lower-case ASCII words, so that the answer is easy to type and to compare."""
    ascii_label = unicodedata.normalize("NFKD", label.replace("\u2019", "'")).encode("ascii", "ignore").decode()
    return re.sub(r"\s+", " ", ascii_label.lower()).strip()


def load_things(root: Path) -> dict[str, Thing]:
    """Everything but flags, by code point, in emojibase order."""
    base = root / "emojibase-data" / "en"
    subgroups = {s["order"]: s["key"] for s in _read(base / "messages.json")["subgroups"]}
    things = {}
    for entry in _read(base / "data.json"):
        group = entry.get("group")
        if group is None or group == FLAG_GROUP:
            continue
        code = _code(entry["hexcode"])
        things[code] = Thing(code, clean_name(entry["label"]), group, subgroups[entry["subgroup"]])
    return things


def _codes_by_name(root: Path) -> dict[str, str]:
    """Flattened name -> code point, from every naming scheme at hand (slug styles need it)."""
    out: dict[str, str] = {}
    for style in ("twemoji", "openmoji", "noto", "fluent-emoji-flat"):
        chars = root / "@iconify-json" / style / "chars.json"
        for code, icon in (_read(chars) if chars.exists() else {}).items():
            out.setdefault(_flat(icon), _code(code))
    for entry in _read(root / "emojibase-data" / "en" / "data.json"):
        out.setdefault(_flat(entry["label"]), _code(entry["hexcode"]))
    for source in ("joypixels", "github", "iamcal", "emojibase", "cldr"):
        path = root / "emojibase-data" / "en" / "shortcodes" / f"{source}.json"
        for code, names in (_read(path) if path.exists() else {}).items():
            for name in [names] if isinstance(names, str) else names:
                out.setdefault(_flat(name), _code(code))
    for code in list(out.values()):
        if "-" not in code:
            out.setdefault(_flat(unicodedata.name(chr(int(code, 16)), "")), code)
    return out


def _icons(root: Path, style: str) -> dict[str, str]:
    """Code point -> icon name of one SVG style."""
    folder = root / "@iconify-json" / style
    chars = folder / "chars.json"
    listed = {_code(code): icon for code, icon in _read(chars).items()} if chars.exists() else {}
    if listed:
        return listed
    table = _codes_by_name(root)
    icons = _read(folder / "icons.json")
    out: dict[str, str] = {}
    for name in [*icons["icons"], *icons.get("aliases", {})]:
        code = table.get(_flat(name))
        if code:
            out.setdefault(code, name)
    return out


def _render_svg(collection: dict[str, Any], icon: str, size: int) -> Image.Image:
    import resvg_py  # only rendering needs it

    entry = collection["icons"].get(icon)
    if entry is None:
        alias = collection["aliases"][icon]
        entry = {**collection["icons"][alias["parent"]], **alias}
    width, height, left, top = (
        entry.get(key, collection.get(key, default))
        for key, default in (("width", 16), ("height", 16), ("left", 0), ("top", 0))
    )
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width}" height="{height}" viewBox="{left} {top} {width} {height}">{entry["body"]}</svg>'
    )
    data = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size)
    raw = base64.b64decode(data) if isinstance(data, str) else bytes(data)
    return Image.open(io.BytesIO(raw)).convert("RGBA")


def square(image: Image.Image, size: int) -> Image.Image:
    """Centres a drawing on a transparent square without changing its aspect ratio."""
    image = image.convert("RGBA")
    if image.size == (size, size):
        return image
    scale = size / max(image.size)
    fitted = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    canvas = Image.new("RGBA", (size, size), (0, 0, 0, 0))
    canvas.paste(fitted, ((size - fitted.width) // 2, (size - fitted.height) // 2))
    return canvas


def draw(root: Path, style: str, codes: list[str], size: int) -> dict[str, Image.Image]:
    """Renders drawings of one style; code points the style lacks are left out.

    Args:
        root: the `node_modules` folder with the packages.
        style: one of `TRAIN_STYLES` or `HELD_OUT_STYLES`.
        codes: code points wanted.
        size: side of the square in pixels.

    Returns:
        Code point -> RGBA image of `size` x `size`.
    """
    if style == "fluent-emoji-3d":
        folder = root / "@lobehub" / "fluent-emoji-3d" / "assets"
        files = {_code(path.stem): path for path in sorted(folder.glob("*.webp"))}
        return {code: square(Image.open(files[code]), size) for code in codes if code in files}
    collection = _read(root / "@iconify-json" / style / "icons.json")
    icons = _icons(root, style)
    return {code: square(_render_svg(collection, icons[code], size), size) for code in codes if code in icons}


def load_style(root: Path, style: str, cache: Path, size: int = RENDER_SIZE) -> Style:
    """Renders one style, or reads what an earlier call rendered."""
    path = cache / f"{style}-{size}.npz"
    if not path.exists():
        images = draw(root, style, list(load_things(root)), size)
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(path, codes=np.array(list(images)), pixels=np.stack([np.asarray(i) for i in images.values()]))
    with np.load(path) as stored:
        return Style(style, [str(code) for code in stored["codes"]], stored["pixels"])


def paste(drawings: Sequence[np.ndarray], columns: int, cell: int, ground: str = "white") -> Image.Image:
    """Drawings `[H, W, 4]` in a grid of `cell` pixel squares on one ground colour."""
    rows = len(drawings) // columns
    picture = Image.new("RGB", (columns * cell, rows * cell), ground)
    for i, pixels in enumerate(drawings):
        drawing = Image.fromarray(pixels).resize((cell, cell))
        picture.paste(drawing, (i % columns * cell, i // columns * cell), drawing)
    return picture
