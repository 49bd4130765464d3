"""llama.cpp's diffusion example: built from the sources in llama-cpp-python's package, and timed from outside."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import tarfile
from pathlib import Path

from lladav.errors import BackendError

_PACKAGE = "llama_cpp_python-*.tar.gz"
_INSIDE = "/vendor/llama.cpp/"
_TARGET = "llama-diffusion-cli"


def build(folder: Path) -> Path:
    """The example's program, built on the first call.

    Args:
        folder: holds the source package, and takes sources and build.

    Raises:
        BackendError: there is no source package, CMake or compiler, or it does not build.
    """
    program = folder / "build" / "bin" / _TARGET
    if program.is_file():
        return program
    sources = _unpack(folder)
    if shutil.which("cmake") is None:
        raise BackendError("llama.cpp is built with CMake, which is not here", cure="pip install cmake")
    options = ("-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_SERVER=OFF")
    for command in (
        ("cmake", "-S", str(sources), "-B", str(folder / "build"), *options),
        ("cmake", "--build", str(folder / "build"), "--target", _TARGET, "--parallel", str(os.cpu_count() or 1)),
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BackendError(
                f"llama.cpp does not build: {(done.stdout + done.stderr)[-2000:]}",
                cure=f"see what `{' '.join(command)}` lacks",
            )
    return program


def _unpack(folder: Path) -> Path:
    """llama.cpp's sources out of the package."""
    target = folder / "llama.cpp"
    if target.is_dir():
        return target
    packages = sorted(folder.glob(_PACKAGE))
    if not packages:
        raise BackendError(
            f"{folder} holds no source package of llama-cpp-python",
            cure=f"pip download --no-binary llama-cpp-python --no-deps --dest {folder} llama-cpp-python",
        )
    beside = folder / "unpacked"
    shutil.rmtree(beside, ignore_errors=True)
    with tarfile.open(packages[-1]) as archive:
        archive.extractall(beside, [m for m in archive.getmembers() if _INSIDE in m.name], filter="data")
    (inside,) = beside.glob("*" + _INSIDE.rstrip("/"))
    inside.rename(target)
    shutil.rmtree(beside)
    return target


class DiffusionExample:
    """The example on one model, on one thread, one token committed per pass, the likeliest one.

    Args:
        program: from `build`.
        model: GGUF file.
        prompt: text.
        window: tokens of prompt and answer.
    """

    def __init__(self, program: Path, model: Path, prompt: str, window: int) -> None:
        size = str(window)
        self._command = [str(program), "-m", str(model), "-p", prompt, "-c", size, "-b", size, "-ub", size]
        self._command += ["-t", "1", "-tb", "1", "--temp", "0", "--top-k", "1", "--diffusion-block-length", size]

    def seconds(self, steps: int) -> float:
        """Processor time of a run with that many passes, the loading of the model included."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        self._run(steps)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def pass_seconds(self) -> float:
        """Processor time of one pass: of a run with three, less one with one."""
        return (self.seconds(3) - self.seconds(1)) / 2

    def picks(self) -> list[int]:
        """What one pass over nothing but masks commits, by the numbers in the random model's words."""
        return [int(number) for number in re.findall(r"<unused(\d+)>", self._run(1))]

    def _run(self, steps: int) -> str:
        done = subprocess.run(
            [*self._command, "--diffusion-steps", str(steps)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise BackendError(
                f"{self._command[0]} failed: {done.stderr[-2000:]}",
                cure="remove the folder of its build and the GGUF files, and run again",
            )
        return done.stdout + done.stderr
