"""`lladav profile` on every backend: its files, and whether layers and memory add up to what they are parts of."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.gpu.finding import Finding, Table
from benchmarks.gpu.rig import Rig, each_backend
from lladav.backends import Limits
from lladav.bundle import Bundle
from lladav.runtime.config import GenerationConfig
from lladav.runtime.pipeline import Pipeline
from lladav.runtime.profiling import MemoryLedger, Profile, profile, synthetic
from lladav.runtime.profiling.output import write
from lladav.runtime.tracing import traced


@dataclass(frozen=True)
class Sums:
    """Of one backend.

    Attributes:
        layers: sum of a pass's layers by the median of the pass itself, by pass; empty where nothing times layers.
        memory: bytes by part.
        unexplained: share of memory in no category.
        notes: of the profile.
    """

    layers: dict[str, float]
    memory: dict[str, int]
    unexplained: float | None
    notes: tuple[str, ...]


def profiles(rig: Rig, bundle: Bundle, folder: Path, length: int, runs: int) -> Finding:
    """A synthetic question to every backend.

    Args:
        rig: what answers.
        bundle: to profile.
        folder: gets `profile-BACKEND` with the profile's files.
        length: tokens of an answer.
        runs: answers.
    """
    config = GenerationConfig(preset="balanced", gen_length=length)

    def measure(backend: str) -> Sums:
        ledger = MemoryLedger(bundle.path)
        with ExitStack() as held:
            with traced(ledger):
                loaded = held.enter_context(rig.pipeline(backend, bundle, Limits(canvas=length)))
                pipeline = Pipeline(bundle, loaded.backend, feature_cache_bytes=0)
                if bundle.manifest.geometry.vision is not None:
                    pipeline.pictures.load()
            ledger.loaded()
            measured = profile(pipeline, synthetic(pipeline, config), runs=runs, ledger=ledger)
        write(measured, folder / f"profile-{backend}", replace=True)
        return sums(measured.profile)

    found, refused = each_backend(rig, measure)
    rows = [
        (
            backend,
            ", ".join(f"{name} {share:.2f}" for name, share in own.layers.items()) or "not timed",
            ", ".join(f"{name} {size / 1e6:,.0f}" for name, size in own.memory.items()) or "not measured",
            "" if own.unexplained is None else f"{own.unexplained:+.1%}",
            "; ".join(own.notes),
        )
        for backend, own in found.items()
    ]
    columns = ("backend", "layers by their pass", "memory, MB", "in no category", "notes")
    figures = {"backends": {backend: asdict(own) for backend, own in found.items()}, "refused": refused}
    return Finding(figures, (Table("Profiles", columns, tuple(rows)),))


def sums(found: Profile) -> Sums:
    """What the parts add up to."""
    whole = {part.name: part.ms for part in found.layers.tree if "/" not in part.name} if found.layers else {}
    memory = found.memory
    # Answers may have had no pass of a kind, such as steps where each refreshes.
    medians = {name: measured.ms.p50 for name, measured in found.passes.items()}
    return Sums(
        layers={name: ms / medians[name] for name, ms in whole.items() if medians.get(name)},
        memory={part.name: part.bytes for part in memory.parts} if memory else {},
        unexplained=memory.unexplained if memory else None,
        notes=found.notes,
    )
