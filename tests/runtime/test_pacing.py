"""Deadlines: the table of times, and which pass still fits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lladav.runtime.pacing import KEPT, Pacer, PassTimes, pass_key

SIZE = (1, 64, 16)


def times(refresh: float = 40.0, step: float = 10.0) -> PassTimes:
    table = PassTimes()
    table.add(pass_key("refresh", SIZE), refresh)
    table.add(pass_key("step", SIZE), step)
    return table


def pacer(left_ms: float, table: PassTimes | None = None) -> Pacer:
    return Pacer(table or times(), SIZE, left_ms / 1e3, now=lambda: 0.0)


def test_percentile_is_the_largest_of_few_and_forgets_the_old() -> None:
    table = PassTimes()
    for ms in (3.0, 9.0, 5.0):
        table.add("x", ms)
    assert table.p99("x") == 9.0
    for ms in np.linspace(1, 2, KEPT):
        table.add("x", float(ms))
    assert table.p99("x") < 2.0
    assert table.p99("unknown") == 0.0


def test_table_is_kept_between_runs(tmp_path: Path) -> None:
    file = tmp_path / "a" / "times.json"
    table = PassTimes(file)
    table.add("refresh/1x64x16", 12.5)
    table.save()
    assert PassTimes(file).p99("refresh/1x64x16") == 12.5
    assert [entry.name for entry in file.parent.iterdir()] == ["times.json"]


DEEP, HUGE = "[" * 100_000, f'{{"x": [{"9" * 400}]}}'
DAMAGED = ["", "{", "[1]", '{"x": 3}', '{"x": ["a"]}', '{"x": [NaN, -1, 1e308]}', DEEP, HUGE]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_table_is_measured_anew(tmp_path: Path, content: str) -> None:
    (tmp_path / "times.json").write_text(content)
    assert PassTimes(tmp_path / "times.json").p99("x") == 0.0


def test_table_is_saved_now_and_then(tmp_path: Path) -> None:
    table = PassTimes(tmp_path / "times.json")
    table.add("x", 1.0)
    table.save(now=False)
    assert not list(tmp_path.iterdir())
    for _ in range(100):
        table.add("x", 1.0)
    table.save(now=False)
    assert PassTimes(tmp_path / "times.json").count("x") == 101
    table.forget(["x", "unknown"])
    assert table.count("x") == 0


def test_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    table = PassTimes(tmp_path / "file" / "times.json")
    table.add("x", 1.0)
    table.save()


def test_tables_differ_by_bundle_and_setup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for seal, setup, ms in (("a" * 64, "1", 1.0), ("a" * 64, "2", 2.0), ("b" * 64, "1", 3.0)):
        table = PassTimes.of(seal, setup)
        assert table.p99("x") == 0.0
        table.add("x", ms)
        table.save()
    assert PassTimes.of("a" * 64, "2").p99("x") == 2.0


def test_last_pass_is_the_one_after_which_no_step_fits() -> None:
    assert pacer(29).plan("step", 8, 1.0) == ("step", False)
    assert pacer(19).plan("step", 8, 1.0) == ("step", True)
    assert pacer(-5).plan("step", 8, 1.0) == ("step", True)
    assert pacer(51).plan("refresh", 8, 0.0) == ("refresh", False)
    assert pacer(49).plan("refresh", 8, 0.0) == ("refresh", True)


def test_refresh_gives_way_to_the_steps_that_are_still_needed() -> None:
    """8 positions at 2 per pass are a refresh and 3 steps: 70 ms."""
    assert pacer(71).plan("refresh", 8, 2.0) == ("refresh", False)
    assert pacer(69).plan("refresh", 8, 2.0) == ("step", False)


def test_first_pass_is_a_refresh_however_little_time_is_left() -> None:
    assert pacer(1).plan("refresh", 8, 0.0) == ("refresh", True)
