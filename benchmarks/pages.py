"""Parts of pages that programs write: each stands between two comments with its name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path


def replace_parts(page: Path, parts: Mapping[str, Iterable[str]]) -> None:
    """Exchanges the lines between `<!-- NAME -->` and `<!-- end of NAME -->`, by name."""
    text = page.read_text("utf-8")
    for name, lines in parts.items():
        before, rest = text.split(f"<!-- {name} -->")
        after = rest.split(f"<!-- end of {name} -->")[1]
        text = f"{before}<!-- {name} -->\n" + "\n".join(lines) + f"\n<!-- end of {name} -->{after}"
    page.write_text(text, "utf-8")
