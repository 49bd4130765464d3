"""`lladav doctor`, on machines that lack this or that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lladav import doctor as doctor_module
from lladav import machine
from lladav.cli.app import app
from lladav.doctor import Diagnosis, doctor

ROOT = Path(__file__).resolve().parents[2]
CPUINFO_X86 = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx2 avx512f avx512_vnni\n"
CPUINFO_ORIN = "processor\t: 0\nFeatures\t: fp asimd asimdhp asimddp\nCPU part\t: 0xd42\n"


@pytest.fixture(scope="module")
def here() -> Diagnosis:
    return doctor()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes it for granted that the CPU provider loads."""
    monkeypatch.setattr(doctor_module, "_providers", lambda: (doctor_module.Provider("CPUExecutionProvider", ""),))


def verbs(diagnosis: Diagnosis) -> dict[str, tuple[str, str]]:
    return {verb.name: (verb.fault, verb.cure) for verb in diagnosis.verbs}


def test_everything_works_where_the_tests_run(here: Diagnosis) -> None:
    found = verbs(here)
    fault, cure = found.pop("build")
    assert (fault == "") == any(find_spec(name) for name in ("tensorrt", "tensorrt_rtx"))
    assert bool(fault) == bool(cure)
    working = ("export", "calibrate", "run", "profile", "plan", "verify", "inspect", "doctor")
    assert found == dict.fromkeys(working, ("", ""))
    assert ("CPUExecutionProvider", "") in [(p.name, p.fault) for p in here.providers]
    assert here.resampling is True
    assert here.machine.cores >= 1


def test_tables_and_json() -> None:
    shown = CliRunner().invoke(app, ["doctor"])
    assert shown.exit_code == 0
    assert all(part in shown.stdout for part in ("memory", "CPUExecutionProvider", "picture resizing", "Verbs"))
    told = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    assert {"python", "machine", "packages", "providers", "verbs", "warnings"} <= told.keys()


@pytest.mark.parametrize(
    ("blocked", "verb", "cure"),
    [
        ("onnxruntime", "run", "pip install onnxruntime"),
        ("PIL", "run", "pip install pillow"),
        ("numpy", "run", "pip install numpy"),
        ("torch", "verify", "pip install 'lladav[verify]'"),
        ("onnx", "export", "pip install 'lladav[export]'"),
        ("tensorrt_rtx", "build", "pip install 'lladav[tensorrt-rtx]'"),
    ],
)
def test_missing_packages_have_a_cure(blocked: str, verb: str, cure: str) -> None:
    code = f"import sys; sys.modules[{blocked!r}] = None\nfrom lladav.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "doctor", "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = {v["name"]: v for v in json.loads(done.stdout)["verbs"]}
    assert found[verb]["cure"] == cure
    assert found["inspect"]["fault"] == found["doctor"]["fault"] == ""


def test_provider_that_is_listed_and_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "_LIST", "print('CUDAExecutionProvider', 'CPUExecutionProvider')")
    found = {p.name: p.fault for p in doctor().providers}
    assert found["CPUExecutionProvider"] == ""
    assert "fell back to CPUExecutionProvider" in found["CUDAExecutionProvider"]


def test_provider_that_crashes_does_not_take_doctor_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "_PROBE", "import os; os.abort()")
    found = doctor()
    assert "ended with" in found.providers[0].fault
    assert verbs(found)["run"][1] == "pip install --force-reinstall onnxruntime"


@pytest.mark.usefixtures("quick")
def test_two_onnxruntimes_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "1.23.0" if name == "onnxruntime-gpu" else version(name))
    (warning,) = doctor().warnings
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in warning


@pytest.mark.usefixtures("quick")
def test_other_resampling_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lladav.runtime.images.resampling_is_reference", lambda: False)
    assert verbs(doctor())["run"] == (
        "this Pillow resizes pictures otherwise than the reference: answers may differ",
        "pip install 'pillow>=10.3,<=13.0'",
    )


@pytest.mark.usefixtures("quick")
def test_gpu_kernels_are_found_or_have_a_cure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    binary = tmp_path / "kernels.fatbin"
    monkeypatch.setattr("lladav.runtime.gpu.kernels.FAT_BINARY", binary)
    assert "make kernels" in doctor().kernels
    binary.write_bytes(b"")
    assert doctor().kernels == ""


def abilities(diagnosis: Diagnosis) -> dict[str, tuple[str, str]]:
    return {backend.name: (backend.fault, backend.cure) for backend in diagnosis.backends}


@pytest.mark.usefixtures("quick")
def test_backends_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = machine.Machine("", "", 1, (), None, "", (), "", "", "")
    monkeypatch.setattr(doctor_module, "examine", lambda: nothing)
    found = abilities(doctor())
    assert list(found) == ["tensorrt", "tensorrt-rtx", "ort-cuda", "cpu"]
    assert found.pop("cpu") == ("", "")
    for fault, cure in found.values():
        assert fault.startswith("no NVIDIA GPU with a driver")
        assert cure == "use --backend cpu"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("probe", "fault", "cure"),
    [
        ("", "", ""),
        ("print('no kernel', 'make kernels', sep='\\n')", "no kernel", "make kernels"),
        ("import os; os.abort()", "the process ended with", "report this"),
    ],
)
def test_backends_with_a_gpu(monkeypatch: pytest.MonkeyPatch, probe: str, fault: str, cure: str) -> None:
    card = machine.Gpu("NVIDIA H200", "580.1", "143771 MiB", "9.0")
    there = machine.Machine("", "", 1, (), None, "", (card,), "", "", "")
    monkeypatch.setattr(doctor_module, "examine", lambda: there)
    monkeypatch.setattr(doctor_module, "_GPU", probe)
    monkeypatch.setattr(doctor_module, "_library", lambda name: "" if name == "tensorrt" else f"{name} missing")
    found = abilities(doctor())
    assert found["tensorrt"][0].startswith(fault)
    assert found["tensorrt"][1].startswith(cure)
    assert bool(found["tensorrt"][0]) == bool(fault)
    assert found["tensorrt-rtx"][0].endswith("tensorrt_rtx missing")
    assert found["ort-cuda"][0].endswith("CUDAExecutionProvider: not offered")


def test_probe_of_the_gpu_ends_with_a_verdict() -> None:
    """Whatever this machine has: nothing, or what is missing and its cure."""
    done = doctor_module._python(doctor_module._GPU)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) in (0, 2)


def test_cpu_features() -> None:
    assert machine._cpu(CPUINFO_X86) == ("AMD EPYC", ("AVX2", "AVX-512", "AVX-512 VNNI"))
    assert machine._cpu(CPUINFO_ORIN)[1] == ("NEON", "NEON FP16", "NEON dot product")
    assert machine._cpu("")[1] == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n", ("36.4.3", "6")),
        ("# R38 (release), REVISION: 2.0, GCID: 1\n", ("38.2.0", "7")),
        ("", ("", "")),
    ],
)
def test_jetpack(text: str, expected: tuple[str, str]) -> None:
    assert machine._jetpack(text) == expected


def test_contiguous_memory_of_a_jetson() -> None:
    text = "MemTotal: 1000 kB\nMemAvailable: 500 kB\nSwapTotal: 0 kB\nCmaTotal: 256 kB\nCmaFree: 10 kB\n"
    assert machine._memory(text) == machine.Memory(1024000, 512000, 0, 262144, 10240)


def test_gpu_as_its_driver_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_output", lambda *_: "NVIDIA H200, 570.1, 143771 MiB, 9.0\n")
    assert machine._gpus() == (machine.Gpu("NVIDIA H200", "570.1", "143771 MiB", "9.0"),)
