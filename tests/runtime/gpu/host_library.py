"""The kernels' own sources, compiled for the host."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
SOURCES = ROOT / "runtime" / "kernels"
HERE = Path(__file__).resolve().parent
CACHE = ROOT / "build" / "kernels_on_host"

KERNEL = re.compile(r"__global__\s+void\s+(?:__launch_bounds__\(\w+\)\s+)?(\w+)\s*\(")
"""The name of a kernel where it is defined."""

# Products are not contracted with sums, as the fat binary does not either.
_FLAGS = (
    *("-std=c++17", "-O2", "-ffp-contract=off", "-fPIC", "-shared"),
    *("-Wall", "-Werror", "-Wno-sign-compare", "-Wno-unknown-pragmas"),
)


def compiler() -> str | None:
    """The C++ compiler of this machine."""
    return next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None)


@functools.cache
def host_library() -> ctypes.CDLL:
    """All `*.cu`, compiled once for as long as they stay the same."""
    sources = sorted(SOURCES.glob("*.cu"))
    texts = {path: path.read_text("utf-8") for path in (*sources, *SOURCES.glob("*.cuh"), *HERE.glob("*.h"))}
    kernels = [name for path in sources for name in KERNEL.findall(texts[path])]
    unit = "\n".join(
        [
            '#include "cuda_on_host.h"',
            *(f'#include "{path.name}"' for path in sources),
            *(f"HOST_KERNEL({name})" for name in kernels),
            '#include "probes.h"',
        ]
    )
    key = hashlib.sha256("\0".join([unit, *texts.values(), *_FLAGS]).encode()).hexdigest()[:16]
    library = CACHE / f"kernels-{key}.so"
    if not library.is_file():
        _compile(unit, library)
    return ctypes.CDLL(str(library))


def _compile(unit: str, library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        command = [str(compiler()), *_FLAGS, f"-I{SOURCES}", f"-I{HERE}", "-x", "c++", "-", "-o", str(made)]
        done = subprocess.run(command, input=unit, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        made.replace(library)
