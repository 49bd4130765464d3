"""The bundles that checks run on, made on the machine that runs them and kept for later commands."""

from __future__ import annotations

import shutil
from pathlib import Path
from time import perf_counter

from benchmarks import make_full_size
from benchmarks.gpu.finding import CannotRunError, Finding, Table
from lladav.bundle import Bundle

DEMO = Path(__file__).resolve().parents[1] / "demo_checkpoint" / "checkpoint"


def demo(work: Path) -> Bundle:
    """The demo checkpoint in fp16."""
    return _exported(DEMO, work / "demo")


def full_size(work: Path, layers: int) -> Bundle:
    """LLaDA-V's geometry with random weights in fp16, of that many language layers.

    Raises:
        CannotRunError: the disk has no room for it.
    """
    folder = work / f"full-size-{layers}"
    if not folder.exists():
        checkpoint = work / f"checkpoint-{layers}"
        needed = 2 * make_full_size.total_bytes(make_full_size.real_geometry(layers, make_full_size.VISION_LAYERS))
        work.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(work).free) < needed:
            raise CannotRunError(
                f"checkpoint and bundle take {needed / 1e9:.0f} GB, {free / 1e9:.0f} are free in {work}"
            )
        shutil.rmtree(checkpoint, ignore_errors=True)  # of a command that was ended
        checkpoint.mkdir()
        make_full_size.write_checkpoint(checkpoint, layers, make_full_size.VISION_LAYERS, lambda _: None)
        _exported(checkpoint, folder)
        shutil.rmtree(checkpoint)
    return Bundle.open(folder)


def prepare(work: Path, layers: int) -> Finding:
    """Makes both bundles."""
    rows, figures = [], {}
    for name, make in (("demo", lambda: demo(work)), ("full size", lambda: full_size(work, layers))):
        began = perf_counter()
        bundle = make()
        size = sum(entry.bytes for entry in bundle.manifest.files)
        figures[name] = {"seconds": perf_counter() - began, "bytes": size}
        rows.append((name, f"{size / 1e9:.2f}", f"{figures[name]['seconds']:.0f}"))
    return Finding(figures, (Table("Bundles in fp16", ("bundle", "GB", "seconds to make"), tuple(rows)),))


def _exported(checkpoint: Path, folder: Path) -> Bundle:
    if not folder.exists():
        try:
            from lladav.export import ExportConfig, export
        except ImportError as error:
            raise CannotRunError(f"exporting needs the extra `export`: {error}") from error
        export(checkpoint, folder, ExportConfig(dtype="fp16", verify=False))
    return Bundle.open(folder)
