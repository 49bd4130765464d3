"""The kernels compiled for GPUs, where the CUDA toolkit is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from host_library import KERNEL, ROOT, SOURCES

NAMES = {name for path in SOURCES.glob("*.cu") for name in KERNEL.findall(path.read_text("utf-8"))}
CMAKE, NVCC = shutil.which("cmake"), shutil.which("nvcc")

pytestmark = pytest.mark.skipif(CMAKE is None, reason="CMake is not on this machine")


def configure(folder: Path, *options: str) -> str:
    command = ["cmake", "-S", str(ROOT), "-B", str(folder), *options]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(NVCC is None, reason="nvcc is not on this machine")
@pytest.mark.parametrize("architectures", ["80;87", pytest.param("80;86;87;89;90;100;110;120", marks=pytest.mark.slow)])
def test_every_kernel_is_compiled_for_every_gpu_that_the_toolkit_knows(tmp_path: Path, architectures: str) -> None:
    known = subprocess.run([str(NVCC), "--list-gpu-code"], check=True, capture_output=True, text=True).stdout.split()
    expected = [number for number in architectures.split(";") if f"sm_{number}" in known]
    made = tmp_path / "kernels.fatbin"
    said = configure(tmp_path / "build", f"-DLLADAV_ARCHITECTURES=999;{architectures}", f"-DLLADAV_FAT_BINARY={made}")
    assert "cannot compile for compute capability 999; left out" in said
    assert not made.exists()
    subprocess.run(["cmake", "--build", str(tmp_path / "build")], check=True, capture_output=True)
    code = made.read_bytes()
    assert code.count(b"\x7fELF") == len(expected)
    assert f".target sm_{expected[-1]}".encode() in code, "PTX, for GPUs that are newer"
    for name in NAMES:
        assert code.count(f".text.{name}\0".encode()) >= len(expected), name
        assert f".visible .entry {name}(".encode() in code, name


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
