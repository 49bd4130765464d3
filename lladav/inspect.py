"""What a bundle holds and what it needs, without loading it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lladav.bundle import Bundle
from lladav.geometry import Geometry, LanguageGeometry, VisionGeometry
from lladav.linear_layers import FLOAT, Numbers
from lladav.manifest import CPU_DENOISER, MANIFEST_NAME, Manifest
from lladav.prompt_kv import position_bytes
from lladav.records import EngineRecord, read_records


@dataclass(frozen=True)
class MemoryNeeds:
    """Bytes that answering takes, from the geometry.

    Attributes:
        weights: of all graphs, as stored.
        mapped: tables read by row from their files; they need no memory of their own.
        prompt_kv: keys and values of one prompt position, over all layers, as ONNX Runtime keeps them
            on the CPU.
        logits: buffer of one sequence for each canvas bucket.
    """

    weights: int
    mapped: int
    prompt_kv: int
    logits: dict[int, int]


@dataclass(frozen=True)
class Inspection:
    """A bundle that is whole.

    Attributes:
        parameters: of the model's parts, those that are in use.
        total_bytes: of all files that were exported, the manifest included.
        checksums: whether the contents of all files and engines were compared with their sha256.
        engines: what was built of it since.
    """

    path: Path
    manifest: Manifest
    parameters: dict[str, int]
    total_bytes: int
    memory: MemoryNeeds
    checksums: bool
    engines: tuple[EngineRecord, ...]

    def to_json(self) -> dict[str, Any]:
        """The object that `lladav inspect --json` prints."""
        memory = self.memory
        return {
            "path": str(self.path),
            "parameters": self.parameters,
            "total_bytes": self.total_bytes,
            "memory_bytes": {
                "weights": memory.weights,
                "mapped": memory.mapped,
                "prompt_kv": memory.prompt_kv,
                "logits": {str(bucket): count for bucket, count in memory.logits.items()},
            },
            "checksums": "match" if self.checksums else "not compared",
            "manifest": self.manifest.model_dump(mode="json"),
            "engines": [record.model_dump(mode="json") for record in self.engines],
        }


def inspect(
    bundle: str | Path, *, checksums: bool = False, progress: Callable[[int], None] = lambda _: None
) -> Inspection:
    """Opens a bundle and says what is in it.

    Args:
        bundle: folder made by `lladav export`.
        checksums: read every file and compare its sha256.
        progress: called with the bytes read since the last call.

    Raises:
        BundleError: a file is missing, damaged or altered.
        EngineError: an engine or its record is.
    """
    opened = Bundle.open(bundle)
    engines = read_records(opened.path)
    if checksums:
        opened.check_contents(progress)
        for record in engines:
            record.check_contents(opened.path, progress)
    manifest = opened.manifest
    return Inspection(
        path=opened.path,
        manifest=manifest,
        parameters=count_parameters(manifest.geometry),
        total_bytes=sum(e.bytes for e in manifest.files) + opened.file(MANIFEST_NAME).stat().st_size,
        memory=_memory(manifest),
        checksums=checksums,
        engines=engines,
    )


def count_parameters(geometry: Geometry) -> dict[str, int]:
    """Parameters in use: of the language model, the vision tower and the connector."""
    counts = {"language_model": _language(geometry.language)}
    if geometry.vision is not None:
        wide, narrow = geometry.language.hidden_size, geometry.vision.hidden_size
        counts["vision_tower"] = _vision(geometry.vision)
        counts["connector"] = (narrow + 1) * wide + (wide + 1) * wide + wide
    return counts


def _language(g: LanguageGeometry) -> int:
    attention = 2 * g.hidden_size * g.head_size * (g.heads + g.kv_heads)
    layer = attention + 3 * g.hidden_size * g.intermediate_size + 2 * g.hidden_size
    return g.layers * layer + 2 * g.vocab_rows * g.hidden_size + g.hidden_size


def _vision(g: VisionGeometry) -> int:
    d, inner = g.hidden_size, g.intermediate_size
    layer = 4 * (d + 1) * d + (d + 1) * inner + (inner + 1) * d + 4 * d
    return g.layers * layer + 3 * g.patch_size**2 * d + d + g.tokens * d


def _memory(manifest: Manifest) -> MemoryNeeds:
    sizes = {entry.path: entry.bytes for entry in manifest.files}
    language = manifest.geometry.language
    width = Numbers.of(manifest, cpu=CPU_DENOISER in manifest.graphs).width
    return MemoryNeeds(
        weights=sum(sizes[name] for name in {graph.weights for graph in manifest.graphs.values()}),
        mapped=sum(sizes[table.file] for table in manifest.tables.values()),
        prompt_kv=position_bytes(language, width, manifest.prompt_kv),
        logits={bucket: bucket * language.vocab_rows * FLOAT for bucket in manifest.buckets.canvas},
    )
