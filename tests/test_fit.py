"""LLaDA-V's real geometry in 4 bits answers a question on two cores and in 20 GB of memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks import make_full_size
from benchmarks.export_full_size import anonymous_bytes
from lladav.bundle import Bundle
from lladav.export.verify import PICTURE

MOST_MEMORY = 20e9
CORES = 2


class Run(NamedTuple):
    """Of a command: what it printed, its seconds, and its largest memory, with and without mapped files."""

    output: str
    seconds: float
    resident: int
    anonymous: int


def run(*arguments: str) -> Run:
    """A verb of the command line, on few cores."""
    began, peak = time.perf_counter(), 0
    command = [sys.executable, "-m", "lladav", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        # Before it has threads, which inherit it.
        os.sched_setaffinity(process.pid, sorted(os.sched_getaffinity(0))[:CORES])
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(0.2)
        _, status, usage = ended
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        assert process.stdout is not None
        return Run(process.stdout.read(), time.perf_counter() - began, usage.ru_maxrss * 1024, peak)


@pytest.mark.fullsize
def test_real_geometry_answers_in_four_bits(tmp_path: Path) -> None:
    checkpoint, bundle = tmp_path / "checkpoint", tmp_path / "bundle"
    checkpoint.mkdir()
    make_full_size.write_checkpoint(checkpoint, make_full_size.LAYERS, make_full_size.VISION_LAYERS, lambda _: None)
    exported = run("export", str(checkpoint), str(bundle), "--dtype", "fp16", "--quantize", "w4", "--no-verify")
    shutil.rmtree(checkpoint)
    size = sum(entry.bytes for entry in Bundle.open(bundle).manifest.files)
    options = ("--preset", "realtime", "--gen-length", "32", "--threads", str(CORES), "--json")
    answered = run("run", str(bundle), "--image", str(PICTURE), "--prompt", "What is this?", *options)
    shutil.rmtree(bundle)

    answer = json.loads(answered.output)
    for what, one in (("exported", exported), ("answered", answered)):
        print(
            f"\n{what} in {one.seconds:.0f} s with {one.resident / 1e9:.2f} GB of memory, "
            f"{one.anonymous / 1e9:.2f} GB of it beside the file cache"
        )
    print(f"bundle of {size / 1e9:.2f} GB, prompt of {answer['prompt_tokens']}")
    print({stage: round(ms) for stage, ms in answer["timings_ms"].items()}, answer["passes"])
    print([(step["kind"], round(step["ms"])) for step in answer["steps"]])
    assert answer["passes"] == {"refresh": 1, "step": 7}
    assert answer["image_tokens"] != [0]
    assert answered.resident < MOST_MEMORY
