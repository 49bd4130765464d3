"""What answered: bundle, backend, versions and machine, as a profile names them."""

from __future__ import annotations

import re
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from lladav import __version__
from lladav.machine import examine
from lladav.runtime.denoiser import Denoiser
from lladav.runtime.pipeline import Pipeline
from lladav.runtime.profiling.record import Setup

_LIBRARIES = ("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "numpy", "pillow", "tokenizers")
_TIMEOUT = 10


def setup_of(pipeline: Pipeline) -> Setup:
    """Of a loaded pipeline on this machine."""
    manifest, machine = pipeline.bundle.manifest, examine()
    on_cpu = isinstance(pipeline.denoiser, Denoiser)
    return Setup(
        lladav=__version__,
        bundle=manifest.sha256,
        precision=manifest.precision,
        quantization=manifest.quantization.form if manifest.quantization else None,
        backend=pipeline.backend.name,
        threads=pipeline.denoiser.threads if isinstance(pipeline.denoiser, Denoiser) else None,
        libraries=_versions(),
        fallbacks=pipeline.backend.fallbacks,
        system=machine.system,
        processor=machine.board or machine.cpu,
        cores=machine.cores,
        gpu=None if on_cpu or not machine.gpus else machine.gpus[0].name,
        power_mode=power_mode(),
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def power_mode() -> str | None:
    """The name of a Jetson's power mode, since its numbers mean another mode on every board; None elsewhere."""
    try:
        done = subprocess.run(("nvpmodel", "-q"), capture_output=True, text=True, timeout=_TIMEOUT, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    named = re.search(r"NV Power Mode: *(\S.*)", done.stdout)
    return named[1].strip() if named else None
