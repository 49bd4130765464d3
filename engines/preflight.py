"""Whether an engine can be loaded on a machine, before it is tried.

A library refuses a plan of another version or GPU with a message about its own insides, and runs
out of memory when it is too late. What decides it stands in the plan's record.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from lladav.bundle import Bundle
from lladav.engines.here import Here, describe
from lladav.engines.library import INSTALL
from lladav.engines.needs import memory_needs
from lladav.engines.profiles import graph_profiles
from lladav.engines.target import load_target, target_names
from lladav.errors import EngineError
from lladav.linear_layers import Numbers
from lladav.records import EngineRecord, Library, build_command, read_records

# CUDA's minor version compatibility: the oldest driver that runs a major version.
OLDEST_DRIVER = {12: 525, 13: 580}


class _Fault(NamedTuple):
    what: str
    cure: str


def preflight(record: EngineRecord, here: Here, needed_bytes: int, bundle: Path) -> None:
    """Compares what an engine was built for with a machine.

    Args:
        record: of the engine.
        here: the machine.
        needed_bytes: of memory, for everything that an answer takes.
        bundle: the folder, for the command that mends it.

    Raises:
        EngineError: naming all that does not agree, with the cure of the first.
    """
    faults = [*_library_faults(record, here, bundle), *_gpu_faults(record, here, bundle)]
    if here.free_bytes is not None and here.free_bytes < needed_bytes:
        faults.append(
            _Fault(
                f"an answer takes {needed_bytes / 1e9:.2f} GB of memory and {here.free_bytes / 1e9:.2f} GB are free",
                "stop other programs, or export again with smaller --prompt-buckets and --canvas-buckets",
            )
        )
    if faults:
        raise EngineError(
            f"{bundle / record.plan.path} was built by {record.library} {record.library_version} for {record.target}, "
            f"compute capability {record.compute_capability}; " + "; ".join(fault.what for fault in faults),
            cure=faults[0].cure,
        )


def check_engines(bundle: Bundle, target: str, prompt: int, canvas: int, batch: int = 1) -> tuple[EngineRecord, ...]:
    """The engines of a target, if they may be loaded on this machine.

    Args:
        bundle: with engines.
        target: that they were built for.
        prompt: positions of the longest prompt.
        canvas: positions of the longest canvas.
        batch: sequences side by side.

    Raises:
        OptionError: there is no such target.
        EngineError: they are missing or damaged, belong to another export, or do not fit the machine.
    """
    library, command = load_target(target).library, build_command(bundle.path, target)
    records = read_records(bundle.path, target)
    if not records:
        raise EngineError(f"{bundle.path} has no engines for {target}", cure=command)
    if missing := graph_profiles(bundle.manifest).keys() - {record.graph for record in records}:
        raise EngineError(f"{bundle.path} has no engine of {', '.join(sorted(missing))} for {target}", cure=command)
    here = describe(library)
    needed = needed_bytes(bundle, records, prompt, canvas, batch)
    for record in records:
        if record.bundle != bundle.manifest.sha256:
            raise EngineError(
                f"{bundle.path / record.plan.path} was built from another export than this bundle", cure=command
            )
        preflight(record, here, needed, bundle.path)
    return records


def find_engines(bundle: Bundle, library: Library) -> str:
    """The target whose engines are for this machine's GPU; of several, one that was built on such a GPU.

    Raises:
        EngineError: there are none for it, or a record or plan is damaged.
    """
    here = describe(library)
    built = [r for r in read_records(bundle.path) if r.library == library]
    fitting = [r for r in built if r.compute_capability == here.compute_capability]
    if not fitting:
        found = ", ".join(sorted({f"{r.target} ({r.compute_capability})" for r in built}))
        commands = [build_command(bundle.path, name) for name in _targets_with(here.compute_capability, library)]
        raise EngineError(
            f"{bundle.path} has no engines of {library} for {_gpu(here)}; it has {found or 'none at all'}",
            cure=" or ".join(commands) or f"choose another backend: no target of {library} is such a GPU",
        )
    return min(fitting, key=lambda r: (r.device != here.gpu, r.target)).target


def needed_bytes(bundle: Bundle, records: tuple[EngineRecord, ...], prompt: int, canvas: int, batch: int) -> int:
    """Memory for an answer with these engines.

    Plans are counted at their size, and activations as the library asked for them while building,
    which is for the largest shapes that it built for; one engine runs at a time.
    """
    needs = memory_needs(bundle.manifest, prompt, canvas, batch=batch, numbers=Numbers.of(bundle.manifest))
    asked = max((count for record in records for count in record.activations), default=needs.activations)
    plans = sum(record.plan.bytes for record in records)
    return plans + asked + needs.planned


def _library_faults(record: EngineRecord, here: Here, bundle: Path) -> list[_Fault]:
    if not here.library_version:
        return [_Fault(f"{record.library} is not installed here", INSTALL[record.library])]
    if here.library_version == record.library_version:
        return []
    what = f"here is {here.library} {here.library_version}, and only the same version loads it"
    return [_Fault(what, build_command(bundle, record.target))]


def _gpu_faults(record: EngineRecord, here: Here, bundle: Path) -> list[_Fault]:
    if not here.gpu:
        return [_Fault("here is no NVIDIA GPU with a driver", "run it on a machine with the GPU it was built for")]
    faults = []
    oldest = OLDEST_DRIVER.get(here.cuda, 0)
    major = here.driver.partition(".")[0]
    if major.isdecimal() and int(major) < oldest:
        faults.append(
            _Fault(
                f"the driver here is {here.driver} and CUDA {here.cuda} needs {oldest} or newer",
                f"upgrade the driver to {oldest} or newer",
            )
        )
    if here.compute_capability != record.compute_capability:
        fitting = _targets_with(here.compute_capability)
        faults.append(
            _Fault(
                f"here is {_gpu(here)}",
                " or ".join(build_command(bundle, name) for name in fitting)
                or "run it on a machine with the GPU it was built for",
            )
        )
    return faults


def _gpu(here: Here) -> str:
    return f"{here.gpu} with compute capability {here.compute_capability or 'unknown'}" if here.gpu else "no NVIDIA GPU"


def _targets_with(compute_capability: str, library: Library | None = None) -> tuple[str, ...]:
    targets = map(load_target, target_names())
    fitting = (t for t in targets if t.compute_capability == compute_capability)
    return tuple(t.name for t in fitting if library in (None, t.library))
