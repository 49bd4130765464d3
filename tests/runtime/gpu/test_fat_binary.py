"""The kernels compiled for GPUs, where the CUDA toolkit is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from host_library import KERNEL, ROOT, SOURCES

NAMES = {name for path in SOURCES.glob("*.cu") for name in KERNEL.findall(path.read_text("utf-8"))}
CMAKE = shutil.which("cmake")

pytestmark = pytest.mark.skipif(CMAKE is None, reason="CMake is not on this machine")


def configure(folder: Path, *options: str) -> str:
    command = ["cmake", "-S", str(ROOT), "-B", str(folder), *options]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on this machine")
def test_every_kernel_is_compiled_for_every_gpu_that_the_toolkit_knows(tmp_path: Path) -> None:
    made = tmp_path / "kernels.fatbin"
    said = configure(tmp_path / "build", "-DLLADAV_ARCHITECTURES=80;87;999", f"-DLLADAV_FAT_BINARY={made}")
    assert "cannot compile for compute capability 999; left out" in said
    assert not made.exists()
    subprocess.run(["cmake", "--build", str(tmp_path / "build")], check=True, capture_output=True)
    code = made.read_bytes()
    assert code.count(b"\x7fELF") == 2
    for name in NAMES:
        assert code.count(f".text.{name}\0".encode()) >= 2, name
        assert f".visible .entry {name}(".encode() in code, "PTX, for GPUs that are newer"


def test_without_a_toolkit_everything_else_goes_on(tmp_path: Path) -> None:
    said = configure(tmp_path, "-DLLADAV_NVCC=OFF")
    assert "no GPU kernels, because nvcc was not found" in said
    assert (tmp_path / "cmake_install.cmake").is_file()
    assert (
        "kernels"
        not in subprocess.run(
            ["cmake", "--build", str(tmp_path), "--target", "help"], check=True, capture_output=True, text=True
        ).stdout
    )
