"""Memory by category against what the kernel counts."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lladav.export import ExportConfig, export
from lladav.runtime.profiling import Measured, Profile
from lladav.runtime.profiling.memory import MemoryLedger, Resident, nvmap, present
from lladav.runtime.profiling.record import Memory

DEMO = Path(__file__).resolve().parents[3] / "benchmarks" / "demo_checkpoint" / "checkpoint"

# In a process of its own: the tests' own memory would count as the answer's.
_ACCOUNT = """
import os
import sys
from pathlib import Path
from lladav.runtime import GenerationConfig
from lladav.runtime.profiling import MemoryLedger, profile, synthetic
from lladav.runtime.tracing import traced
from lladav.runtime import Pipeline

bundle = Path(sys.argv[1])
ledger = MemoryLedger(bundle)
with traced(ledger):
    pipeline = Pipeline.load(bundle, threads=min(2, os.cpu_count() or 1), feature_cache_bytes=0)
    if pipeline.bundle.manifest.geometry.vision is not None:
        pipeline.pictures.load()
ledger.loaded()
asking = synthetic(pipeline, GenerationConfig(preset="quality", gen_length=16))
print(profile(pipeline, asking, runs=1, warmup=2, ledger=ledger, layers=False).profile.text())
"""


def test_pages_exist_once_they_are_written() -> None:
    memory = mmap.mmap(-1, 1 << 22)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    array = np.frombuffer(memory, np.uint8)
    assert present([array]) == 0
    array[: 1 << 21] = 1
    assert present([array]) == present([array, array]) == 1 << 21


def written(size: int) -> np.ndarray:
    """Bytes in pages that are new to the process; an allocator might hand out ones that it kept."""
    array = np.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)
    array[:] = 1
    return array


def test_anonymous_memory_grows_by_what_is_written() -> None:
    before = Resident.now().anonymous
    array = written(1 << 25)
    assert Resident.now().anonymous - before == pytest.approx(array.nbytes, rel=0.1)


def test_mapped_files_are_told_by_path(tmp_path: Path) -> None:
    file = tmp_path / "some.weights"
    file.write_bytes(bytes(1 << 22))
    mapped = np.memmap(file, np.uint8, "r")
    assert mapped.sum() == 0
    assert Resident.now().under(tmp_path, ".weights") == 1 << 22


def test_nvmap_is_read_by_process(tmp_path: Path) -> None:
    clients = tmp_path / "clients"
    clients.write_text(
        "CLIENT                        PROCESS      PID        SIZE\n"
        "user                          python3     1234    2048K\n"
        "user                          Xorg        99       512K\n"
    )
    assert nvmap(clients, 1234) == 2048 * 1024
    assert nvmap(tmp_path / "none") is None


def test_buffers_are_in_their_categories(measured: Measured) -> None:
    memory = measured.profile.memory
    assert memory is not None
    parts = {part.name: part for part in memory.parts}
    assert parts["prompt KV"].bytes > 0
    assert parts["embedding table"].file_backed
    assert not parts["weights"].file_backed


def test_categories_add_up_to_the_peak_of_the_demo(tmp_path: Path) -> None:
    export(DEMO, tmp_path / "bundle", ExportConfig(dtype="fp16", verify=False))
    assert abs(account(tmp_path / "bundle", tmp_path).unexplained) <= 0.05


@pytest.mark.slow
def test_categories_add_up_to_the_peak_of_a_gigabyte(tmp_path: Path) -> None:
    from benchmarks.mid_size import write_checkpoint

    export(write_checkpoint(tmp_path / "checkpoint"), tmp_path / "bundle", ExportConfig(dtype="fp32", verify=False))
    memory = account(tmp_path / "bundle", tmp_path)
    assert memory.total > 1e9
    assert abs(memory.unexplained) <= 0.05


def account(bundle: Path, folder: Path) -> Memory:
    command = [sys.executable, "-c", _ACCOUNT, str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    file = folder / "profile.json"
    file.write_text(done.stdout)
    memory = Profile.read(file).memory
    assert memory is not None
    return memory


def test_what_grows_inside_another_span_counts_once(tmp_path: Path) -> None:
    ledger = MemoryLedger(tmp_path)
    # Much more than what a process that ran other tests grows by meanwhile.
    inside, around = 1 << 27, 1 << 26
    kept = []
    with ledger.span("warm_up"):
        kept.append(written(around))
        with ledger.span("tokenize"):
            kept.append(written(inside))
    parts = {part.name: part.bytes for part in ledger.account({}).parts}
    assert parts["activations"] == pytest.approx(around, rel=0.1)
    assert parts["host work"] == pytest.approx(inside, rel=0.1)
