"""Meters of boards that are not at hand."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from lladav.runtime.profiling.power import Meter, find_meter, metered


@pytest.fixture
def no_nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))


def write_rails(hwmon: Path, rails: dict[str, tuple[int, int]], chip: str = "ina3221") -> Path:
    folder = hwmon / "hwmon0"
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{chip}\n")
    for number, (label, (millivolts, milliamperes)) in enumerate(rails.items(), 1):
        (folder / f"in{number}_label").write_text(f"{label}\n")
        (folder / f"in{number}_input").write_text(f"{millivolts}\n")
        (folder / f"curr{number}_input").write_text(f"{milliamperes}\n")
    return folder


def test_one_rail_for_everything_is_taken_alone(tmp_path: Path) -> None:
    write_rails(tmp_path, {"VDD_IN": (5000, 2000), "VDD_CPU_GPU_CV": (5000, 800), "VDD_SOC": (5000, 400)})
    meter, missing = find_meter(tmp_path)
    assert meter is not None
    assert (meter.source, meter.watts(), missing) == ("ina3221", 10.0, "")


def test_rails_of_parts_are_added(tmp_path: Path) -> None:
    write_rails(tmp_path, {"VDD_GPU_SOC": (20000, 500), "VDD_CPU_CV": (20000, 100), "VIN_SYS_5V0": (5000, 1000)})
    meter, _ = find_meter(tmp_path)
    assert meter is not None
    assert meter.watts() == pytest.approx(10 + 2 + 5)


@pytest.mark.usefixtures("no_nvidia_smi")
def test_a_board_without_a_meter_is_said(tmp_path: Path) -> None:
    write_rails(tmp_path, {"Tctl": (1, 1)}, chip="k10temp")
    meter, missing = find_meter(tmp_path)
    assert meter is None
    assert "no INA3221" in missing


def test_a_rail_that_may_not_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_rails(tmp_path, {"VDD_IN": (5000, 2000)}) / "in1_input"

    def refuse(path: Path, *_: object, **__: object) -> str:
        if path == file:
            raise PermissionError(13, "Permission denied", str(file))
        return original(path)

    original = Path.read_text
    monkeypatch.setattr(Path, "read_text", refuse)
    meter, missing = find_meter(tmp_path)
    assert meter is None
    assert str(file) in missing
    assert "run as root" in missing


def test_nvidia_smi_is_asked_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 61.5\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    meter, _ = find_meter(tmp_path / "none")
    assert meter is not None
    assert (meter.source, meter.watts()) == ("nvidia-smi", 61.5)


def test_energy_is_mean_power_by_mean_time() -> None:
    with metered(Meter("ina3221", lambda: 20.0)) as readings:
        time.sleep(0.2)
    energy = readings.energy("ina3221", answer_ms=500)
    assert energy is not None
    assert energy.joules_per_answer == 10
    assert 20 < energy.period_ms < 200


def test_a_meter_that_stops_ends_nothing() -> None:
    def broken() -> float:
        raise OSError

    with metered(Meter("ina3221", broken)) as readings:
        time.sleep(0.1)
    assert readings.energy("ina3221", 1.0) is None
