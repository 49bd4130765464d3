"""Bundles whose graphs compute something else than what was exported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import onnx

from lladav.bundle import Bundle


@contextmanager
def changed_graph(bundle: Bundle, name: str) -> Iterator[onnx.GraphProto]:
    """A graph to be changed, which then takes the place of the bundle's; the manifest has its new size."""
    file = bundle.file(f"{name}.onnx")
    model = onnx.load(str(file), load_external_data=False)
    yield model.graph
    contents = model.SerializeToString()
    file.write_bytes(contents)
    entries = tuple(
        e.model_copy(update={"bytes": len(contents)}) if e.path == file.name else e for e in bundle.manifest.files
    )
    bundle.manifest.model_copy(update={"files": entries}).write(bundle.path)
