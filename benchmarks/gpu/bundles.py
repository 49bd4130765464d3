"""The bundles that checks run on, made on the machine that runs them and kept for later commands."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, get_args

from benchmarks import make_full_size
from benchmarks.gpu.finding import CannotRunError, Finding, Table
from lladav.bundle import Bundle
from lladav.manifest import QuantizedForm

FORMS: tuple[QuantizedForm, ...] = get_args(QuantizedForm)
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
        with _random_checkpoint(work, layers) as checkpoint:
            _exported(checkpoint, folder)
    return Bundle.open(folder)


def full_size_forms(work: Path, layers: int) -> dict[str, Bundle]:
    """The same weights in fp16 and in every form of integers, by name.

    Raises:
        CannotRunError: the disk has no room for them.
    """
    made = {"fp16": full_size(work, layers)}
    folders = {form: work / f"full-size-{layers}-{form}" for form in FORMS}
    if not all(folder.exists() for folder in folders.values()):
        with _random_checkpoint(work, layers, sum(not folder.exists() for folder in folders.values())) as checkpoint:
            export_forms(checkpoint, made["fp16"], folders)
    return made | {form: Bundle.open(folder) for form, folder in folders.items()}


def export_forms(checkpoint: Path, plain: Bundle, folders: dict[QuantizedForm, Path]) -> None:
    """Exports the forms that are not there yet; inputs are rounded to the range that a pass over noise had."""
    seen = plain.path.with_name(f"{plain.path.name}.npz")
    for form, folder in folders.items():
        if form == "w8a8" and not folder.exists():
            _calibrate(plain, seen)
        _exported(checkpoint, folder, quantize=form, statistics=seen if form == "w8a8" else None)


def _calibrate(plain: Bundle, output: Path) -> None:
    try:
        from benchmarks.noise import calibrate_on_noise
    except ImportError as error:
        raise CannotRunError(f"calibrating needs the extra `export`: {error}") from error
    calibrate_on_noise(plain, output)


@contextmanager
def _random_checkpoint(work: Path, layers: int, bundles: int = 1) -> Iterator[Path]:
    """LLaDA-V's geometry with random weights, the same every time, for as long as it is needed.

    Args:
        work: folder that it is written to.
        layers: of the language model.
        bundles: that will be made of it, each at most as large.

    Raises:
        CannotRunError: the disk has no room for it and the bundles.
    """
    checkpoint = work / f"checkpoint-{layers}"
    size = make_full_size.total_bytes(make_full_size.real_geometry(layers))
    needed = (1 + bundles) * size
    work.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(work).free) < needed:
        raise CannotRunError(f"checkpoint and bundles take {needed / 1e9:.0f} GB, {free / 1e9:.0f} are free in {work}")
    shutil.rmtree(checkpoint, ignore_errors=True)  # of a command that was ended
    checkpoint.mkdir()
    try:
        make_full_size.write_checkpoint(checkpoint, layers, make_full_size.VISION_LAYERS, lambda _: None)
        yield checkpoint
    finally:
        shutil.rmtree(checkpoint)


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


def _exported(checkpoint: Path, folder: Path, **options: Any) -> Bundle:
    if not folder.exists():
        try:
            from lladav.export import ExportConfig, export
        except ImportError as error:
            raise CannotRunError(f"exporting needs the extra `export`: {error}") from error
        export(checkpoint, folder, ExportConfig(dtype="fp16", verify=False, **options))
    return Bundle.open(folder)
