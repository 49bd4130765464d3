"""What this machine can do with lladav, and the cure for what it cannot.

Nothing is taken for granted here: any package may be missing or broken, and a provider may be
listed without being able to load, or take the whole process down.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from lladav import __version__
from lladav.errors import BackendError
from lladav.machine import Machine, examine

PACKAGES = {
    "lladav": ("numpy", "pillow", "tokenizers", "onnxruntime", "onnxruntime-gpu", "pydantic", "rich", "typer"),
    "export": ("jinja2", "ml_dtypes", "onnx"),
    "verify": ("psutil", "torch"),
    "engines": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-rtx", "tensorrt-rtx-cu13"),
    "gpu": ("cuda-bindings", "pycuda"),
}
"""Distributions by what they are for."""

_RUN_MODULES = {"numpy": "numpy", "PIL": "pillow", "tokenizers": "tokenizers", "onnxruntime": "onnxruntime"}
_EXPORT_MODULES = ("jinja2", "ml_dtypes", "onnx")
_VERIFY_MODULES = (*_EXPORT_MODULES, "psutil", "torch")
_ENGINE_MODULES = ("tensorrt_rtx", "tensorrt")
_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"
_PROBE_SECONDS = 120

# A graph of one Relu node, opset 13, written with onnx.helper.
_MODEL = bytes.fromhex("08073a330a0c0a0178120179220452656c751201675a0f0a0178120a0a080801120"
                       "40a020801620f0a0179120a0a08080112040a02080142040a00100d")  # fmt: skip
_LIST = "import onnxruntime as o; print(*o.get_available_providers())"
_PROBE = """
import sys, onnxruntime as o
options = o.SessionOptions()
options.log_severity_level = 3
session = o.InferenceSession(bytes.fromhex(sys.argv[1]), options, providers=[sys.argv[2]])
assert session.get_providers()[0] == sys.argv[2], "ONNX Runtime fell back to " + session.get_providers()[0]
"""
_GPU = """
from lladav.errors import LladavError
from lladav.runtime.gpu.cuda_device import CudaDevice
from lladav.runtime.gpu.kernels import load_kernels
try:
    CudaDevice(load_kernels())
except LladavError as error:
    print(error.what, error.cure, sep="\\n")
"""
# Sends graphs over the network to a service; not something that runs here.
_REMOTE = frozenset({"AzureExecutionProvider"})


@dataclass(frozen=True)
class Provider:
    """An execution provider of ONNX Runtime; `fault` says why it does not load, or is empty."""

    name: str
    fault: str


@dataclass(frozen=True)
class Ability:
    """A verb of the command line, or what `run` may compute with; `fault` and `cure` are empty where it works."""

    name: str
    fault: str = ""
    cure: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """Facts, and what follows from them.

    Attributes:
        packages: installed versions by distribution, grouped as in `PACKAGES`.
        resampling: whether pictures are resized as the reference does; None where Pillow is
            missing.
        backends: what answers can be computed with.
        kernels: why the GPU kernels are not there and what to do, or empty.
        warnings: what works differently than it looks, each with its cure.
    """

    version: str
    python: str
    machine: Machine
    packages: dict[str, dict[str, str]]
    providers: tuple[Provider, ...]
    resampling: bool | None
    kernels: str
    verbs: tuple[Ability, ...]
    backends: tuple[Ability, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The object that `lladav doctor --json` prints."""
        return asdict(self)


def doctor() -> Diagnosis:
    """Examines this machine; nothing is changed and nothing heavy is imported here."""
    packages = {
        purpose: {name: found for name in names if (found := _version(name))} for purpose, names in PACKAGES.items()
    }
    providers = _providers()
    resampling = _resampling()
    machine = examine()
    engines = {module: _library(module) for module in _ENGINE_MODULES}
    return Diagnosis(
        version=__version__,
        python=f"{platform.python_version()} ({sys.executable})",
        machine=machine,
        packages=packages,
        providers=providers,
        resampling=resampling,
        kernels=_kernels(),
        verbs=_verbs(providers, resampling, machine, engines),
        backends=_backends(providers, machine, engines),
        warnings=_warnings(packages["lladav"]),
    )


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ValueError:  # a module that was taken out of service
        return False


def _python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs code in another process, so that what crashes there does not crash here."""
    command = (sys.executable, "-c", code, *arguments)
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_SECONDS, cwd="/", check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))


def _providers() -> tuple[Provider, ...]:
    """The providers that the installed ONNX Runtime lists, each tried on a tiny graph."""
    if not _importable("onnxruntime"):
        return ()
    listed = _python(_LIST)
    if listed.returncode:
        return (Provider(_CPU, _last_line(listed)),)
    names = [name for name in listed.stdout.split() if name not in _REMOTE]
    tried = {name: _python(_PROBE, _MODEL.hex(), name) for name in names}
    return tuple(Provider(name, _last_line(done) if done.returncode else "") for name, done in tried.items())


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = done.stderr.strip().splitlines()
    return lines[-1][:300] if lines else f"the process ended with {done.returncode}"


def _resampling() -> bool | None:
    try:
        from lladav.runtime.images import resampling_is_reference

        return resampling_is_reference()
    # A half-installed package may raise anything.
    except Exception:
        return None


def _kernels() -> str:
    try:
        from lladav.runtime.gpu.kernels import load_kernels

        load_kernels()
    except BackendError as error:
        return f"not built: {error.cure}"
    # A half-installed package may raise anything.
    except Exception as error:
        return f"cannot be looked for: {error}"
    return ""


def _verbs(
    providers: tuple[Provider, ...], resampling: bool | None, machine: Machine, engines: dict[str, str]
) -> tuple[Ability, ...]:
    export = _workstation("export", _EXPORT_MODULES)
    verify = _workstation("verify", _VERIFY_MODULES)
    build = _build(engines, jetson=bool(machine.l4t))
    calibrate = Ability("calibrate", export.fault, export.cure)
    run = _run(providers, resampling)
    profile = Ability("profile", run.fault, run.cure)
    rest = (Ability("plan"), verify, Ability("inspect"), Ability("doctor"))
    return (export, calibrate, run, profile, build, *rest)


def _workstation(extra: str, modules: tuple[str, ...]) -> Ability:
    """A verb that needs the extra of its own name."""
    absent = [name for name in modules if not _importable(name)]
    if absent:
        return Ability(extra, f"{', '.join(absent)} missing", f"pip install 'lladav[{extra}]'")
    return Ability(extra)


def _run(providers: tuple[Provider, ...], resampling: bool | None) -> Ability:
    absent = [package for module, package in _RUN_MODULES.items() if not _importable(module)]
    if absent:
        return Ability("run", f"{', '.join(absent)} missing", f"pip install {' '.join(absent)}")
    cpu = next((p.fault for p in providers if p.name == _CPU), "not offered")
    if cpu:
        return Ability("run", f"{_CPU}: {cpu}", "pip install --force-reinstall onnxruntime")
    if resampling is None:
        return Ability("run", "Pillow or numpy does not load", "pip install --force-reinstall pillow numpy")
    if not resampling:
        cure = "pip install 'pillow>=10.3,<=13.0'"
        return Ability("run", "this Pillow resizes pictures otherwise than the reference: answers may differ", cure)
    return Ability("run")


def _library(module: str) -> str:
    """Why a library of engines does not load, or nothing."""
    if not _importable(module):
        return f"{module} missing"
    tried = _python(f"import {module}; {module}.Builder")
    return f"{module}: {_last_line(tried)}" if tried.returncode else ""


def _build(engines: dict[str, str], *, jetson: bool) -> Ability:
    """Works with either library; TensorRT also wants the GPU that it builds for, which `build` says."""
    if not all(engines.values()):
        return Ability("build")
    cure = (
        "python3 -m venv --system-site-packages, for JetPack's own" if jetson else "pip install 'lladav[tensorrt-rtx]'"
    )
    return Ability("build", "; ".join(engines.values()), cure)


def _backends(providers: tuple[Provider, ...], machine: Machine, engines: dict[str, str]) -> tuple[Ability, ...]:
    """As `run --backend` calls them; those on a GPU want the GPU and a library each."""
    gpu = _gpu(machine)
    provider = {name: next((p.fault for p in providers if p.name == name), "not offered") for name in (_CPU, _CUDA)}
    wanted = {
        "tensorrt": (engines["tensorrt"], "pip install 'lladav[tensorrt]', or on a Jetson use JetPack's own"),
        "tensorrt-rtx": (engines["tensorrt_rtx"], "pip install 'lladav[tensorrt-rtx]'"),
        "ort-cuda": (
            provider[_CUDA] and f"{_CUDA}: {provider[_CUDA]}",
            "pip install onnxruntime-gpu in the place of onnxruntime",
        ),
    }
    found = [_first_fault(name, gpu, Ability(name, fault, cure)) for name, (fault, cure) in wanted.items()]
    cpu = provider[_CPU] and f"{_CPU}: {provider[_CPU]}"
    return (*found, Ability("cpu", cpu, "pip install --force-reinstall onnxruntime" if cpu else ""))


def _first_fault(name: str, *parts: Ability) -> Ability:
    """All faults of what something needs, with the cure of the first."""
    faulty = [part for part in parts if part.fault]
    return Ability(name, "; ".join(part.fault for part in faulty), faulty[0].cure if faulty else "")


def _gpu(machine: Machine) -> Ability:
    """Whether the GPU can be opened and takes our kernels."""
    if not machine.gpus and not machine.l4t:
        return Ability("gpu", "no NVIDIA GPU with a driver", "use --backend cpu")
    tried = _python(_GPU)
    if tried.returncode:
        return Ability("gpu", _last_line(tried), "report this with the message")
    return Ability("gpu", *tried.stdout.splitlines())


def _warnings(packages: dict[str, str]) -> tuple[str, ...]:
    if "onnxruntime" in packages and "onnxruntime-gpu" in packages:
        return (
            "onnxruntime and onnxruntime-gpu share their files, and the one installed last has overwritten the other: "
            "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install the one you want",
        )
    return ()
