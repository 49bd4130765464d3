"""What is called of TensorRT is there, in every version that we support, with these arguments."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from wheels import unpacked

ROOT = Path(__file__).resolve().parents[2]
FUNCTIONS = """
createInferBuilder_INTERNAL createInferRefitter_INTERNAL createInferRuntime_INTERNAL createNvOnnxParser_INTERNAL
createNvOnnxParserRefitter_INTERNAL getBuilderPluginRegistry getNvOnnxParserVersion getPluginRegistry
initLibNvInferPlugins
"""
"""What the bindings look for in the libraries when they are imported."""

# Words that the code uses for things of its own, and what every enumeration has.
OURS = frozenset(
    {"__init__", "__members__", "append", "clear", "log", "name", "node", "shape", "start", "weights", "write"}
)


class Release(NamedTuple):
    """The bindings of one version, and the libraries that they load."""

    wheel: str
    library: str
    version: str
    loads: tuple[str, ...]


TENSORRT = ("libnvinfer", "libnvonnxparser", "libnvinfer_plugin")
RTX = ("libtensorrt_rtx", "libtensorrt_onnxparser_rtx")
RELEASES = (
    Release("tensorrt-cu12-bindings", "tensorrt", "10.3.0", tuple(f"{name}.so.10" for name in TENSORRT)),
    Release("tensorrt-cu12-bindings", "tensorrt", "10.13.3.9", tuple(f"{name}.so.10" for name in TENSORRT)),
    Release("tensorrt-cu12-bindings", "tensorrt", "10.16.1.11", tuple(f"{name}.so.10" for name in TENSORRT)),
    Release("tensorrt-cu13-bindings", "tensorrt", "11.4.0.106", tuple(f"{name}.so.11" for name in TENSORRT)),
    Release("tensorrt-rtx-cu13-bindings", "tensorrt_rtx", "1.7.1.116", tuple(f"{name}.so.1" for name in RTX)),
)


@pytest.fixture(scope="session")
def empty_libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with libraries of those names, whose functions give nothing."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("libraries")
    source = folder / "empty.c"
    source.write_text("\n".join(f"void *{name}(void) {{ return 0; }}" for name in FUNCTIONS.split()), "utf-8")
    for name in {name for release in RELEASES for name in release.loads}:
        command = (compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name), str(source))
        subprocess.run(command, check=True)
    return folder


@functools.cache
def outcome(libraries: Path, release: Release, *replacements: str) -> subprocess.CompletedProcess[str]:
    """Of `bindings.py`."""
    path = (ROOT, unpacked(f"{release.wheel}=={release.version}"))
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(libraries),
        "PYTHONPATH": os.pathsep.join(map(str, path)),
    }
    script = str(Path(__file__).with_name("bindings.py"))
    command = (sys.executable, script, release.library, f"{release.library}_bindings", *replacements)
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: f"{release.library} {release.version}")
def test_all_that_is_called_is_there(empty_libraries: Path, release: Release) -> None:
    done = outcome(empty_libraries, release)
    assert done.returncode == 0, done.stderr
    # `errors` of our logger is asked for by us alone.
    assert json.loads(done.stdout)["invented"] == ["errors"]


def test_all_that_the_code_names_was_called(empty_libraries: Path) -> None:
    """In one version or another: what one has and others lack is asked for before."""
    unused = [set(json.loads(outcome(empty_libraries, release).stdout)["unused"]) for release in RELEASES]
    # Members of enumerations are those of the real classes.
    assert {name for name in set.intersection(*unused) if not name.isupper()} <= OURS


@pytest.mark.parametrize(
    ("replacement", "said"),
    [
        ("set_tensor_address=set_tensor_adress", "has no attribute 'set_tensor_adress'"),
        ("progress_monitor=progress", "has no attribute 'progress'"),
        ("USER_MANAGED=OURS", "has no attribute 'OURS'"),
        ("trt.OnnxParser(network, log)=trt.OnnxParser(network)", "__init__ takes"),
        ("execute_async_v3(self._stream)=execute_async_v3()", "execute_async_v3 takes"),
        ("set_timing_cache(cache, False)=set_timing_cache(config, False)", "set_timing_cache takes"),
        ("device_memory_size_v2=device_memory_size", "has no attribute 'device_memory_size'"),
    ],
)
def test_what_is_not_there_is_found(empty_libraries: Path, replacement: str, said: str) -> None:
    done = outcome(empty_libraries, RELEASES[3], replacement)
    assert done.returncode != 0
    assert said in done.stderr


def test_method_that_nobody_calls_is_found(empty_libraries: Path) -> None:
    done = outcome(empty_libraries, RELEASES[0], "phase_finish=phase_done")
    assert json.loads(done.stdout)["invented"] == ["phase_done", "errors"]
