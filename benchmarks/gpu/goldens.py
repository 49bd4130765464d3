"""Agreement with the outputs of the authors' code, decision by decision, in fp16 on a GPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from benchmarks.golden import GoldenSet, Replay, applies, replay
from benchmarks.gpu.finding import CannotRunError, Finding, Table
from benchmarks.gpu.rig import Rig, each_backend
from lladav.backends import Limits
from lladav.manifest import Precision


def open_set(shared: Path, work: Path) -> GoldenSet:
    """The golden set, whose bundles are made in `work`.

    Raises:
        CannotRunError: it is not on this machine.
    """
    if not (shared / "parity" / "goldens.json").is_file():
        raise CannotRunError(f"the golden set is not in {shared}; say with --shared where it is")
    folder = work / "goldens"
    folder.mkdir(parents=True, exist_ok=True)
    return GoldenSet(shared, folder)


def goldens(rig: Rig, golden: GoldenSet, names: tuple[str, ...] = (), precision: Precision = "fp16") -> Finding:
    """Replays cases on the reference's own canvases.

    Args:
        rig: what runs them.
        golden: the set.
        names: of cases; empty is all.
        precision: of the bundles.
    """
    cases = {name: case for name, case in golden.cases.items() if applies(case) and (not names or name in names)}

    def replayed(backend: str) -> dict[str, Replay]:
        return {name: _replayed(rig, golden, backend, case, precision) for name, case in cases.items()}

    found, refused = each_backend(rig, replayed)
    rows = []
    for backend, own in found.items():
        picks = sum(one.picks for one in own.values())
        shares = [sum(getattr(one, kind) for one in own.values()) / picks for kind in ("same_token", "same_position")]
        worst = max(one.confidence_error for one in own.values())
        rows.append((backend, str(len(own)), str(picks), *(f"{share:.2%}" for share in shares), f"{worst:.1e}"))
    rows += [(backend, "", "", "", "", why.replace("\n", " ")) for backend, why in refused.items()]
    columns = ("backend", "cases", "decisions", "same token", "same position", "largest confidence error, or why not")
    figures = {
        "precision": precision,
        "backends": {name: {case: dataclasses.asdict(one) for case, one in own.items()} for name, own in found.items()},
        "refused": refused,
    }
    return Finding(figures, (Table(f"Decisions of the authors' code, replayed in {precision}", columns, tuple(rows)),))


def _replayed(rig: Rig, golden: GoldenSet, backend: str, case: dict[str, Any], precision: Precision) -> Replay:
    bundle = golden.pipeline(case["checkpoint"], case["rows"], precision).bundle
    limits = Limits(
        prompt=bundle.manifest.buckets.prompt[-1],
        canvas=bundle.manifest.buckets.canvas[-1],
        sequences=2 if case.get("cfg_scale") else 1,
    )
    with rig.pipeline(backend, bundle, limits) as pipeline:
        return replay(pipeline, case, golden.images(case.get("images", [])))
