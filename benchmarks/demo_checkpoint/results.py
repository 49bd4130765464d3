"""The file of figures, to which every measurement adds its own section."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def add_results(path: Path, section: str, measured: dict[str, Any]) -> None:
    """Adds to a section of a JSON file, which need not exist yet, and prints what was added."""
    results = json.loads(path.read_text("utf8")) if path.exists() else {}
    results.setdefault(section, {}).update(measured)
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(section, json.dumps(measured, indent=2), flush=True)
