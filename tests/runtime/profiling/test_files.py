"""What a profile leaves, and what is read back."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from time import perf_counter, sleep

import pytest

from lladav.errors import ProfileError
from lladav.runtime.profiling import Measured, Profile
from lladav.runtime.profiling.output import check_output, write, write_report
from lladav.runtime.profiling.recorder import Recording, record
from lladav.runtime.profiling.report import report
from lladav.runtime.profiling.trace import LANES, chrome_trace
from lladav.runtime.results import Answer, StepEvent
from lladav.runtime.tracing import span


def test_all_files_appear_and_the_profile_reads_back(measured: Measured, tmp_path: Path) -> None:
    folder = tmp_path / "profile"
    files = write(measured, folder, replace=False)
    assert {file.name for file in files} == {"profile.json", "trace.json", "layers.json", "report.html"}
    assert {file.name for file in folder.iterdir()} == {file.name for file in files}
    assert Profile.read(folder / "profile.json") == measured.profile
    assert json.loads((folder / "layers.json").read_text())[0] == {"count": 5}


def test_a_folder_that_exists_is_replaced_only_when_asked(measured: Measured, tmp_path: Path) -> None:
    folder = tmp_path / "profile"
    write(measured, folder, replace=False)
    (folder / "layers.json").write_text("old")
    with pytest.raises(ProfileError, match="exists already") as caught:
        check_output(folder, replace=False)
    assert "--force" in caught.value.cure
    write(measured, folder, replace=True)
    assert (folder / "layers.json").read_text() != "old"


def test_other_peoples_files_are_never_replaced(measured: Measured, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ProfileError, match=r"thesis\.tex"):
        write(measured, tmp_path, replace=True)
    assert (tmp_path / "thesis.tex").exists()
    with pytest.raises(ProfileError, match="is a file"):
        check_output(tmp_path / "thesis.tex", replace=True)


def test_a_folder_that_cannot_be_written_is_said(measured: Measured, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ProfileError, match="cannot be written"):
        write(measured, tmp_path / "file" / "profile", replace=False)


@pytest.mark.parametrize("cut", [0, 1, 100, -3])
def test_a_truncated_profile_is_refused(measured: Measured, tmp_path: Path, cut: int) -> None:
    file = tmp_path / "profile.json"
    file.write_text(measured.profile.text()[:cut])
    with pytest.raises(ProfileError, match="cannot be read as a profile"):
        Profile.read(file)


@pytest.mark.parametrize("text", ["[]", "{}", "7", '{"schema_version": 2}', '{"schema_version": "1"}'])
def test_another_schema_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "profile.json"
    file.write_text(text)
    with pytest.raises(ProfileError, match=r"schema .* where this version reads 1"):
        Profile.read(file)


def test_unknown_and_impossible_values_are_named(measured: Measured, tmp_path: Path) -> None:
    raw = json.loads(measured.profile.text())
    raw["surprise"] = 1
    raw["runs"][0]["ms"] = -1
    file = tmp_path / "profile.json"
    file.write_text(json.dumps(raw))
    with pytest.raises(ProfileError, match=r"(?s)runs\.0\.ms.*surprise"):
        Profile.read(file)


def test_a_missing_profile_is_said(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="No such file"):
        Profile.read(tmp_path / "none.json")


def test_the_trace_has_six_lanes_whose_events_do_not_cross(measured: Measured) -> None:
    events = chrome_trace(measured.recordings)["traceEvents"]
    lanes = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert tuple(lanes[i] for i in range(len(LANES))) == LANES
    by_lane = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            assert event["ts"] >= 0
            by_lane[lanes[event["tid"]]].append((event["ts"], event["ts"] + event["dur"]))
    assert set(by_lane) == set(LANES)
    steps = sum(len(one.steps) for one in measured.recordings)
    assert len(by_lane["refresh"]) + len(by_lane["step"]) == len(by_lane["sampling"]) == steps
    for lane in set(LANES) - {"host"}:
        ordered = sorted(by_lane[lane])
        assert all(a[1] <= b[0] for a, b in pairwise(ordered))


def _check_trace(recordings: Sequence[Recording]) -> None:
    """By the rules of the Trace Event Format, and those that Perfetto adds for complete events."""
    written = json.loads(json.dumps(chrome_trace(recordings), allow_nan=False))
    named = [event for event in written["traceEvents"] if event["ph"] == "M"]
    complete = [event for event in written["traceEvents"] if event["ph"] == "X"]
    assert written["traceEvents"] == named + complete
    assert {event["name"] for event in named} == {"process_name", "thread_name", "thread_sort_index"}
    assert [event["args"]["sort_index"] for event in named if "sort_index" in event["args"]] == list(range(len(LANES)))
    around: dict[int, list[int]] = defaultdict(list)
    before = 0
    for event in complete:
        assert {type(event[key]) for key in ("ts", "dur", "pid", "tid")} == {int}
        assert event["ts"] >= before
        assert event["dur"] >= 0
        before, ends, open_ends = event["ts"], event["ts"] + event["dur"], around[event["tid"]]
        while open_ends and open_ends[-1] <= event["ts"]:
            open_ends.pop()
        assert not open_ends or ends <= open_ends[-1]
        open_ends.append(ends)


def test_the_trace_keeps_the_formats_rules(measured: Measured) -> None:
    _check_trace(measured.recordings)


@pytest.mark.parametrize("named", [("refresh", "sampling", "commit"), ("launch", "wait")])
@pytest.mark.parametrize("said", [0.0, 0.5, 1.5, 1000.0])
def test_steps_that_say_another_time_keep_the_rules(measured: Measured, named: Sequence[str], said: float) -> None:
    """The clock is read where a span ends and again where the step does, and the process may lose its core between."""
    steps = [step.event for step in measured.recordings[0].steps]

    def stream() -> Iterator[StepEvent | Answer]:
        with span("merge"):
            sleep(1e-3)
        for event in steps:
            began = perf_counter()
            for name in named:
                with span(name):
                    sleep(1e-4)
            took = (perf_counter() - began) * 1e3 * said
            yield replace(event, ms=took, graph_ms=took)
        yield measured.recordings[0].answer

    heard = record(stream())
    _check_trace([heard])
    assert heard.steps[0].began >= heard.spans[0].ended
    for step in heard.steps:
        assert step.began <= step.spans[0].began
        assert step.ended == step.spans[-1].ended


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids |= {value for name, value in attrs if name == "id" and value}
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, _tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids |= {value for name, value in attrs if name == "id" and value}


def test_the_report_is_whole_and_needs_no_network(measured: Measured) -> None:
    page = report(measured.profile)
    parser = _Page()
    parser.feed(page)
    assert parser.open == []
    assert not re.search(r'(?:src|href)="(?!#|data:)', page.replace("xlink:href", "href"))
    tips = json.loads(re.search(r"const tips = (.*);", page)[1])  # type: ignore[index]
    assert tips.keys() <= parser.ids
    assert sum(name.startswith("canvas-") for name in tips) == 2 * 12


def test_what_a_model_says_cannot_end_the_script(measured: Measured) -> None:
    evil = "</script><script>alert(1)</script>"
    first, *others = measured.profile.shown
    first = first.model_copy(update={"tokens": (evil,) * len(first.tokens)})
    page = report(measured.profile.model_copy(update={"shown": (first, *others), "notes": (evil,)}))
    assert "<script>alert" not in page


def test_a_report_without_matplotlib_is_left_out(
    measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lladav.runtime.profiling.output.can_draw", lambda: False)
    files = write(measured, tmp_path / "profile", replace=False)
    assert "report.html" not in {file.name for file in files}
    with pytest.raises(ProfileError, match="matplotlib") as caught:
        write_report(measured.profile, tmp_path)
    assert "lladav[report]" in caught.value.cure
