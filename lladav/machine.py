"""Raw facts about the machine, each found without a package beyond Python's own."""

from __future__ import annotations

import ctypes.util
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from lladav.errors import OptionError

# What speeds up matrix products, by the names that /proc/cpuinfo gives it.
_X86 = {
    "avx2": "AVX2",
    "f16c": "F16C",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX-512 BF16",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX-VNNI",
    "amx_int8": "AMX INT8",
    "amx_bf16": "AMX BF16",
}
_ARM = {
    "asimd": "NEON",
    "asimdhp": "NEON FP16",
    "asimddp": "NEON dot product",
    "i8mm": "INT8 matrix products",
    "bf16": "BF16",
    "sve": "SVE",
}
# JetPack by the major version of L4T, its base; minor ones are named differently by different sources.
_JETPACK = {"35": "5", "36": "6", "38": "7", "39": "7"}
_TIMEOUT = 10


@dataclass(frozen=True)
class Memory:
    """Bytes, from /proc/meminfo; `cma_free` is what a Jetson's GPU can still get in one piece."""

    total: int
    available: int
    swap: int
    cma_total: int
    cma_free: int


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU as its driver describes it."""

    name: str
    driver: str
    memory: str
    compute_capability: str


@dataclass(frozen=True)
class Machine:
    """What was found; empty where there is nothing.

    Attributes:
        board: of a machine with a device tree, such as a Jetson.
        cuda: version of the toolkit, or the name of the runtime library.
        l4t: Linux for Tegra, the base of JetPack.
    """

    system: str
    cpu: str
    cores: int
    features: tuple[str, ...]
    memory: Memory | None
    board: str
    gpus: tuple[Gpu, ...]
    cuda: str
    l4t: str
    jetpack: str


def examine() -> Machine:
    """Looks at this machine; takes a moment where there is a GPU to ask."""
    cpu, features = _cpu(_read("/proc/cpuinfo"))
    l4t, jetpack = _jetpack(_read("/etc/nv_tegra_release"))
    return Machine(
        system=f"{_distribution()}, kernel {platform.release()}, {platform.machine()}",
        cpu=cpu,
        cores=len(os.sched_getaffinity(0)),
        features=features,
        memory=system_memory(),
        board=_read("/proc/device-tree/model").strip("\0\n "),
        gpus=_gpus(),
        cuda=_cuda(),
        l4t=l4t,
        jetpack=jetpack,
    )


def check_threads(threads: int | None) -> None:
    """Refuses numbers of threads that cannot help; None is left to the library.

    Raises:
        OptionError: there are none, or more than the machine has cores: they only wait for one another, and
            thousands of them load a bundle for hours.
    """
    cores = os.cpu_count() or 1
    if threads is not None and not 1 <= threads <= cores:
        raise OptionError(
            f"{threads:,} threads cannot work at once: this machine has {cores} cores",
            cure=f"pass --threads 1 to {cores}, or leave it out",
        )


def system_memory() -> Memory | None:
    """The CPU's memory, or the one memory of a board; at once."""
    return _memory(_read("/proc/meminfo"))


def _read(path: str) -> str:
    try:
        return Path(path).read_text("utf-8", errors="replace")
    except OSError:
        return ""


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def _cpu(cpuinfo: str) -> tuple[str, tuple[str, ...]]:
    """Name and features, from the text of /proc/cpuinfo."""
    pairs = (line.partition(":") for line in cpuinfo.splitlines())
    lines = {name.strip(): value.strip() for name, _, value in pairs}
    flags = set((lines.get("flags") or lines.get("Features") or "").split())
    known = _ARM if "Features" in lines else _X86
    name = lines.get("model name") or platform.processor() or platform.machine()
    return name, tuple(label for flag, label in known.items() if flag in flags)


def _memory(meminfo: str) -> Memory | None:
    values = {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB", meminfo, re.MULTILINE)}
    if "MemTotal" not in values:
        return None
    return Memory(
        total=values["MemTotal"],
        available=values.get("MemAvailable", 0),
        swap=values.get("SwapTotal", 0),
        cma_total=values.get("CmaTotal", 0),
        cma_free=values.get("CmaFree", 0),
    )


def _gpus() -> tuple[Gpu, ...]:
    table = _output("nvidia-smi", "--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader")
    rows = [[cell.strip() for cell in line.split(",")] for line in table.splitlines()]
    if found := tuple(Gpu(*row) for row in rows if len(row) == 4):
        return found
    driver = re.search(r"Kernel Module\D*([\d.]+)", _read("/proc/driver/nvidia/version"))
    return (Gpu("NVIDIA GPU", driver[1], "", ""),) if driver else ()


def _cuda() -> str:
    release = re.search(r"release ([\d.]+)", _output(shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc", "--version"))
    return f"toolkit {release[1]}" if release else ctypes.util.find_library("cudart") or ""


def _jetpack(tegra_release: str) -> tuple[str, str]:
    """L4T and JetPack, from a line like `# R36 (release), REVISION: 4.3, GCID: ...`."""
    found = re.search(r"R(\d+) .*?REVISION: ([\d.]+)", tegra_release)
    return (f"{found[1]}.{found[2]}", _JETPACK.get(found[1], "")) if found else ("", "")


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
