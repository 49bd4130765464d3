"""The device on the real CUDA bindings of three versions; only the driver behind them is played."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from wheels import unpacked

import lladav.runtime.gpu.cuda_device as module

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def played_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a libcuda that needs no GPU."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("driver")
    command = (compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(folder / "libcuda.so.1"))
    subprocess.run((*command, str(HERE / "played_driver.c"), "-ldl"), check=True)
    return folder


def run(played_driver: Path, version: str, *code: str) -> subprocess.CompletedProcess[str]:
    wheels = (unpacked(f"cuda-bindings=={version}"), unpacked("cuda-pathfinder==1.9.0"))
    path = os.pathsep.join(map(str, (HERE.parents[2], *wheels)))
    environment = {**os.environ, "LD_LIBRARY_PATH": str(played_driver), "PYTHONPATH": path}
    return subprocess.run((sys.executable, *code), env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("version", ["12.8.0", "12.9.10", "13.5.0"])
def test_everything_works_on_the_real_bindings(played_driver: Path, version: str) -> None:
    done = run(played_driver, version, str(HERE / "on_played_driver.py"))
    assert done.returncode == 0, done.stderr


def test_every_call_is_played() -> None:
    """So that none of them goes untried."""
    called = set(re.findall(r'"(cu[A-Z]\w+)"', Path(module.__file__).read_text("utf-8")))
    assert called <= set(re.findall(r"^Result (\w+)", (HERE / "played_driver.c").read_text("utf-8"), re.MULTILINE))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("device.call('cuMemAllocate', 8)", "has no attribute 'cuMemAllocate'"),
        ("device.call('cuMemAlloc', 8, 0)", "takes exactly"),
        ("device.call('cuMemAlloc', 'much')", "an integer is required"),
    ],
)
def test_calls_that_the_bindings_do_not_have(played_driver: Path, call: str, said: str) -> None:
    code = f"from lladav.runtime.gpu.cuda_device import CudaDevice; device = CudaDevice(b'fat'); {call}"
    assert said in run(played_driver, "13.5.0", "-c", code).stderr
