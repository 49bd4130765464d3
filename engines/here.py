"""What this machine has for engines, as one value that checks can be made of."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from importlib import metadata

from lladav.engines.library import load_library
from lladav.errors import EngineError
from lladav.machine import examine
from lladav.records import Library

# A Jetson's GPU is not described by its driver; the board's name says what it is.
_BOARDS = {"Orin": "8.7", "Thor": "11.0"}
_TIMEOUT = 10


@dataclass(frozen=True)
class Here:
    """A machine as far as engines are concerned; empty where there is nothing.

    Attributes:
        library_version: of the library asked for.
        gpu: name of the first GPU, or of the board.
        driver: version, such as 580.95.05.
        cuda: major version of CUDA that the library was made for; 0 where that is not known.
        free_bytes: of the GPU's memory, or of the one memory of a board; None where not known.
    """

    library: Library
    library_version: str
    gpu: str
    compute_capability: str
    driver: str
    cuda: int
    free_bytes: int | None


def describe(library: Library) -> Here:
    """Looks at this machine."""
    machine = examine()
    gpu = machine.gpus[0] if machine.gpus else None
    of_board = next((capability for name, capability in _BOARDS.items() if name in machine.board), "")
    free = _free_bytes()
    if free is None and of_board and machine.memory is not None:
        free = machine.memory.available
    try:
        version = str(load_library(library).__version__)
    except EngineError:
        version = ""
    return Here(
        library=library,
        library_version=version,
        gpu=machine.board if of_board else gpu.name if gpu else "",
        compute_capability=(gpu.compute_capability if gpu else "") or of_board,
        driver=gpu.driver if gpu else "",
        cuda=_cuda(library),
        free_bytes=free,
    )


def _cuda(library: Library) -> int:
    for major in (13, 12):
        try:
            metadata.version(f"{library.replace('_', '-')}-cu{major}")
        except metadata.PackageNotFoundError:
            continue
        return major
    return 0


def _free_bytes() -> int | None:
    command = ("nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.match(r"\d+", done.stdout)
    return int(found[0]) << 20 if found else None
