"""From a bundle to engines for a target."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lladav.bundle import Bundle
from lladav.engines.compile import Order, compile_plan
from lladav.engines.execution import load_plan
from lladav.engines.here import Here, describe
from lladav.engines.integers import integer_use
from lladav.engines.layers import Layer, layers_in_plan
from lladav.engines.library import builds_ahead, known_capabilities, load_library
from lladav.engines.plan_file import sole_writer, staged_stream
from lladav.engines.prediction import head_bytes, unsplit_head
from lladav.engines.profiles import graph_profiles
from lladav.engines.progress import PERCENT, Progress
from lladav.engines.target import EnginePrecision, Target, load_target
from lladav.errors import BackendError, EngineError
from lladav.machine import examine
from lladav.manifest import FileEntry
from lladav.records import FOLDER, BuiltPrecision, EngineRecord, engine_precision

TIMING_CACHE = "timing.cache"
EXPORTED: dict[EnginePrecision, str] = {
    "fp16": "--dtype fp16",
    "bf16": "--dtype bf16",
    "int8": "--dtype fp16 --quantize w8",
    "int4": "--dtype fp16 --quantize w4",
}
"""Of the precisions that engines may have those that `lladav export` writes, and the options for it."""

# Measured with TensorRT-RTX 1.7.1 at the real width: memory of the process, beside the mapped
# weights, per byte of weights.
MEMORY_PER_WEIGHT_STREAMED = 1.75
MEMORY_PER_WEIGHT_WHOLE = 2.05
# More for int4, which the builder unpacks.
_MEMORY_OF_INT4 = 0.75

# Nothing is run on it.
_NO_STREAM = 0


def build(
    bundle: str | Path,
    target: str,
    *,
    precision: EnginePrecision | None = None,
    progress: Progress = Progress(),  # noqa: B008 - immutable
) -> tuple[EngineRecord, ...]:
    """Builds an engine of every graph of a bundle, into `BUNDLE/engines/TARGET/`.

    A plan appears whole or not at all, takes the place of an earlier one, and counts only with its
    record, which is written last. Those that were done stay when a later one fails.

    Args:
        bundle: folder made by `lladav export`.
        target: one of `target_names()`.
        precision: of the bundle, to be sure; None takes what it has.
        progress: called with every graph and the percent done.

    Raises:
        BundleError: the bundle is damaged.
        OptionError: there is no such target.
        EngineError: the target or the library lacks something, or the builder failed.
        KeyboardInterrupt: after the builder has stopped; nothing unfinished is left.
    """
    opened, wanted = Bundle.open(bundle), load_target(target)
    check_precision(opened, wanted, precision)
    check_head(opened, wanted)
    trt = load_library(wanted.library)
    here = describe(wanted.library)
    check_builder(trt, wanted, here)
    _check_room(opened, trt)
    folder = opened.path / FOLDER / wanted.name
    with sole_writer(folder):
        return tuple(
            _build(opened, wanted, here, trt, name, folder, progress) for name in graph_profiles(opened.manifest)
        )


def check_precision(bundle: Bundle, target: Target, precision: EnginePrecision | None = None) -> None:
    """Compares what is asked for, what the bundle has and what the target takes.

    Raises:
        EngineError: they do not agree.
    """
    has = engine_precision(bundle.manifest)
    asked = precision or has
    ours = [options for name, options in EXPORTED.items() if name in target.precisions]
    options = next((EXPORTED[name] for name in EXPORTED if name == asked and name in target.precisions), ours[0])
    export = f"lladav export CHECKPOINT NEW_BUNDLE {options}"
    for wanted in (asked, bundle.manifest.precision):
        if wanted not in target.precisions:
            raise EngineError(
                f"{target.title} (compute capability {target.compute_capability}) takes "
                f"{', '.join(target.precisions)}, not {wanted}",
                cure=f"export again with `{export}` and build from that",
            )
    if asked != has:
        what = f"{bundle.path} is in {has}, and an engine of it cannot be in {asked}: types come from the graph"
        if asked not in EXPORTED:
            raise EngineError(f"{what}; `lladav export` does not write {asked}", cure=f"export with `{export}`")
        raise EngineError(what, cure=f"export again with `{export}` and build from that")


def check_head(bundle: Bundle, target: Target) -> None:
    """Whether the head is split where one product of it may not build.

    Raises:
        EngineError: it is not.
    """
    if fault := unsplit_head(target, bundle.manifest):
        raise EngineError(fault, cure="export again without --head-parts, which splits it as every target needs it")


def check_builder(trt: Any, target: Target, here: Here) -> None:
    """Whether this library, on this machine, builds for the target.

    Args:
        trt: the library's module.
        target: that engines are wanted for.
        here: this machine, as it was described.

    Raises:
        EngineError: it does not; with the versions or compute capabilities that decide it.
    """
    name = trt.__name__
    if trt.__version__ not in target.versions:
        raise EngineError(
            f"{target.title} runs {name} from {target.versions.least} and before {target.versions.below}; "
            f"{trt.__version__} is installed here",
            cure="install a JetPack that carries such a version"
            if target.unified_memory
            else f"pip install '{name.replace('_', '-')}>={target.versions.least},<{target.versions.below}'",
        )
    if builds_ahead(trt):
        if target.compute_capability not in (known := known_capabilities(trt)):
            raise EngineError(
                f"{name} {trt.__version__} builds for compute capabilities {', '.join(known)}; "
                f"{target.title} has {target.compute_capability}",
                cure="upgrade it, or choose another target",
            )
    elif here.compute_capability != target.compute_capability:
        found = f"{here.gpu} with {here.compute_capability}" if here.gpu else "no GPU"
        raise EngineError(
            f"{name} builds for the GPU that it runs on: {target.title} has compute capability "
            f"{target.compute_capability}, here is {found}",
            cure="copy the bundle to the machine that the engines are for, and run the same command there",
        )


def memory_per_weight(precision: BuiltPrecision, *, streams: bool) -> float:
    """Bytes that a build takes beside the mapped weights, per byte of the largest graph's.

    Args:
        precision: of the engines.
        streams: whether the library writes a plan piece by piece.
    """
    share = MEMORY_PER_WEIGHT_STREAMED if streams else MEMORY_PER_WEIGHT_WHOLE
    return share + (_MEMORY_OF_INT4 if precision == "int4" else 0)


def _check_room(bundle: Bundle, trt: Any) -> None:
    """Memory for the largest graph, and space on the disk for all plans."""
    sizes = {entry.path: entry.bytes for entry in bundle.manifest.files}
    weights = [sizes[bundle.manifest.graphs[name].weights] for name in graph_profiles(bundle.manifest)]
    streams = hasattr(trt.Builder, "build_serialized_network_to_stream")
    needed = max(weights) * memory_per_weight(engine_precision(bundle.manifest), streams=streams)
    if bundle.manifest.head_parts > 1:  # which the builder was seen to hold once more
        needed += head_bytes(bundle.manifest)
    memory = examine().memory
    if memory is not None and memory.available + memory.swap < needed:
        raise EngineError(
            f"building takes about {needed / 1e9:.1f} GB of memory for {max(weights) / 1e9:.1f} GB of weights; "
            f"{memory.available / 1e9:.1f} GB and {memory.swap / 1e9:.1f} GB of swap are free",
            cure="stop other programs or add swap; or build on a larger machine of the same kind",
        )
    free = shutil.disk_usage(bundle.path).free
    if free < sum(weights):
        raise EngineError(
            f"the plans take about {sum(weights) / 1e9:.2f} GB; {bundle.path} has {free / 1e9:.2f} GB free",
            cure="free some space, or move the bundle to another disk",
        )


def _build(
    bundle: Bundle, target: Target, here: Here, trt: Any, name: str, folder: Path, progress: Progress
) -> EngineRecord:
    progress.start(name, PERCENT)
    spec, profiles = bundle.manifest.graphs[name], graph_profiles(bundle.manifest)[name]
    plan, note = folder / f"{name}.plan", folder / f"{name}.json"
    order = Order(name, bundle.file(spec.file), spec, profiles, target.compute_capability)
    with staged_stream(plan) as out:
        compiled = compile_plan(trt, order, out, folder / TIMING_CACHE, progress.advance)
        # From here on the earlier plan, if there was one, is no longer what its record says.
        note.unlink(missing_ok=True)
    record = EngineRecord(
        graph=name,
        target=target.name,
        precision=engine_precision(bundle.manifest),
        library=target.library,
        library_version=trt.__version__,
        compute_capability=target.compute_capability,
        device="" if builds_ahead(trt) else here.gpu,
        bundle=bundle.manifest.sha256,
        profiles=profiles,
        activations=compiled.activations,
        plan=FileEntry(path=f"{FOLDER}/{target.name}/{plan.name}", bytes=out.bytes, sha256=out.sha256),
    )
    if compiled.integers.weights:
        used = integer_use(compiled.integers, _layers(record, bundle, trt))
        record = record.model_copy(update={"integers": used})
    with staged_stream(note) as file:
        file.write(record.text().encode())
    return EngineRecord.read(note, bundle.path)


def _layers(record: EngineRecord, bundle: Bundle, trt: Any) -> tuple[Layer, ...]:
    """Of a new engine; none where the library does not tell, which spoils no build."""
    if builds_ahead(trt):
        return layers_in_plan(bundle.path / record.plan.path, len(record.profiles))
    try:
        return load_plan(record, bundle, _NO_STREAM).layers()
    except (EngineError, BackendError):
        return ()
